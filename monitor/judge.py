"""Scores and a threshold -> verdicts, regions, events. Small and without memory: one verdict per sample."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from monitor.calibration import Calibration
from monitor.events import AlertData, MapAxes, Origin, Region, ScoreData, SoundRegion
from monitor.types import Axes, Event, FloatArray, ModelVersion, Sample, Scores, Verdict, rfc_3339

MOST_REGIONS = 32  # the strongest; a map torn into hundreds of specks says nothing more
GAP, PITCH_GAP = 0.25, 1 / 32
"""Seconds, and share of a map's rows: parts of sound no further apart are one region; the knocks of a bearing are one fault, not a hundred."""


class Judge:
    """Speaks for one version of one detector, by the threshold of that version."""

    def __init__(self, *, site: str, version: ModelVersion, false_alarm_probability: float) -> None:
        calibration = Calibration.from_manifest(version.manifest)
        self._source = f"/{site}/{version.name}"
        self._version = version
        self._kind = str(version.manifest["kind"])
        self._calibration = calibration
        self.threshold = calibration.threshold(false_alarm_probability)
        self._map_threshold = calibration.map_threshold(false_alarm_probability)

    def verdicts(self, samples: Sequence[Sample], scores: Scores, scored: float) -> list[Verdict]:
        """One per sample, in order; `scored` is epoch seconds. Only the maps of anomalous samples are drawn."""
        threshold = self.threshold.value
        return [
            Verdict(
                sample=sample,
                detector=self._version.name,
                version=self._version,
                score=float(score),
                threshold=threshold,
                scored=scored,
                map=scores.maps[index] if scores.maps is not None and score > threshold else None,
                axes=scores.axes[index] if scores.axes is not None and score > threshold else None,
            )
            for index, (sample, score) in enumerate(zip(samples, scores.values, strict=True))
        ]

    def alert(self, verdict: Verdict) -> Event:
        """The alert of an anomalous verdict, with its regions and its map."""
        found: tuple[Region, ...] | tuple[SoundRegion, ...] = ()
        if verdict.map is not None and verdict.axes is not None:
            found = sound_regions(verdict.map, self._map_threshold, verdict.axes, _began(verdict))
        elif verdict.map is not None:
            found = regions(verdict.map, self._map_threshold)
        data = AlertData(**self._facts(verdict).__dict__, regions=found).model_dump(mode="json", exclude_none=True)
        return self._event("monitor.alert.v1", verdict, data)

    def score(self, verdict: Verdict) -> Event:
        """The score event of any verdict."""
        return self._event("monitor.score.v1", verdict, self._facts(verdict).model_dump(mode="json", exclude_none=True))

    def _facts(self, verdict: Verdict) -> ScoreData:
        sample = verdict.sample
        return ScoreData(
            stream=sample.stream,
            detector=verdict.detector,
            kind=self._kind,
            model_version=verdict.version.id,
            sample=_origin(sample),
            modality=sample.modality,
            captured=rfc_3339(sample.captured),
            scored=rfc_3339(verdict.scored),
            score=verdict.score,
            threshold=verdict.threshold,
            p_value=self._calibration.p_value(verdict.score),
            supported=self.threshold.words,
        )

    def _event(self, kind: str, verdict: Verdict, data: dict[str, object]) -> Event:
        """An alert has its map."""
        sample, drawn = verdict.sample, kind == "monitor.alert.v1"
        return Event(
            id=f"{verdict.detector}:{sample.id}",
            type=kind,  # type: ignore[arg-type]
            source=self._source,
            key=sample.stream,
            time=sample.captured,
            data=data,
            map=verdict.map if drawn else None,
            axes=_axes(verdict.axes, _began(verdict)) if drawn and verdict.axes is not None else None,
        )


