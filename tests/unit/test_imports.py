"""Heavy imports stay home: what only reads monitor.toml loads no network and no broker client."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch", "kafka", "paho", "cv2", "sklearn", "matplotlib", "soundfile", "PIL"}

CONFIGURATION = """
[daemon]
site = "test"

[sources.cameras]
kind = "kafka"
bootstrap_servers = "127.0.0.1:9092"
topics = ["images"]
group_id = "monitor"

[sources.scanners]
kind = "mqtt"
url = "mqtt://127.0.0.1"
topics = ["plant/{stream}/image"]
client_id = "monitor-1"

[detectors.bottle]
kind = "autoencoder"
inputs = ["cameras", "scanners"]

[sinks.alerts]
kind = "kafka"
bootstrap_servers = "127.0.0.1:9092"
topic = "alerts"

[dead_letter]
kind = "mqtt"
url = "mqtt://127.0.0.1"
topic = "monitor/dead"
"""


def imported(*arguments: str) -> set[str]:
    """The top-level packages that `python -m monitor ARGUMENTS` imports."""
    command = [sys.executable, "-X", "importtime", "-m", "monitor", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


@pytest.mark.parametrize("arguments", [("--help",), ("run", "--help"), ("train", "--help")], ids=" ".join)
def test_help_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    found = imported(*arguments)

    assert "monitor" in found or "argparse" in found
    assert found & (HEAVY | {"sqlalchemy"}) == set()


def test_check_leaves_networks_and_clients_out(tmp_path: Path) -> None:
    (tmp_path / "monitor.toml").write_text(CONFIGURATION)

    found = imported("check", "--config", str(tmp_path / "monitor.toml"))

    assert "pydantic" in found
    assert found & {"torch", "kafka", "paho"} == set()


def test_the_daemon_leaves_out_what_its_configuration_does_not_want() -> None:
    script = "import sys, monitor.daemon; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60)

    assert "monitor" in done.stdout.split()
    assert {*done.stdout.split()} & {"opentelemetry", "aiohttp", "torch", "kafka", "paho"} == set()
