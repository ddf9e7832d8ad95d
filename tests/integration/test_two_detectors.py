"""Two detectors of one Kafka source in one daemon: each judges every image once, and an image is settled when both have finished with it."""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from integration.daemon import Daemon, monitor, wait_until, write_configuration
from integration.plant import Plant

SIDE = 96
DETECTORS = ("plate_ast", "plate_rdna")
TRAINED = 60
"""Numbers from this one on are plates that are sent; those to train on vary more, so that the thresholds are far from what is sent."""

AST: dict[str, Any] = {"backbone": "efficientnet_lite2", "blocks": [2, 6], "resolution": 64, "stride": 8, "teacher_width": 16, "student_width": 32}
AST |= {"teacher_epochs": 3, "student_epochs": 6, "score": "max"}
RDNA: dict[str, Any] = {"width": 16, "resolution": 32, "score_window": 5, "epochs": 3, "batch_size": 8, "mixed_precision": False}

Pixels = NDArray[np.uint8]
Window = tuple[slice, slice]
"""Rows and columns of a planted stain."""

STAINS: dict[str, Window] = {
    "0.png": np.s_[24:40, 24:40],
    "1.png": np.s_[52:68, 52:68],
    "2.png": np.s_[24:40, 56:72],
    "3.png": np.s_[60:76, 30:46],
}
GOOD = ("4.png", "5.png", "6.png", "7.png")


def plate(number: int, stain: Window | None = None) -> bytes:
    """A PNG, another for every number: bare metal in light from somewhere, with a camera's grain, and perhaps a stain."""
    random = np.random.default_rng(number)
    varies = 1.0 if number < TRAINED else 0.3
    down, right = np.mgrid[:SIDE, :SIDE] / SIDE - 0.5
    light = 1 + varies * (random.uniform(-0.1, 0.1) + random.uniform(-0.15, 0.15) * down + random.uniform(-0.15, 0.15) * right)
    metal = light[..., None] * (115, 118, 122) + (1 + varies) * random.normal(size=(SIDE, SIDE, 3))
    image = np.clip(metal, 0, 255).astype(np.uint8)
    if stain is not None:
        image[stain] = (250, 0, 250)
    done, encoded = cv2.imencode(".png", image)
    assert done
    return encoded.tobytes()


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    folder.mkdir()
    for name, payload in files.items():
        (folder / name).write_bytes(payload)
    return folder


@pytest.mark.timeout(1800)
def test_every_image_gets_one_verdict_of_each_and_is_settled_after_the_second(plant: Plant, tmp_path: Path) -> None:
    pictures = {name: plate(TRAINED + int(name[0]), STAINS.get(name)) for name in (*STAINS, *GOOD)}
    tables = plant.tables(sources__cameras={"commit_interval": 0.1})
    del tables["detectors.bottle"]
    one = {"inputs": ["cameras"], "max_batch_size": len(pictures), "false_alarm_probability": 0.2}
    tables["detectors.plate_ast"] = {**one, "kind": "ast", "max_wait": 0.02, "options": AST}
    tables["detectors.plate_rdna"] = {**one, "kind": "rdna", "max_wait": 3600.0, "options": RDNA}  # its batch waits for the last picture
    configuration = write_configuration(tmp_path / "monitor.toml", tables)
    normals = write(tmp_path / "normals", {f"{number:03}.png": plate(number) for number in range(TRAINED)})
    for detector in DETECTORS:
        monitor("train", detector, "--data", str(normals), "--layout", "folder", "--config", str(configuration), timeout=600)
    sent: dict[str, str] = {}  # sample id -> name

    def publish(folder: str, names: Sequence[str]) -> None:
        files, told = write(tmp_path / folder, {name: pictures[name] for name in names}), tmp_path / f"{folder}.json"
        monitor("publish", str(files), "--to", "cameras", "--stream", "press/7", "--json", str(told), "--config", str(configuration), timeout=300)
        sent.update({f"cameras/{one['topic']}/{one['position']}": Path(one["file"]).name for one in json.loads(told.read_text())})

    def wait(detector: str) -> None:
        wait_until(lambda: plant.scored(detector=detector).keys() == sent.keys(), seconds=300, what=daemon.tail)

    *but_one, last = pictures
    with Daemon(configuration) as daemon:
        daemon.start()
        publish("some", but_one)
        wait("plate_ast")
        assert plant.unsettled() == len(but_one)
        assert not plant.scored(detector="plate_rdna")
        publish("last", [last])
        for detector in DETECTORS:
            wait(detector)
        daemon.drain()

    assert sorted(sent.values()) == sorted(pictures)
    assert plant.unsettled() == 0
    assert not plant.dead_letters()
    stained = {sample_id for sample_id, name in sent.items() if name in STAINS}
    told = plant.read("score")
    for detector in DETECTORS:
        assert plant.scored("score", detector) == dict.fromkeys(sent, 1)
        score = {event["id"].partition(":")[2]: event["data"]["score"] for event in told if event["data"]["detector"] == detector}
        [threshold] = {event["data"]["threshold"] for event in told if event["data"]["detector"] == detector}
        alerted = {sample_id for sample_id, value in score.items() if value > threshold}
        assert plant.scored("alert", detector) == dict.fromkeys(alerted, 1)
        assert alerted >= stained
        assert min(score[sample_id] for sample_id in stained) > 1.3 * max(score[sample_id] for sample_id in sent.keys() - stained)
    for alert in plant.read("alert"):
        detector, _, sample_id = alert["id"].partition(":")
        data = alert["data"]
        assert (data["detector"], f"plate_{data['kind']}", alert["source"]) == (detector, detector, f"/test/{detector}")
        if sample_id in stained:
            assert_shown(data, STAINS[sent[sample_id]])


def assert_shown(alert: Mapping[str, Any], stain: Window) -> None:
    """The map has the size that was sent, and is brighter on the stain than elsewhere; the strongest region overlaps that."""
    drawn = alert["map"]
    pixels = cv2.imdecode(np.frombuffer(base64.b64decode(drawn["base64"]), np.uint8), cv2.IMREAD_UNCHANGED)
    assert pixels.shape == (drawn["height"], drawn["width"]) == (SIDE, SIDE)
    elsewhere = np.ones((SIDE, SIDE), bool)
    elsewhere[stain] = False
    assert pixels[stain].mean() > 2 * pixels[elsewhere].mean()
    rows, columns = stain
    strongest = alert["regions"][0]
    assert strongest["x"] < columns.stop
    assert strongest["y"] < rows.stop
    assert strongest["x"] + strongest["width"] > columns.start
    assert strongest["y"] + strongest["height"] > rows.start
    assert strongest["area"] < pixels.size / 2
