"""Images and scans through Kafka to AST: what is strange ends as an alert that says where, what cannot be scored as a dead letter."""

import base64
import io
import json
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from brokers import Broker
from integration.daemon import Daemon, monitor, wait_until, write_configuration
from integration.plant import Plant, original
from monitor.simulation.parts import part
from scans import Scan, npz, scan, write_scans

SIDE = 96
"""Of all images and scans, in pixels; the networks compare on a grid of 8 x 8."""

SMALL = {"backbone": "efficientnet_lite2", "blocks": [2, 6], "resolution": 64, "stride": 8, "teacher_width": 16, "student_width": 32}
SMALL |= {"teacher_epochs": 3, "student_epochs": 6, "score": "max"}

Pixels = NDArray[np.uint8]
Window = tuple[slice, slice]
"""Rows and columns of a planted defect."""


def good_part(number: int) -> Pixels:
    return part(np.random.default_rng(number), side=SIDE).image


def stained_part(number: int, where: Window) -> Pixels:
    image = good_part(number)
    image[where] = (250, 0, 250)
    return image


def block(number: int) -> Scan:
    return scan("good", side=SIDE, seed=(7, number))


def bumpy_block(number: int, where: Window) -> Scan:
    """Its image is a good one: only the depth tells of the 2 cm more on top of the block."""
    one = block(number)
    depth = one.xyz[where][..., 2]
    depth[depth > 0] -= 0.02
    return one


def encoded(suffix: str, image: Pixels) -> bytes:
    done, file = cv2.imencode(suffix, np.ascontiguousarray(image[..., ::-1]))
    assert done
    return file.tobytes()


def message(one: Scan, **instead: NDArray[np.generic]) -> bytes:
    return npz(**{"image": one.image, "xyz": one.xyz} | instead)


