#!/bin/sh
# The demo on a fresh machine with nothing but Python 3.11 or newer:
#
#     sh deploy/demo.sh [--seconds N]
#
# Makes .venv, then runs `monitor demo` in var/demo; further arguments are its own (`monitor demo --help`).
# The second run skips what is installed and trained.
#
# PYTHON   the interpreter to use; else the first of python3, python3.14 ... that is new enough
set -eu
case "${1-}" in -h | --help)
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
esac
cd "$(dirname "$0")/.."
# shellcheck source=deploy/venv.sh
. deploy/venv.sh

missing=$(venv_package)
[ -z "$missing" ] || refuse "this Python makes no virtual environments; run: sudo apt-get install $missing"
make_venv demo
"$venv/bin/python" -c 'import torch
print("== torch", torch.__version__, "for", torch.version.cuda and f"CUDA {torch.version.cuda}" or "CPU")'
exec "$venv/bin/monitor" demo --folder var/demo "$@"
