"""Scores and a threshold -> verdicts, regions, events. Small and without memory: one verdict per sample."""

from collections.abc import Sequence

import cv2
import numpy as np

from monitor.calibration import Calibration
from monitor.events import AlertData, Origin, Region, ScoreData
from monitor.types import Event, FloatArray, ModelVersion, Sample, Scores, Verdict, rfc_3339

MOST_REGIONS = 32  # the strongest; a map torn into hundreds of specks says nothing more


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
            )
            for index, (sample, score) in enumerate(zip(samples, scores.values, strict=True))
        ]

    def alert(self, verdict: Verdict) -> Event:
        """The alert of an anomalous verdict, with its regions and its map."""
        found = regions(verdict.map, self._map_threshold) if verdict.map is not None else ()
        data = AlertData(**self._facts(verdict).__dict__, regions=found).model_dump(mode="json", exclude_none=True)
        return self._event("monitor.alert.v1", verdict, data, verdict.map)

    def score(self, verdict: Verdict) -> Event:
        """The score event of any verdict."""
        return self._event("monitor.score.v1", verdict, self._facts(verdict).model_dump(mode="json", exclude_none=True), None)

    def _facts(self, verdict: Verdict) -> ScoreData:
        sample = verdict.sample
        return ScoreData(
            stream=sample.stream,
            detector=verdict.detector,
            kind=self._kind,
            model_version=verdict.version.id,
            sample=Origin(source=sample.source, topic=sample.topic, position=sample.position),
            modality=sample.modality,
            captured=rfc_3339(sample.captured),
            scored=rfc_3339(verdict.scored),
            score=verdict.score,
            threshold=verdict.threshold,
            p_value=self._calibration.p_value(verdict.score),
            supported=self.threshold.words,
        )

    def _event(self, kind: str, verdict: Verdict, data: dict[str, object], score_map: FloatArray | None) -> Event:
        sample = verdict.sample
        return Event(
            id=f"{verdict.detector}:{sample.id}",
            type=kind,  # type: ignore[arg-type]
            source=self._source,
            key=sample.stream,
            time=sample.captured,
            data=data,
            map=score_map,
        )


def regions(score_map: FloatArray, threshold: float | None) -> tuple[Region, ...]:
    """The connected parts (8 neighbours) of a (H, W) map above the threshold, strongest first, at most MOST_REGIONS.

    When nothing is above it, one region around the peak: the part above half way from the map's mean to its peak.
    """
    peak = float(score_map.max())
    if threshold is None or peak <= threshold:
        half = (float(score_map.mean()) + peak) / 2
        return _parts(score_map >= min(half, peak), score_map, 1)
    return _parts(score_map > threshold, score_map, MOST_REGIONS)


def _parts(mask: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], score_map: FloatArray, most: int) -> tuple[Region, ...]:
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    peaks = np.full(count, -np.inf, dtype=np.float32)
    np.maximum.at(peaks, np.asarray(labels[mask], dtype=np.intp), score_map[mask])
    strongest = sorted(range(1, count), key=lambda label: -peaks[label])[:most]
    return tuple(
        Region(
            x=int(stats[label, cv2.CC_STAT_LEFT]),
            y=int(stats[label, cv2.CC_STAT_TOP]),
            width=int(stats[label, cv2.CC_STAT_WIDTH]),
            height=int(stats[label, cv2.CC_STAT_HEIGHT]),
            area=int(stats[label, cv2.CC_STAT_AREA]),
            peak=float(peaks[label]),
        )
        for label in strongest
    )