def lying(payload: bytes) -> bytes:
    """An NPZ whose image says that it is twice as high as what lies behind its header."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(payload)) as honest, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as liar:
        for name in honest.namelist():
            told, lie = f"({SIDE}, {SIDE}, 3), }}".encode(), f"({2 * SIDE}, {SIDE}, 3), }}".encode()
            content = honest.read(name)
            if name == "image.npy":
                assert content.count(told + b"  ") == 1
                content = content.replace(told + b" " * (len(lie) - len(told)), lie)
            liar.writestr(name, content)
    return out.getvalue()


DEFECTS: dict[str, Window] = {
    "0.png": np.s_[24:40, 24:40],
    "1.jpg": np.s_[52:68, 52:68],
    "2.npz": np.s_[30:54, 26:50],
    "3.npz": np.s_[42:66, 48:72],
}
"""File that is published -> where its defect was planted."""

REASONS = {"unmeasured.npz": "empty", "lying.npz": "undecodable", "flat.png": "unsupported"}
"""File that cannot be scored -> the reason in the dead letter."""


def images() -> dict[str, bytes]:
    """Two with a defect, two good ones."""
    return {
        "0.png": encoded(".png", stained_part(100, DEFECTS["0.png"])),
        "1.jpg": encoded(".jpg", stained_part(101, DEFECTS["1.jpg"])),
        "4.png": encoded(".png", good_part(102)),
        "5.jpg": encoded(".jpg", good_part(103)),
    }


def scans() -> dict[str, bytes]:
    """Two with a defect, two good ones, and what cannot be scored."""
    return {
        "2.npz": message(bumpy_block(100, DEFECTS["2.npz"])),
        "3.npz": message(bumpy_block(101, DEFECTS["3.npz"])),
        "6.npz": message(block(102)),
        "7.npz": message(block(103)),
        "unmeasured.npz": message(block(104), xyz=np.zeros((SIDE, SIDE, 3), np.float32)),
        "lying.npz": lying(message(block(105))),
        "flat.png": encoded(".png", block(106).image),
    }


def write(folder: Path, files: Iterable[tuple[str, bytes]]) -> Path:
    folder.mkdir()
    for name, payload in files:
        (folder / name).write_bytes(payload)
    return folder


@pytest.fixture
def plant(apache_kafka: Broker) -> Iterable[Plant]:
    """With one topic of images and one of scans."""
    plant = Plant(apache_kafka, sources=("cameras", "scanners"))
    yield plant
    plant.close()


def trained(plant: Plant, home: Path) -> Path:
    """monitor.toml with the detectors `part`, of images, and `block`, of scans, and a model of each by the command."""
    tables = plant.tables()
    del tables["detectors.bottle"]
    one = {"kind": "ast", "max_batch_size": 4, "max_wait": 0.02}
    tables["detectors.part"] = {**one, "inputs": ["cameras"], "options": {**SMALL, "mode": "rgb"}}
    tables["detectors.block"] = {**one, "inputs": ["scanners"], "options": {**SMALL, "mode": "rgb+depth"}}
    configuration = write_configuration(home / "monitor.toml", tables)
    parts = write(home / "parts", ((f"{number:03}.png", encoded(".png", good_part(number))) for number in range(24)))
    monitor("train", "part", "--data", str(parts), "--layout", "folder", "--config", str(configuration), timeout=300)
    write_scans(home / "scans", train=24, validation=0, test_per_defect=0, side=SIDE)
    known = ("--data", str(home / "scans"), "--layout", "mvtec3d", "--category", "block")
    monitor("train", "block", *known, "--config", str(configuration), timeout=300)
    return configuration


@pytest.mark.timeout(1200)
def test_published_images_and_scans_end_as_alerts_with_a_map_or_as_dead_letters(plant: Plant, tmp_path: Path) -> None:
    configuration = trained(plant, tmp_path)
    published = images() | scans()
    files: dict[str, str] = {}  # sample id -> name
    for source, content in (("cameras", images()), ("scanners", scans())):
        folder, sent = write(tmp_path / source, content.items()), tmp_path / f"{source}.json"
        command = ("publish", str(folder), "--to", source, "--stream", f"{source}/7", "--json", str(sent), "--config", str(configuration))
        monitor(*command, timeout=300)
        files |= {f"{source}/{one['topic']}/{one['position']}": Path(one["file"]).name for one in json.loads(sent.read_text())}
    assert set(files.values()) == published.keys()

    def left() -> set[str]:
        return files.keys() - plant.scored(detector="part").keys() - plant.scored(detector="block").keys() - plant.dead_letters().keys()

    with Daemon(configuration) as daemon:
        daemon.start()
        wait_until(lambda: not left(), seconds=300, what=lambda: f"{sorted(left())}\n{daemon.tail()}")
        daemon.drain()
    assert [plant.unsettled(source) for source in plant.images] == [0, 0]

    def of(kind: str) -> dict[str, dict[str, Any]]:
        return {files["{source}/{topic}/{position}".format(**event["data"]["sample"])]: event["data"] for event in plant.read(kind)}

    scores, alerts = of("score"), of("alert")
    assert scores.keys() == set(files.values()) - REASONS.keys()
    for name, where in DEFECTS.items():
        normal = [told["score"] for other, told in scores.items() if other not in DEFECTS and told["detector"] == alerts[name]["detector"]]
        assert alerts[name]["score"] > 3 * max(*normal, alerts[name]["threshold"])
        assert_shown(alerts[name], where)
    letters = {files[sample_id]: records for sample_id, records in plant.dead_letters().items()}
    assert {name: dict(one.headers)["monitor-reason"].decode() for name, (one,) in letters.items()} == REASONS
    assert all(original(one) == published[name] for name, (one,) in letters.items())


def assert_shown(alert: dict[str, Any], where: Window) -> None:
    """The map has the size that was sent; its peak lies on the planted defect, and the strongest region around that."""
    drawn = alert["map"]
    assert (drawn["width"], drawn["height"]) == (SIDE, SIDE)
    pixels = cv2.imdecode(np.frombuffer(base64.b64decode(drawn["base64"]), np.uint8), cv2.IMREAD_UNCHANGED)
    assert pixels.shape == (SIDE, SIDE)
    rows, columns = where
    row, column = np.unravel_index(pixels.argmax(), pixels.shape)
    assert rows.start <= row < rows.stop
    assert columns.start <= column < columns.stop
    strongest = alert["regions"][0]
    assert strongest["x"] <= column < strongest["x"] + strongest["width"]
    assert strongest["y"] <= row < strongest["y"] + strongest["height"]
    assert strongest["area"] < pixels.size / 2
