"""A monitor.toml that is written for another machine, checked on this one."""

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from integration.daemon import environment


def mentioned(text: str) -> Iterator[str]:
    """Every absolute path in it."""
    yield from re.findall(r'= "(/[^"]+)"', text)


def check(text: str, variables: Mapping[str, str], folder: Path) -> str:
    """What `monitor check` says; it must find no mistake, and miss nothing but the model. Files that it names are made in `folder`."""
    for path in set(mentioned(text)):
        text = text.replace(f'"{path}"', f'"{folder}{path}"')
        if path.startswith("/run/"):
            (folder / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
            (folder / path.lstrip("/")).write_text("secret\n")
    (folder / "monitor.toml").write_text(text)
    command = [sys.executable, "-m", "monitor", "check", "--config", str(folder / "monitor.toml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment(**variables))
    assert done.returncode == 0, done.stdout + done.stderr
    warnings = [line for line in done.stdout.splitlines() if "warning" in line and "no model yet" not in line]
    assert warnings == []
    return done.stdout
