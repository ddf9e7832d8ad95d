"""`monitor demo` as a stranger types it: in an empty folder, with no broker, no data and no monitor.toml."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import pytest

from integration.daemon import environment, wait_until

FULL = 600
"""Seconds that a whole demo may take on a slow and busy machine; on a free one it takes about two minutes."""

pytestmark = pytest.mark.timeout(FULL + 60)


def demo(home: Path, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-P", "-m", "monitor", "demo", *arguments]
    return subprocess.Popen(command, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())


@contextmanager
def running(home: Path) -> Iterator["subprocess.Popen[str]"]:
    """A long demo with the model of an earlier one, from the first alert on."""
    process = demo(home, "--seconds", "600")
    try:
        assert process.stdout is not None
        assert any("ALERT" in said for said in iter(process.stdout.readline, "")), process.communicate()
        yield process
    finally:
        process.kill()
        process.communicate()


def children(home: Path) -> list[str]:
    """Command lines of processes that work in this folder, or were told of it; ended ones that nobody has waited for have none."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line, here = (entry / "cmdline").read_bytes(), (entry / "cwd").readlink()
            except OSError:  # it has ended meanwhile
                continue
            if line and here == home:
                found.append(line.replace(b"\0", b" ").decode())
    return found


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict[str, Any]]:
    """One whole demo: where, what it printed, and what it wrote for machines."""
    home = tmp_path_factory.mktemp("stranger")
    process = demo(home, "--seconds", "5", "--json", "answer.json")
    try:
        printed, errors = process.communicate(timeout=FULL)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, f"{printed}\n{errors}"
    assert all(line in errors for line in ("train 7/7", "train 4/4")), "plain lines where no terminal is"
    return home, printed, json.loads((home / "answer.json").read_text())


def test_it_trains_streams_and_says_what_it_found(told: tuple[Path, str, dict[str, Any]]) -> None:
    home, printed, answer = told
    flanges = answer["detectors"]["flange"]
    each = flanges["each"]
    planted = [one for one in each if one["fault"] is not None]

    assert (flanges["samples"], flanges["planted"], flanges["good"]) == (20, 6, 14)
    assert len({one["fault"] for one in planted}) == 6
    assert flanges["found"] == sum(one["alerted"] for one in planted)
    assert flanges["false_alarms"] == sum(one["alerted"] for one in each if one["fault"] is None)
    assert all(one["alerted"] == (one["score"] > one["threshold"]) for one in each), "every part was scored, and what is strange alerted"
    (missing,) = [one for one in planted if one["fault"] == "missing bolt"]
    assert missing["alerted"], "the plainest of all faults"
    assert flanges["located"] == sum(one["located"] for one in planted) >= 1
    assert f"{flanges['found']} of 6 planted faults" in printed
    assert f"{flanges['false_alarms']} of 14 good parts" in printed
    (where,) = re.findall(rf"{missing['name']} +ALERT .*?(\d+)x(\d+) px at \((\d+), (\d+)\) .* missing bolt", printed)
    box = missing["regions"][0]
    assert tuple(map(int, where)) == (box["width"], box["height"], box["x"], box["y"])
    assert children(home) == []


def test_it_says_when_and_at_what_pitch_a_pump_sounds_strange(told: tuple[Path, str, dict[str, Any]]) -> None:
    _, printed, answer = told
    pumps = answer["detectors"]["pump"]
    each = pumps["each"]

    assert (pumps["samples"], pumps["planted"], pumps["good"]) == (6, 2, 4)
    assert all(one["alerted"] == (one["score"] > one["threshold"]) for one in each), "every segment was scored"
    assert pumps["found"] == sum(one["alerted"] and one["fault"] is not None for one in each)
    for one in each:
        said = re.findall(rf"{one['name']} +ALERT  score [0-9.]+  ([0-9.]+)-([0-9.]+) s, ([0-9.]+)-([0-9.]+) kHz", printed)
        region = one["regions"][0] if one["alerted"] else None
        expected = [] if region is None else [(region["start"], region["end"], region["low_hz"] / 1000, region["high_hz"] / 1000)]
        assert [tuple(map(float, numbers)) for numbers in said] == [pytest.approx(numbers, abs=0.051) for numbers in expected]


