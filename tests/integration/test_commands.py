"""The commands as an operator types them, on folders: no broker is needed."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from brokers import Broker
from integration.daemon import Daemon, environment, monitor, wait_until, write_configuration
from integration.plant import MODEL, picture

TABLES: dict[str, dict[str, Any]] = {
    "store": {"path": "models", "poll": 0.2},
    "sources.inbox": {"kind": "folder", "path": "inbox", "poll": 0.1},
    "detectors.bottle": {"kind": "fake", "inputs": ["inbox"], "options": MODEL},
    "sinks.alerts": {"kind": "folder", "path": "alerts"},
}


@contextmanager
def listening(configuration: Path, *arguments: str) -> Iterator[Callable[[], list[str]]]:
    """`monitor listen` meanwhile; gives what it has printed so far, line by line."""
    command = [sys.executable, "-m", "monitor", "listen", *arguments, "--config", str(configuration)]
    printed = configuration.parent / "printed"
    with printed.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, text=True, env=environment())
    try:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("# listening")
        yield lambda: printed.read_text().splitlines()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()


def refused(*arguments: str, **extra: str) -> list[str]:
    """The mistakes of a command that exits 2 and prints nothing else."""
    command = [sys.executable, "-m", "monitor", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, env=environment(**extra))
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    for number in range(6):
        (folder / f"{number}.png").write_bytes(picture("defect" if number == 2 else "normal", number))
    (folder / "sub" / "x.png").write_bytes(picture("defect", 7))
    return folder


def test_published_pictures_come_out_as_alerts_with_maps(install: Callable[..., Path], pictures: Path, tmp_path: Path) -> None:
    configuration = install(TABLES)
    sent, maps = tmp_path / "sent.json", tmp_path / "maps"
    with Daemon(configuration) as daemon, listening(configuration, "--json-lines", "--maps", str(maps)) as lines:
        daemon.start()
        monitor("publish", str(pictures), "--to", "inbox", "--stream", "press/7", "--json", str(sent), "--config", str(configuration))
        wait_until(lambda: len(list(maps.glob("*.png"))) == 2, seconds=90, what=daemon.tail)
        daemon.drain()
        events = [json.loads(line) for line in lines()]
    files = {f"{entry['topic']}/{entry['position']}": Path(entry["file"]).name for entry in json.loads(sent.read_text())}

    assert len(files) == 7
    alerted = {files["{topic}/{position}".format(**event["data"]["sample"])] for event in events}
    assert alerted == {"2.png", "x.png"}
    assert {event["subject"] for event in events} == {"press/7"}
    for png in maps.iterdir():
        drawn = cv2.imread(str(png), cv2.IMREAD_UNCHANGED)
        assert drawn.shape == (32, 32)
        assert drawn.dtype == np.uint8


def test_count_begins_again_and_plain_lines_say_where(install: Callable[..., Path], pictures: Path) -> None:
    configuration = install(TABLES)
    with Daemon(configuration) as daemon, listening(configuration) as lines:
        daemon.start()
        done = monitor("publish", str(pictures / "2.png"), "--to", "inbox", "--count", "3", "--rate", "50", "--config", str(configuration))
        wait_until(lambda: len(lines()) == 3, seconds=90, what=daemon.tail)
        daemon.drain()

        assert "3 of 3 messages confirmed" in done.stdout
        assert all(" alert " in line and "where: " in line for line in lines())


def test_check_says_what_is_missing_and_what_is_there(install: Callable[..., Path], tmp_path: Path) -> None:
    untrained = write_configuration(tmp_path / "monitor.toml", TABLES)
    assert "no model yet" in monitor("check", "--config", str(untrained)).stdout

    answer = tmp_path / "answer.json"
    trained = install(TABLES)
    done = monitor("check", "--online", "--json", str(answer), "--config", str(trained))

    assert "repeats its reference scores on cpu in fp32" in done.stdout
    assert {line["level"] for line in json.loads(answer.read_text())} == {"ok", "warning"}  # 40 normals are too few for 1 %


def test_check_names_a_model_that_was_changed(install: Callable[..., Path]) -> None:
    configuration = install(TABLES)
    (weights,) = (configuration.parent / "models" / "bottle").glob("*/weights.safetensors")
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    command = [sys.executable, "-m", "monitor", "check", "--online", "--config", str(configuration)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, env=environment())

    assert done.returncode == 2
    assert "weights.safetensors" in done.stdout


def test_check_online_tells_why_a_broker_is_not_reached(kafka_with: Callable[[str], Broker], tmp_path: Path) -> None:
    broker = kafka_with("security")
    (tmp_path / "password").write_text("wrong")
    source = {
        "kind": "kafka",
        "bootstrap_servers": broker.sasl,
        "topics": ["images"],
        "group_id": "checker",
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "SCRAM-SHA-512",
        "username": broker.user,
        "password_file": "password",
    }
    configuration = write_configuration(tmp_path / "monitor.toml", {**TABLES, "sources.inbox": source})
    command = [sys.executable, "-m", "monitor", "check", "--online", "--config", str(configuration)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, env=environment())

    assert done.returncode == 2
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("sources.inbox: mistake")]
    assert broker.user in line
    assert "wrong" not in line.split()


def test_wrong_words_are_mistakes_not_tracebacks(tmp_path: Path) -> None:
    configuration = ["--config", str(write_configuration(tmp_path / "monitor.toml", TABLES))]
    (tmp_path / "empty").mkdir()

    assert "cannot be read" in refused("check", "--config", str(tmp_path / "nowhere.toml"))[0]
    assert "expected one of inbox" in refused("publish", str(tmp_path), "--to", "outbox", *configuration)[0]
    assert "no such file or folder" in refused("publish", str(tmp_path / "nothing"), "--to", "inbox", *configuration)[0]
    assert "holds no files" in refused("publish", str(tmp_path / "empty"), "--to", "inbox", *configuration)[0]
    assert "expected at least 1" in refused("publish", str(tmp_path), "--to", "inbox", "--count", "0", *configuration)[0]
    assert "expected one of the sinks alerts" in refused("listen", "--from", "nobody", *configuration)[0]
    assert "bottle" in refused("train", "cup", "--data", str(tmp_path), "--layout", "folder", *configuration)[0]
    assert refused("train", "bottle", "--data", str(tmp_path), "--layout", "spiral", *configuration)
    assert refused("evaluate", "bottle", "--data", str(tmp_path), "--layout", "mvtec", "--category", "cup", *configuration)
    assert refused("publish", str(tmp_path), "--to", "inbox", "--rate", "0", *configuration)
    assert "inf is not above 0 and finite" in refused("publish", str(tmp_path), "--to", "inbox", "--chunk", "inf", *configuration)[-1]
    assert "'soon' is no number" in refused("publish", str(tmp_path), "--to", "inbox", "--chunk", "soon", *configuration)[-1]
    assert "only sound can be cut" in refused("publish", configuration[1], "--to", "inbox", "--chunk", "1", *configuration)[0]
    assert refused("run", *configuration, MONITOR__DAEMON__GRACE="soon")[0].startswith("daemon.grace")
