"""A loaded model version against a labelled test split: scores and maps of every sample, and the figures they amount to."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from monitor.calibration import Calibration, Threshold
from monitor.errors import ConfigError
from monitor.evaluation import sound
from monitor.evaluation.layouts import Labelled
from monitor.evaluation.metrics import Mask, PixelMetrics, counts, thresholds
from monitor.ports import Detector, Progress
from monitor.reference import check_map, scored
from monitor.types import Axes, FloatArray, ModelVersion


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """scores: (N,) float32 in the order of `labelled`; named: every score that the method knows, (N,) each.

    maps: the folder of one float32 (H, W) map per sample, or None; axes: of sound, those of each map.
    threshold and map_threshold are those that would serve.
    """

    version: ModelVersion
    labelled: Labelled
    scores: FloatArray
    named: Mapping[str, FloatArray]
    maps: Path | None
    axes: Sequence[Axes] | None
    calibration: Calibration
    threshold: Threshold
    map_threshold: float | None
    pixels: PixelMetrics | None
    seconds: float
    device: str
    precision: str

    def map(self, index: int) -> FloatArray:
        """(H, W) float32, of an image at the size that was sent."""
        assert self.maps is not None
        found: FloatArray = np.load(self.maps / f"{index}.npy", allow_pickle=False)
        return found

    @property
    def serving(self) -> str:
        """The name of the score that serves; "score" where the method names none."""
        chosen = str(self.version.manifest["options"].get("score"))
        return chosen if chosen in self.named else "score"

    @property
    def alerted(self) -> NDArray[np.bool_]:
        """(N,) bool."""
        return np.asarray(self.scores > np.float32(self.threshold.value), dtype=np.bool_)

    def figures(self) -> dict[str, Any]:
        """What `evaluate --json` writes of the measurement itself."""
        anomalous = self.labelled.anomalous
        figures = {
            "detector": self.version.name,
            "kind": self.version.manifest["kind"],
            "model_version": self.version.id,
            "seed": self.version.manifest["seed"],
            "n_normal": int((~anomalous).sum()),
            "n_anomalous": int(anomalous.sum()),
            **self._told_apart(),
            "threshold": self.threshold.value,
            "false_alarm_probability": self.threshold.asked,
            "supported": self.threshold.words,
            "recall": float(self.alerted[anomalous].mean()),
            "false_alarm_rate": float(self.alerted[~anomalous].mean()),
            "train_seconds": float(self.version.manifest["fit"]["seconds"]),
            "samples_per_second": len(self.scores) / self.seconds,
            "device": self.device,
            "precision": self.precision,
        }
        if self.pixels is not None:
            figures |= {"pixel_auroc": self.pixels.auroc, "pixel_ap": self.pixels.ap, "aupro": self.pixels.aupro}
        return figures

    def _told_apart(self) -> dict[str, Any]:
        """How well normal and anomalous samples are, by the score that serves and by every other."""
        if self.labelled.clips is not None:
            return sound.figures(self.labelled, self.scores, self.named, self.serving)
        anomalous = self.labelled.anomalous
        every = {name: _image_figures(anomalous, values) for name, values in self.named.items()}
        return {**_image_figures(anomalous, self.scores), "scores": every}


def evaluate(
    detector: Detector,
    version: ModelVersion,
    labelled: Labelled,
    *,
    false_alarm_probability: float,
    max_batch_size: int,
    folder: Path,
    progress: Progress,
) -> Evaluation:
    """Score every sample as the daemon would, its maps into `folder`.

    Raises ConfigError where the labels are not of what the detector looks at, and where a mask does not fit its image.
    """
    if (detector.modality == "sound") != (labelled.clips is not None):
        what = "sound" if labelled.clips is not None else "images"
        raise ConfigError(f"--layout: the test split in {labelled.files.root} is one of {what}, but {version.name} looks at {detector.modality}")
    calibration = Calibration.from_manifest(version.manifest)
    values: list[FloatArray] = []
    named: list[Mapping[str, FloatArray]] = []
    axes: list[Axes] = []
    mapped = done = 0
    begun = time.monotonic()
    for chunk, scores in scored(detector, labelled.files, max_batch_size, every=True):
        values.append(scores.values)
        named.append(scores.named)
        for index, one in enumerate(scores.maps or (), start=done):
            check_map(chunk[index - done], one, scores.axes[index - done] if scores.axes is not None else None)
            np.save(folder / f"{index}.npy", one)
            mapped += 1
        axes += scores.axes or ()
        done += len(chunk)
        progress("score", done, len(labelled.files), {})
    seconds = time.monotonic() - begun
    evaluation = Evaluation(
        version=version,
        labelled=labelled,
        scores=np.concatenate(values),
        named={name: np.concatenate([some[name] for some in named]) for name in named[0]},
        maps=folder if mapped == done else None,
        axes=axes or None,
        calibration=calibration,
        threshold=calibration.threshold(false_alarm_probability),
        map_threshold=calibration.map_threshold(false_alarm_probability),
        pixels=None,
        seconds=seconds,
        device=detector.device,
        precision=detector.precision,
    )
    return _with_pixels(evaluation, progress) if evaluation.maps is not None and labelled.masked else evaluation


def _with_pixels(evaluation: Evaluation, progress: Progress) -> Evaluation:
    n = len(evaluation.scores)

    def pairs(look: int) -> Iterator[tuple[FloatArray, Mask]]:
        for index in range(n):
            one = evaluation.map(index)
            yield one, evaluation.labelled.mask(index, *one.shape[:2])
            progress("pixels", look * n + index + 1, 2 * n, {})

    measured = counts(pairs(1), thresholds(pairs(0), n))
    try:
        return replace(evaluation, pixels=measured.metrics())
    except ValueError as error:
        raise ConfigError(f"{evaluation.labelled.files.root}: the masks of its test split: {error}") from error


def _image_figures(anomalous: NDArray[np.bool_], scores: FloatArray) -> dict[str, float]:
    return {"image_auroc": float(roc_auc_score(anomalous, scores)), "image_ap": float(average_precision_score(anomalous, scores))}