def test_its_pictures_show_the_part_its_map_and_what_was_missed(told: tuple[Path, str, dict[str, Any]]) -> None:
    home, _, answer = told
    pictures = {picture.name: cv2.imread(str(picture)) for picture in (home / answer["pictures"]).iterdir()}

    for one in answer["detectors"]["flange"]["each"]:
        names = [name for name in pictures if name.startswith(one["name"].replace(" ", "-") + "-")]
        expected = 2 if one["alerted"] else 1 if one["fault"] else 0
        assert len(names) == expected, f"{one}: {names}"
        for name in names:
            wide = 3 * 384 if one["alerted"] else 2 * 384
            assert pictures[name].shape == ((192, 192, 3) if name.endswith("-map.png") else (384, wide, 3))
            assert ("missed" in name) == (not one["alerted"])
    for one in answer["detectors"]["pump"]["each"]:
        shapes = [picture.shape for name, picture in pictures.items() if name.startswith(one["name"].replace(" ", "-") + "-")]
        assert len(shapes) == (2 if one["alerted"] else 1 if one["fault"] else 0), one


def test_its_configuration_is_one_to_keep(told: tuple[Path, str, dict[str, Any]]) -> None:
    home, _, answer = told
    command = [sys.executable, "-P", "-m", "monitor", "check", "--config", str(home / answer["configuration"])]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, env=environment())

    assert done.returncode == 0, done.stdout + done.stderr
    assert "flange" in done.stdout
    written = (home / answer["configuration"]).stat().st_mtime_ns
    assert all(written > weights.stat().st_mtime_ns for weights in home.rglob("weights.safetensors")), "its port was free after the training"
    listeners = re.findall('listen = "(.*):', (home / "monitor-demo" / "rumqttd.toml").read_text())
    assert listeners == ["127.0.0.1", "127.0.0.1"], "nobody else on the network reaches the demo's broker"


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_nothing_of_it_goes_on_when_it_is_ended(told: tuple[Path, str, dict[str, Any]], how: signal.Signals, code: int) -> None:
    home, _, _ = told
    with running(home) as process:
        assert len(children(home)) == 3, "itself, the broker, the daemon"
        process.send_signal(how)
        process.communicate(timeout=60)
        assert process.returncode == code
        wait_until(lambda: not children(home), seconds=60, what=lambda: f"still there: {children(home)}")


def test_a_folder_of_others_and_wrong_seconds_are_mistakes(tmp_path: Path) -> None:
    (tmp_path / "monitor-demo").mkdir()
    (tmp_path / "monitor-demo" / "thesis.txt").write_text("mine")
    process = demo(tmp_path, "--seconds", "2")
    printed, errors = process.communicate(timeout=60)

    assert process.returncode == 2
    assert printed == ""
    assert "--seconds: expected 5 to 600, found 2" in errors
    assert "--folder: monitor-demo holds other things" in errors
    assert [entry.name for entry in (tmp_path / "monitor-demo").iterdir()] == ["thesis.txt"]


def test_an_answer_that_cannot_be_written_is_a_mistake_before_anything_begins(tmp_path: Path) -> None:
    process = demo(tmp_path, "--json", "nowhere/answer.json")
    printed, errors = process.communicate(timeout=60)

    assert (process.returncode, printed) == (2, "")
    assert errors == f"--json: nowhere/answer.json: {os.strerror(errno.ENOENT)}\n"
    assert children(tmp_path) == []


def test_without_its_broker_it_says_what_to_install(tmp_path: Path) -> None:
    hide = "import sys; sys.modules['iotcore'] = None; from monitor.__main__ import main; sys.exit(main(['demo']))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", hide], check=False, capture_output=True, text=True, timeout=60, cwd=tmp_path, env=environment()
    )

    assert done.returncode == 2
    assert done.stderr == "the demo's MQTT broker is not installed: pip install 'plant-monitor[demo]'\n"
    assert list(tmp_path.iterdir()) == []
