"""Clips through MQTT to AEGAN-AD, whole and in chunks: the same score, region and map of either; what cannot be scored as a dead letter."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from integration.daemon import Daemon, monitor, wait_until, write_configuration
from integration.plant import Plant, original
from monitor.types import FloatArray
from mosquitto import Mosquitto
from recordings import wav

RATE, LENGTH = 2000, 70_000
"""35 s: 137 frames, so that two windows of 128 lie in a clip."""
TONE, BEGIN, END = 700.0, 12.0, 20.0
"""The planted fault: hertz, seconds."""

SENT = 1000
"""Numbers from this one on are hums that are sent; those to train on vary more, so that the threshold is far from what is sent."""

SMALL = {"preset": "paper", "width": 4, "epochs": 8, "batch_size": 6, "stride": 128, "scoring_stride": 16, "score": "R_maha"}


def hum(number: int, *, tone: bool = False, rate: int = RATE) -> FloatArray:
    """(1, LENGTH), another for every number: harmonics of 50 Hz, and noise."""
    random = np.random.default_rng(number)
    varies = 1.0 if number < SENT else 0.2
    seconds = np.arange(LENGTH) / rate
    tones = sum(np.sin(2 * np.pi * (50 * times * seconds + random.uniform())) / times for times in (1, 2, 3, 5, 8))
    heard = 0.05 * (1 + varies * random.uniform(-0.3, 0.3)) * tones + 0.005 * (1 + varies * random.uniform(-0.5, 0.5)) * random.normal(size=LENGTH)
    if tone:
        heard += 0.1 * np.sin(2 * np.pi * TONE * seconds) * ((seconds >= BEGIN) & (seconds < END))
    return np.asarray(heard[None], np.float32)


@pytest.fixture
def plant(mosquitto: Mosquitto) -> Iterator[Plant]:
    """With one topic of sound."""
    plant = Plant(mosquitto, sources=("microphones",))
    yield plant
    plant.close()


def trained(plant: Plant, home: Path) -> Path:
    """monitor.toml with the detector `fan`, and a model of it by the command."""
    tables = plant.tables()
    del tables["detectors.bottle"]
    tables["detectors.fan"] = {"kind": "aegan_ad", "inputs": ["microphones"], "max_batch_size": 1, "options": SMALL}
    configuration = write_configuration(home / "monitor.toml", tables)
    clips = home / "clips"
    clips.mkdir()
    for number in range(30):
        (clips / f"{number:03}.wav").write_bytes(wav(hum(number), RATE))
    monitor("train", "fan", "--data", str(clips), "--layout", "folder", "--config", str(configuration), timeout=300)
    return configuration


@pytest.mark.timeout(600)
def test_clips_whole_and_in_chunks_end_as_the_same_alerts_with_a_region_and_a_map_or_as_dead_letters(plant: Plant, tmp_path: Path) -> None:
    configuration = trained(plant, tmp_path)
    folder = tmp_path / "sent"
    folder.mkdir()
    for name, waveform in (("good", hum(SENT + 1)), ("strange", hum(SENT + 1, tone=True))):
        (folder / f"{name}.wav").write_bytes(wav(waveform, RATE))

    def publish(path: Path, *more: str) -> list[dict[str, Any]]:
        sent = tmp_path / "sent.json"
        command = ("publish", str(path), "--to", "microphones", "--stream", "fan7", "--json", str(sent), *more)
        monitor(*command, "--config", str(configuration), timeout=300)
        told: list[dict[str, Any]] = json.loads(sent.read_text())
        return told

    whole = {f"fan:microphones/{one['topic']}/{one['position']}": Path(one["file"]).stem for one in publish(folder)}
    pieces = publish(folder, "--chunk", "1.7")
    chunked = {f"fan:microphones/fan7/{one['recording']}/0": Path(one["file"]).stem for one in pieces}
    lower = tmp_path / "lower.wav"
    lower.write_bytes(wav(hum(SENT + 2, rate=RATE // 2), RATE // 2))
    publish(lower)
    files = whole | chunked
    assert (len(pieces), len(files)) == (2 * 21, 4)

    with Daemon(configuration) as daemon:
        daemon.start()
        wait_until(lambda: len(plant.read("score")) == len(files) and plant.dead_letters(), seconds=180, what=daemon.tail)
        daemon.drain()
    assert plant.unsettled("microphones") == 0
    [[letter]] = plant.dead_letters().values()
    assert dict(letter.headers)["monitor-reason"] == b"unsupported"
    assert original(letter) == lower.read_bytes()

    scores = {event["id"]: event["data"] for event in plant.read("score")}
    alerts = {event["id"]: event["data"] for event in plant.read("alert")}
    assert scores.keys() == files.keys()
    assert alerts.keys() == {name for name, file in files.items() if file == "strange"}
    for file in ("good", "strange"):
        assert len({scores[name]["score"] for name in files if files[name] == file}) == 1
    one, other = (next(alerts[name] for name in kind if name in alerts) for kind in (whole, chunked))
    assert (one["regions"], one["map"]) == (other["regions"], other["map"])
    piece = other["sample"]
    assert (piece["segment"], piece["start"], piece["end"], piece["partial"]) == (0, 0.0, LENGTH / RATE, False)
    assert_shown(one)


def assert_shown(alert: dict[str, Any]) -> None:
    """The map's peak lies on the planted tone, and so does the strongest region."""
    drawn = alert["map"]
    pixels = cv2.imdecode(np.frombuffer(base64.b64decode(drawn["base64"]), np.uint8), cv2.IMREAD_UNCHANGED)
    assert pixels.shape == (drawn["height"], drawn["width"])
    axes = drawn["axes"]
    assert (axes["start"], axes["end"]) == (0.0, LENGTH / RATE)
    assert len(axes["hertz"]) == len(pixels) + 1
    assert axes["hertz"] == sorted(axes["hertz"], reverse=True)
    row, column = np.unravel_index(pixels.argmax(), pixels.shape)
    frame = (axes["end"] - axes["start"]) / pixels.shape[1]
    assert axes["hertz"][row + 1] - 50 <= TONE <= axes["hertz"][row] + 50
    assert BEGIN - 2 <= column * frame <= END + 2
    strongest = alert["regions"][0]
    assert strongest["low_hz"] <= TONE <= strongest["high_hz"]
    assert strongest["start"] < END
    assert strongest["end"] > BEGIN