def _origin(sample: Sample) -> Origin:
    place = Origin(source=sample.source, topic=sample.topic, position=sample.position)
    piece = sample.segment
    if piece is None:
        return place
    return place.model_copy(
        update={"recording": piece.recording, "segment": piece.index, "start": piece.start, "end": piece.end, "partial": piece.partial}
    )


def regions(score_map: FloatArray, threshold: float | None) -> tuple[Region, ...]:
    """The connected parts (8 neighbours) of a (H, W) map above the threshold, strongest first, at most MOST_REGIONS.

    When nothing is above it, one region around the peak: the part above half way from the map's mean to its peak.
    """
    return tuple(
        Region(x=part.left, y=part.top, width=part.width, height=part.height, area=part.area, peak=part.peak)
        for part in _parts(score_map, threshold, (0, 0))
    )


def sound_regions(score_map: FloatArray, threshold: float | None, axes: Axes, began: float = 0.0) -> tuple[SoundRegion, ...]:
    """As `regions`, of a map of sound that begins `began` seconds after its recording; parts up to GAP and PITCH_GAP apart are one."""
    column = float(axes.seconds[-1] - axes.seconds[0]) / score_map.shape[1]
    return tuple(
        SoundRegion(
            start=_milliseconds(began + float(axes.seconds[part.left])),
            end=_milliseconds(began + float(axes.seconds[part.left + part.width])),
            low_hz=_decihertz(axes.hertz[part.top + part.height]),
            high_hz=_decihertz(axes.hertz[part.top]),
            peak=part.peak,
        )
        for part in _parts(score_map, threshold, (round(score_map.shape[0] * PITCH_GAP / 2), round(GAP / column / 2)))
    )


class _Part(NamedTuple):
    """In rows and columns of the map; area: of its values above the threshold."""

    left: int
    top: int
    width: int
    height: int
    area: int
    peak: float


def _parts(score_map: FloatArray, threshold: float | None, reach: tuple[int, int]) -> list[_Part]:
    """Two parts with up to twice `reach` (rows, columns) between them are one."""
    peak = float(score_map.max())
    if threshold is None or peak <= threshold:
        half = (float(score_map.mean()) + peak) / 2
        mask, most = score_map >= min(half, peak), 1
    else:
        mask, most = score_map > threshold, MOST_REGIONS
    reached = cv2.dilate(mask.astype(np.uint8), np.ones((2 * reach[0] + 1, 2 * reach[1] + 1), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(reached, connectivity=8)
    peaks = np.full(count, -np.inf, dtype=np.float32)
    np.maximum.at(peaks, np.asarray(labels[mask], dtype=np.intp), score_map[mask])
    strongest = sorted(range(1, count), key=lambda label: -peaks[label])[:most]
    parts = []
    for label in strongest:
        x, y, width, height = (int(stats[label, name]) for name in (cv2.CC_STAT_LEFT, cv2.CC_STAT_TOP, cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT))
        box = np.s_[y : y + height, x : x + width]
        own = mask[box] & (labels[box] == label)  # without what it reached over
        rows, columns = np.flatnonzero(own.any(axis=1)), np.flatnonzero(own.any(axis=0))
        (top, bottom), (left, right) = rows[[0, -1]], columns[[0, -1]]
        parts.append(_Part(x + int(left), y + int(top), int(right - left) + 1, int(bottom - top) + 1, int(own.sum()), float(peaks[label])))
    return parts


def _began(verdict: Verdict) -> float:
    """Seconds of its recording before the sample."""
    return 0.0 if verdict.sample.segment is None else verdict.sample.segment.start


def _axes(axes: Axes, began: float) -> dict[str, object]:
    start, end = (_milliseconds(began + float(axes.seconds[edge])) for edge in (0, -1))
    return MapAxes(start=start, end=end, hertz=tuple(map(_decihertz, axes.hertz))).model_dump(mode="json")


def _milliseconds(seconds: float) -> float:
    """Finer than any map."""
    return round(seconds, 3)


def _decihertz(hertz: np.float32) -> float:
    return round(float(hertz), 1)
