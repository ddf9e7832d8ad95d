"""The tools that check deploy/; MONITOR_TEST_REQUIRE=deploy makes a missing one a failure."""

import shutil
import subprocess
from collections.abc import Callable

import pytest

from brokers import ROOT

DEPLOY = ROOT / "deploy"

Tool = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def tool(lacks: Callable[[str, str], None]) -> Tool:
    """`tool("promtool", "check", ...)`: exit code, stdout and stderr of a program; skips by name where it is not here."""

    def run(name: str, *arguments: object, given: str | None = None) -> subprocess.CompletedProcess[str]:
        program = shutil.which(name)
        if program is None:
            lacks("deploy", f"no {name} on the PATH (tests/run.sh installs it)")
        command = [str(program), *map(str, arguments)]
        return subprocess.run(command, cwd=DEPLOY, input=given, capture_output=True, text=True, timeout=120, check=False)

    return run
