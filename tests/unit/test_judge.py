"""Verdicts, regions and alerts."""

from pathlib import Path

import numpy as np
import pytest

from monitor.calibration import Calibration
from monitor.events import AlertData, ScoreData
from monitor.judge import MOST_REGIONS, Judge, regions
from monitor.types import ModelVersion, Sample, Scores


def sample(position: str = "0-1") -> Sample:
    return Sample(
        source="cameras",
        topic="press",
        position=position,
        stream="press/7",
        captured=1.5,
        received=2.0,
        image=np.zeros((40, 60, 1), np.uint8),
    )


def judge(n: int = 99) -> Judge:
    scores = np.arange(1, n + 1, dtype=np.float32)
    calibration = Calibration.of(scores, scores / 10)
    manifest = {"kind": "fake", "calibration": calibration.to_manifest()}
    version = ModelVersion(name="bottle", id="20261122T000000Z-01234567", folder=Path(), manifest=manifest)
    return Judge(site="plant", version=version, false_alarm_probability=0.01)


def verdict(score: float, score_map: np.ndarray | None = None, **more):
    maps = None if score_map is None else (score_map,)
    return judge(**more).verdicts([sample()], Scores(values=np.array([score], np.float32), maps=maps), 3.0)[0]


def test_anomalous_is_above_the_threshold_not_at_it():
    assert not verdict(99.0).anomalous
    assert verdict(np.nextafter(np.float32(99.0), np.float32(100))).anomalous


def test_an_alert_says_who_what_when_and_how_strange():
    score_map = np.zeros((40, 60), np.float32)
    score_map[10:14, 20:26] = 50.0
    event = judge().alert(verdict(120.0, score_map))
    data = AlertData.model_validate(event.data)

    assert event.id == "bottle:cameras/press/0-1"
    assert (event.source, event.key, event.time, event.type) == ("/plant/bottle", "press/7", 1.5, "monitor.alert.v1")
    assert (data.captured, data.scored) == ("1970-01-01T00:00:01.500000Z", "1970-01-01T00:00:03.000000Z")
    assert data.p_value == pytest.approx(1 / 100)
    assert data.supported is None
    (region,) = data.regions
    assert (region.x, region.y, region.width, region.height, region.area, region.peak) == (20, 10, 6, 4, 24, 50.0)
    assert event.map is score_map


def test_too_small_a_calibration_is_said_in_every_event():
    event = judge(n=30).score(verdict(5.0, n=30))

    assert ScoreData.model_validate(event.data).supported == "supported 1/31, asked 0.01, 69 more normals needed"


def test_regions_are_sorted_by_peak_and_touch_by_corners():
    score_map = np.zeros((20, 20), np.float32)
    score_map[2, 2] = score_map[3, 3] = 5
    score_map[10, 10] = 9

    assert [(region.x, region.y, region.area, region.peak) for region in regions(score_map, 1.0)] == [(10, 10, 1, 9.0), (2, 2, 2, 5.0)]


def test_nothing_above_gives_one_region_round_the_peak():
    y, x = np.mgrid[:40, :60]
    score_map = np.exp(-((x - 30) ** 2 + (y - 20) ** 2) / 50).astype(np.float32)
    (region,) = regions(score_map, 2.0)

    assert region.x <= 30 < region.x + region.width
    assert region.y <= 20 < region.y + region.height
    assert region.area < 200


def test_a_flat_map_has_one_region():
    assert len(regions(np.zeros((4, 5), np.float32), 0.0)) == 1


def test_specks_are_capped_at_the_strongest():
    score_map = np.zeros((40, 40), np.float32)
    score_map[::2, ::2] = np.arange(400, dtype=np.float32).reshape(20, 20) + 1
    found = regions(score_map, 0.5)

    assert len(found) == MOST_REGIONS
    assert found[0].peak == 400
