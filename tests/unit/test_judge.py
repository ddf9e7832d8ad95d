"""Verdicts, regions and alerts."""

import json
from pathlib import Path

import numpy as np
import pytest

from connectors.cloudevents import structured
from monitor.calibration import Calibration
from monitor.commands.listen import line_of
from monitor.errors import MonitorError
from monitor.events import AlertData, ScoreData
from monitor.judge import MOST_REGIONS, Judge, regions, sound_regions
from monitor.reference import check_map, checked
from monitor.types import Axes, ModelVersion, Sample, Scores, Segment


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


AXES = Axes(seconds=np.arange(0, 5.1, 0.1, dtype=np.float32), hertz=np.array([8000, 4000, 2000, 1000, 0], np.float32))


def clip(segment: Segment | None = None) -> Sample:
    """5 s, as AXES."""
    waveform = np.zeros((1, 500), np.float32)
    common = {"source": "microphones", "topic": "hall", "position": "7", "stream": "hall/3", "captured": 1.5, "received": 2.0}
    return Sample(**common, waveform=waveform, rate=100, segment=segment)


def sound_alert(score_map: np.ndarray, segment: Segment | None = None):
    scores = Scores(values=np.array([120], np.float32), maps=(score_map,), axes=(AXES,))
    (verdict,) = judge().verdicts([clip(segment)], scores, 3.0)
    return judge().alert(verdict)


def test_regions_of_sound_are_in_seconds_and_hertz():
    score_map = np.zeros((4, 50), np.float32)
    score_map[1, 10:13] = 20.0
    score_map[2, 12] = 50.0
    score_map[0, 40] = 30.0
    event = sound_alert(score_map)
    data = AlertData.model_validate(event.data)

    assert data.modality == "sound"
    assert event.data["regions"] == [
        {"start": 1.0, "end": 1.3, "low_hz": 1000.0, "high_hz": 4000.0, "peak": 50.0},
        {"start": 4.0, "end": 4.1, "low_hz": 4000.0, "high_hz": 8000.0, "peak": 30.0},
    ]
    assert event.map is score_map
    assert event.axes == {"start": 0.0, "end": 5.0, "hertz": [8000.0, 4000.0, 2000.0, 1000.0, 0.0]}


def test_listen_prints_where_in_time_and_pitch():
    score_map = np.zeros((4, 50), np.float32)
    score_map[1, 10:13] = 20.0
    score_map[3, 40] = 30.0
    line = line_of(json.loads(structured(sound_alert(score_map))))

    assert " alert hall/3 bottle:microphones/hall/7: score 120 " in line
    assert line.endswith(" where: 4.00-4.10 s at 0-1000 Hz; 1.00-1.30 s at 2000-4000 Hz")


def test_regions_of_a_segment_count_from_the_beginning_of_its_recording():
    score_map = np.zeros((4, 50), np.float32)
    score_map[3, 20:] = 20.0
    event = sound_alert(score_map, Segment(recording="shift 1", index=17280, start=86_400.0, end=86_405.0, partial=False))

    (region,) = event.data["regions"]
    assert (region["start"], region["end"]) == (86_402.0, 86_405.0)
    assert event.axes is not None
    assert (event.axes["start"], event.axes["end"]) == (86_400.0, 86_405.0)


def test_strokes_of_one_pitch_are_one_region_of_sound():
    score_map = np.zeros((4, 50), np.float32)
    score_map[0, [5, 8, 11]] = 20.0  # two columns, 0.2 s, between them
    score_map[0, [20, 24]] = 30.0  # three, 0.3 s
    found = sound_regions(score_map, 1.0, AXES)

    assert [(region.start, region.end) for region in found] == [(2.0, 2.1), (2.4, 2.5), (0.5, 1.2)]
    assert {(region.low_hz, region.high_hz) for region in found} == {(4000.0, 8000.0)}
    assert len(regions(score_map, 1.0)) == 5  # of an image they are five


def test_neighbouring_bands_are_one_region_of_sound():
    hertz = np.arange(128, -1, -1, dtype=np.float32)
    axes = Axes(seconds=AXES.seconds, hertz=hertz)
    score_map = np.zeros((128, 50), np.float32)
    score_map[[10, 15, 60, 66], 30] = 20.0  # four bands between the first two, five between the others
    found = sound_regions(score_map, 1.0, axes)

    assert sorted((region.low_hz, region.high_hz) for region in found) == [(61.0, 62.0), (67.0, 68.0), (112.0, 118.0)]


def test_nothing_above_gives_one_region_of_sound_round_the_peak():
    score_map = np.full((4, 50), 0.1, np.float32)
    score_map[2, 30:32] = 0.9

    (region,) = sound_regions(score_map, 5.0, AXES, began=10.0)
    assert (region.start, region.end, region.low_hz, region.high_hz) == (13.0, 13.2, 1000.0, 2000.0)


def test_normal_sound_has_no_axes_drawn():
    scores = Scores(values=np.array([1], np.float32), maps=(np.zeros((4, 50), np.float32),), axes=(AXES,))
    (verdict,) = judge().verdicts([clip()], scores, 3.0)

    assert (verdict.map, verdict.axes) == (None, None)
    assert judge().score(verdict).axes is None


def test_maps_and_axes_must_fit():
    values, one = np.ones(1, np.float32), np.zeros((4, 50), np.float32)
    checked(Scores(values=values, maps=(one,), axes=(AXES,)), [clip()])
    with pytest.raises(MonitorError, match="got no axes"):
        checked(Scores(values=values, maps=(one,)), [clip()])
    with pytest.raises(MonitorError, match="got 2 axes"):
        checked(Scores(values=values, maps=(one,), axes=(AXES, AXES)), [clip()])
    with pytest.raises(MonitorError, match=r"samples of image .* got 1 axes"):
        checked(Scores(values=values, maps=(one,), axes=(AXES,)), [sample()])
    check_map(clip(), one, AXES)
    with pytest.raises(MonitorError, match=r"of shape \(50, 4\), its axes have 5 and 51 edges"):
        check_map(clip(), one.T, AXES)
    with pytest.raises(MonitorError, match="not finite"):
        check_map(clip(), one * np.nan, AXES)
