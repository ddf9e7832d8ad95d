"""deploy/systemd: what systemd itself says of the unit, and whether the daemon trains and scores inside it."""

import contextlib
import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest

from brokers import ROOT
from deploy.conftest import Tool
from deploy.sandbox import directives
from deploy.written import check, mentioned
from integration.daemon import environment, wait_until, write_configuration
from monitor.config import DaemonSettings

SYSTEMD = ROOT / "deploy" / "systemd"
UNIT = SYSTEMD / "monitor.service"
SANDBOX = Path(__file__).with_name("sandbox.py")

CONFINED = """
import errno, json, os, resource, socket
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
def refused(call):
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno]
print(json.dumps({
    "no_new_privs": status["NoNewPrivs"].strip(),
    "capabilities": int(status["CapEff"], 16) | int(status["CapBnd"], 16),
    "chroot": refused(lambda: os.chroot("/")),
    "chown": refused(lambda: os.chown(".", 0, 0)),
    "netlink": refused(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)),
    "affinity": refused(lambda: os.sched_setaffinity(0, os.sched_getaffinity(0))),
    "core": resource.getrlimit(resource.RLIMIT_CORE)[1],
}))
"""


@pytest.fixture(params=["monitor.service", "monitor.service and gpu.conf"])
def installed(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The unit as on a machine where the daemon is installed: its program exists."""
    unit = tmp_path / "monitor.service"
    unit.write_text(UNIT.read_text().replace("/opt/monitor/bin/monitor", "/bin/true"))
    if request.param.endswith("gpu.conf"):
        (tmp_path / "monitor.service.d").mkdir()
        shutil.copy(SYSTEMD / "gpu.conf", tmp_path / "monitor.service.d")
    return unit


def test_systemd_finds_nothing_wrong(installed: Path, tool: Tool) -> None:
    done = tool("systemd-analyze", "verify", "--no-pager", installed)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_wrong_directive_would_be_found(installed: Path, tool: Tool) -> None:
    installed.write_text(installed.read_text().replace("OOMPolicy=continue", "OOMPolicy=go_on"))

    assert "go_on" in tool("systemd-analyze", "verify", "--no-pager", installed).stderr


def test_exposure_is_at_most_2(installed: Path, tool: Tool) -> None:
    done = tool("systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", installed)

    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overall exposure level" in done.stdout


def test_it_stops_after_the_grace_and_is_not_started_again_on_a_wrong_file() -> None:
    service = {key: values[-1] for key, values in directives(UNIT).items()}

    assert float(service["TimeoutStopSec"]) >= DaemonSettings().grace + 20  # the brokers' last commits, and models let go
    assert (service["Type"], service["ExecReload"]) == ("notify", "/bin/kill -HUP $MAINPID")
    assert (service["Restart"], service["RestartPreventExitStatus"], service["OOMPolicy"]) == ("on-failure", "2", "continue")
    assert "MemoryDenyWriteExecute" not in service  # breaks torch's convolutions


def test_the_shipped_configuration_becomes_the_services_as_the_readme_says(tmp_path: Path) -> None:
    command = r"""sed 's#"var/#"/var/lib/monitor/#' monitor.toml"""
    assert command in (ROOT / "deploy" / "README.md").read_text()
    text = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    check(text, {}, tmp_path)
    assert all(path.startswith("/var/lib/monitor/") for path in mentioned(text) if not path.startswith(("/run/", "/etc/")))
    assert '"var/' not in text


@pytest.fixture
def confined(tool: Tool) -> list[str]:
    """What stands before a command so that it runs under the unit's prctl, system call filter and limits."""
    tool("systemd-analyze", "--version")
    return [sys.executable, str(SANDBOX), str(UNIT)]


def test_the_sandbox_of_this_test_confines(confined: list[str]) -> None:
    done = subprocess.run([*confined, sys.executable, "-c", CONFINED], capture_output=True, text=True, timeout=120, check=True)

    found = json.loads(done.stdout)
    assert found == {
        "no_new_privs": "1",
        "capabilities": 0,
        "chroot": "EPERM",
        "chown": "EPERM",
        "netlink": "EAFNOSUPPORT",
        "affinity": None,  # @resources: OpenMP sets it
        "core": 0,
    }


def test_the_daemon_trains_and_scores_under_the_units_limits(confined: list[str], tmp_path: Path) -> None:
    for number in range(12):
        _picture(tmp_path / "good" / f"{number:02}.png", number)
    _picture(tmp_path / "inbox" / "press" / "good.png", 100)
    _picture(tmp_path / "inbox" / "press" / "scratched.png", 101, scratched=True)
    configuration = write_configuration(
        tmp_path / "monitor.toml",
        {
            "daemon": {"state": "state.db"},
            "store": {"path": "models"},
            "api": {"port": 0},
            "sources.inbox": {"kind": "folder", "path": "inbox"},
            "sources.other": {"kind": "folder", "path": "other"},
            "detectors.plates": {
                "kind": "autoencoder",
                "inputs": ["inbox"],
                "device": "cpu",
                "options": {"variant": "baseline", "resolution": 32, "epochs": 2, "batch_size": 4, "border": 0},
            },
            "detectors.untrained": {"kind": "autoencoder", "inputs": ["other"]},
            "sinks.scores": {"kind": "folder", "path": "scores", "events": ["score", "alert"]},
        },
    )
    training = [*confined, sys.executable, "-m", "monitor", "train", "plates", "--data", str(tmp_path / "good"), "--layout", "folder"]
    done = subprocess.run([*training, "--config", str(configuration)], capture_output=True, text=True, timeout=240, check=False, env=environment())
    assert done.returncode == 0, done.stderr[-3000:]

    with _service([*confined, sys.executable, "-m", "monitor", "run", "--config", str(configuration)], tmp_path) as (daemon, said):
        wait_until(lambda: "READY=1" in said(), seconds=120, what="READY=1")
        ready = next(json.loads(line) for line in (tmp_path / "daemon.log").read_text().splitlines() if '"event": "ready"' in line)
        port = int(ready["api"].rpartition(":")[2])
        wait_until(lambda: len(list((tmp_path / "scores").glob("*.score.json"))) == 2, seconds=60, what="two scores")
        wait_until(lambda: "WATCHDOG=1" in said(), seconds=60, what="WATCHDOG=1")
        assert _asked(port, "/live") == (200, "live\n")
        assert _asked(port, "/ready")[0] == 503
        wait_until(lambda: 'monitor_scored_total{detector="plates"} 2.0' in _asked(port, "/metrics")[1], seconds=60, what="two scored, in /metrics")
        _what_rules_and_dashboard_stand_on(_asked(port, "/metrics")[1])
        daemon.send_signal(signal.SIGHUP)  # ExecReload
        wait_until(lambda: "RELOADING=1" in said(), seconds=60, what="RELOADING=1")
        wait_until(lambda: said().count("READY=1") == 2, seconds=60, what="READY=1 after the reload")
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(timeout=60) == 0
        assert "STOPPING=1" in said()

    events = [json.loads(file.read_text()) for file in (tmp_path / "scores").glob("*.score.json")]
    scores = {event["data"]["sample"]["position"]: event["data"]["score"] for event in events}
    assert scores["press/scratched.png"] > scores["press/good.png"] > 0
    alerts = [json.loads(file.read_text()) for file in (tmp_path / "scores").glob("*.alert.json")]
    assert "press/scratched.png" in [alert["data"]["sample"]["position"] for alert in alerts]


def _what_rules_and_dashboard_stand_on(metrics: str) -> None:
    """Series that are there before anything happens, and for a detector without a model."""
    series = {line.rpartition(" ")[0] for line in metrics.splitlines() if not line.startswith("#")}
    assert {'monitor_queue_depth{queue="detectors.untrained"}', 'monitor_queue_depth{queue="sources.inbox"}'} <= series
    assert [re.findall(r'detector="(\w+)"', one) for one in series if one.startswith("monitor_model_info")] == [["plates"]]
    assert {"monitor_ready", "monitor_running_batch_seconds", "process_start_time_seconds"} <= series
    assert {'monitor_source_connected{source="other"}', 'monitor_sink_connected{sink="dead_letter"}'} <= series
    assert {'monitor_anomalous_total{detector="plates"}', 'monitor_too_old_total{source="inbox"}'} <= series
    assert {'monitor_dead_letters_total{reason="failed"}', 'monitor_happenings_total{cause="",happening="offsets_gone"}'} <= series
    assert {f'monitor_{name}_bucket{{detector="plates",le="+Inf"}}' for name in ("latency_seconds", "batch_seconds", "batch_size")} <= series


def _asked(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


@contextmanager
def _service(command: list[str], folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], object]]:
    """A service as systemd starts one: with a socket for its notifications; `said()` is all that came."""
    address = folder / "notify"
    told: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifications, (folder / "daemon.log").open("wb") as log:
        notifications.bind(str(address))
        notifications.setblocking(False)

        def said() -> list[str]:
            while True:
                try:
                    told.extend(notifications.recv(65536).decode().splitlines())
                except BlockingIOError:
                    return told

        variables = {"NOTIFY_SOCKET": str(address), "WATCHDOG_USEC": str(int(float(directives(UNIT)["WatchdogSec"][-1]) * 1e6))}
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment(**variables))
        try:
            yield process, said
        except BaseException as error:
            error.add_note((folder / "daemon.log").read_text(errors="replace")[-3000:])
            raise
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def _picture(file: Path, seed: int, *, scratched: bool = False) -> None:
    """A grey plate with a bright disc, 64 x 64; or one with a black band across it."""
    image = np.random.default_rng(seed).integers(90, 110, (64, 64, 3), np.uint8)
    cv2.circle(image, (32, 32), 14, (200, 200, 200), -1)
    if scratched:
        image[20:40] = 0
    file.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(file), image)
