"""An evaluation from scores to report.html, on a data set whose defects are painted."""

import csv
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from evaluated import evaluated, quiet
from fake_detector import FakeOptions
from monitor.evaluation.drawing import UNMEASURED, Scale, jpeg, overlay, pictures
from monitor.evaluation.evaluate import Evaluation
from monitor.evaluation.report import write_report
from monitor.types import Sample


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 normal samples to train on; 4 normal, 3 with a bright square, 2 with a faint one."""
    root = tmp_path_factory.mktemp("data") / "<cup>"
    generator = np.random.default_rng(5)

    def paint(path: Path, strength: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        image = generator.integers(90, 110, (64, 80, 3)).astype(np.uint8)
        if strength:
            mask = np.zeros((64, 80), np.uint8)
            mask[20:34, 30:50] = 255
            image[mask > 0] += np.uint8(strength)
            drawn = root / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
            drawn.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(drawn), mask)
        cv2.imwrite(str(path), image)

    for folder, count, strength in (("train/good", 12, 0), ("test/good", 4, 0), ("test/bright", 3, 120), ("test/faint", 2, 1)):
        for n in range(count):
            paint(root / folder / f"{n:03}.png", strength)
    return root.parent


@pytest.fixture(scope="module")
def evaluation(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    return evaluated("fake", FakeOptions(), data, "mvtec", "<cup>", folder=tmp_path_factory.mktemp("work"), false_alarm_probability=0.1)


def test_the_figures_are_those_of_the_contract(evaluation: Evaluation) -> None:
    figures = evaluation.figures()
    expected = "detector kind model_version seed n_normal n_anomalous image_auroc image_ap pixel_auroc pixel_ap aupro threshold recall"
    assert set(expected.split()) | {"false_alarm_rate", "train_seconds", "samples_per_second", "device"} <= figures.keys()
    assert (figures["n_normal"], figures["n_anomalous"]) == (4, 5)
    assert figures["recall"] >= 3 / 5
    assert figures["supported"] == "supported 1/4, asked 0.1, 6 more normals needed"
    assert set(figures["scores"]) == {"mean", "largest"}
    assert figures["scores"]["mean"]["image_auroc"] == figures["image_auroc"]
    assert 0.5 < figures["pixel_auroc"] <= 1
    json.dumps(figures, allow_nan=False)


def test_the_report_is_whole_and_needs_no_other_file(evaluation: Evaluation, tmp_path: Path) -> None:
    facts = {**evaluation.figures(), "layout": "mvtec", "category": "<cup>"}
    page = write_report(evaluation, facts, tmp_path / "report", quiet).read_text()
    assert "$" not in re.sub(r"data:image/[a-z]+;base64,[A-Za-z0-9+/=]+", "", page)
    assert "<cup>" not in page
    assert "cup on &lt;cup&gt;" in page
    links = re.findall(r'(?:src|href)="([^"]{0,40})', page)
    assert len(links) == 3 + 2 * 9
    assert all(link.startswith("data:image/") for link in links)
    assert "6 more normals needed" in page
    with (tmp_path / "report" / "scores.csv").open() as opened:
        rows = list(csv.DictReader(opened))
    assert len(rows) == 9
    assert [np.float32(row["score"]) for row in rows] == evaluation.scores.tolist()
    assert sum(int(row["alerted"]) for row in rows) == int(evaluation.alerted.sum())
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        "scores.csv",
        "roc.png",
        "pr.png",
        "histograms.png",
        "maps",
        "overlays",
        "report.html",
    }
    heat = cv2.imread(str(tmp_path / "report" / "maps" / "bright" / "000.png"), cv2.IMREAD_UNCHANGED)
    assert heat is not None
    assert heat.shape == (64, 80)
    assert heat.dtype == np.uint16
    assert heat[22:32, 32:48].min() > 32768  # the defect is above the map threshold, which is half of the scale
    assert heat[:, :20].max() < 32768
    assert len(list((tmp_path / "report" / "overlays").rglob("*.jpg"))) == 9


def test_the_scale_is_the_models_and_not_the_images() -> None:
    scale = Scale(0.2)
    faint = np.array([[0.0, 0.02]], np.float32)
    assert scale.heat(faint).max() == pytest.approx(0.05)
    assert scale.heat(np.array([[0.2, 0.4, 9.0]], np.float32)).tolist() == [[pytest.approx(0.5), 1.0, 1.0]]
    assert (Scale(-3.0).black, Scale(-3.0).white) == (-6.0, 0.0)
    assert Scale(0.0).white > Scale(0.0).black


def test_pictures_of_grey_and_16_bit_and_overlays() -> None:
    grey = Sample(source="s", topic="t", position="1", stream="x", captured=0, received=0, image=np.full((6, 9, 1), 65535, np.uint16))
    [pixels] = pictures(grey)
    assert pixels.shape == (6, 9, 3)
    assert pixels.dtype == np.uint8
    assert pixels.min() == 255
    mask = np.zeros((6, 9), np.bool_)
    assert np.array_equal(overlay(pixels, np.zeros((6, 9), np.float32), mask), pixels)  # what is not hot stays as it was
    mask[2:4, 2:4] = True
    assert not np.array_equal(overlay(pixels, np.zeros((6, 9), np.float32), mask), pixels)
    assert pictures(Sample(source="s", topic="t", position="1", stream="x", captured=0, received=0, waveform=np.ones((1, 9), np.float32))) == []
    small = cv2.imdecode(np.frombuffer(jpeg(np.zeros((300, 600, 3), np.uint8), side=100), np.uint8), cv2.IMREAD_COLOR)
    assert small is not None
    assert small.shape == (50, 100, 3)


def test_depth_is_drawn_beside_its_image_or_alone() -> None:
    depth = np.linspace(0.6, 0.4, 20 * 30, dtype=np.float32).reshape(20, 30)
    depth[0, 0], depth[5, 5], depth[19, 29] = np.nan, 0, 0.001  # the last, a spike, must not turn all others black
    image = np.zeros((20, 30, 3), np.uint8)
    common = {"source": "s", "topic": "t", "position": "1", "stream": "x", "captured": 0, "received": 0}
    [alone] = pictures(Sample(**common, depth=depth))
    both = pictures(Sample(**common, image=image, depth=depth))
    assert np.array_equal(both[0], image)
    assert np.array_equal(both[1], alone)
    assert alone.shape == (20, 30, 3)
    assert tuple(alone[0, 0]) == tuple(alone[5, 5]) == UNMEASURED
    grey = alone[depth > 0.01]
    assert (grey == grey[:, :1]).all()
    assert (np.diff(grey[:, 0].astype(int)) >= 0).all()  # nearer is brighter
    assert (grey[0, 0], grey[-1, 0]) == (0, 255)
    for flat in (np.full((4, 5), 0.5, np.float32), np.zeros((4, 5), np.float32), np.full((4, 5), np.nan, np.float32)):
        [drawn] = pictures(Sample(**common, depth=flat))
        assert len(np.unique(drawn.reshape(-1, 3), axis=0)) == 1
