# shellcheck shell=sh
# The virtual environment that deploy/demo.sh and tests/run.sh share. Sourced, in the root of the project.
#
# PYTHON   the interpreter to use; else the first of python3, python3.14 ... that is new enough

venv=.venv

say() { printf '== %s\n' "$*"; }
refuse() { printf '%s: %s\n' "$0" "$*" >&2; exit 2; }

python=
for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
[ -n "$python" ] || refuse "no Python 3.11 or newer; set PYTHON=/path/to/python3.11, or install one"

venv_package() { # the Debian package without which this Python makes no virtual environment; nothing where it is there
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        "$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'
}

make_venv() { # $1: the extra of pyproject.toml to install; what is installed and unchanged is left alone
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        say "making $venv with $("$python" --version)"
        rm -rf "$venv"
        "$python" -m venv "$venv"
    fi
    stamp=$venv/installed-$1
    meant=$(cat pyproject.toml constraints.txt | cksum)
    [ "$(cat "$stamp" 2>/dev/null)" != "$meant" ] || return 0
    say "installing what constraints.txt pins; the first time this takes minutes, torch is large"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$1]"
    printf '%s\n' "$meant" >"$stamp"
}
