"""Reference samples: a model proves on the device and in the precision that will serve that it still is what was trained.

A version holds a few normal samples, their scores in fp32 and a tolerance. Loading scores them again, alone and in one
batch, and refuses the model beyond the tolerance. That catches a driver, a library or a precision that changes scores.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from monitor.calibration import Calibration, Threshold
from monitor.errors import BadSample, ConfigError, DeviceLost, ModelRefused, MonitorError
from monitor.ports import Detector, Options, Report
from monitor.registry import options_class, resolve
from monitor.store import verify
from monitor.types import Axes, FloatArray, ModelVersion, Sample, Scores

FILE = "reference.npz"
COUNT = 4
MOST_BYTES = 16 * 1024 * 1024
"""Of all reference samples together; the first is kept whatever its size."""

_ARRAYS = ("image", "depth", "waveform")
_FACTS = ("source", "topic", "position", "stream", "rate")


def scored(detector: Detector, samples: Sequence[Sample], size: int, *, every: bool = False) -> Iterator[tuple[tuple[Sample, ...], Scores]]:
    """Batches of `size` in order, each with its scores, as the daemon makes them.

    Raises MonitorError where the detector answers with another length or with what is not finite, and BadSample with the sample's id.
    """
    for start in range(0, len(samples), size):
        chunk = tuple(samples[index] for index in range(start, min(start + size, len(samples))))
        yield chunk, checked(detector.score(detector.stack(chunk, [_prepared(detector, sample) for sample in chunk]), every=every), chunk)


def _prepared(detector: Detector, sample: Sample) -> Any:
    try:
        return detector.prepare(sample)
    except BadSample as error:
        raise BadSample(error.reason, f"{sample.id}: {error}") from error


def checked(scores: Scores, samples: Sequence[Sample]) -> Scores:
    """Raises MonitorError for scores of another number than the samples, or that are not finite, and for maps of sound without axes."""
    if scores.values.shape != (len(samples),) or (scores.maps is not None and len(scores.maps) != len(samples)):
        raise MonitorError(f"{len(samples)} samples from {samples[0].id} on got scores of shape {scores.values.shape}")
    axes = None if scores.axes is None else len(scores.axes)
    if axes != (len(samples) if scores.maps is not None and samples[0].modality == "sound" else None):
        raise MonitorError(f"{len(samples)} samples of {samples[0].modality} from {samples[0].id} on got {axes or 'no'} axes of maps")
    if not np.isfinite(scores.values).all():
        raise MonitorError(f"scores that are not finite among {len(samples)} samples from {samples[0].id} on")
    return scores


def check_map(sample: Sample, one: FloatArray, axes: Axes | None) -> None:
    """Raises MonitorError for a map that is not finite, or of another size than its axes say."""
    if not np.isfinite(one).all():
        raise MonitorError(f"the map of {sample.id} is not finite")
    if axes is not None and one.shape != (len(axes.hertz) - 1, len(axes.seconds) - 1):
        raise MonitorError(f"the map of {sample.id} is of shape {one.shape}, its axes have {len(axes.hertz)} and {len(axes.seconds)} edges")


def tolerance(calibration: Calibration, threshold: Threshold) -> float:
    """How far a reference score may move: a tenth of the way from the median normal to the threshold.

    Verdicts are decided on that way, so it is the one scale that has a meaning for every method: a shift of a tenth of it
    leaves a typical normal as far from an alert as it was, and exceeds the rounding of any sane fp32 by orders of magnitude.
    Where all normals score the same there is no such way; then it is 64 units in the last place of the largest score.
    """
    way = threshold.value - float(np.median(calibration.scores))
    rounding = 64 * float(np.spacing(np.abs(calibration.scores).max()))
    return max(way / 10, rounding)


def choose(samples: Sequence[Sample], scores: NDArray[np.float32]) -> list[int]:
    """Indices of at most COUNT samples from the least to the strangest, so that the whole range of normal scores is checked."""
    ranked = np.argsort(scores, kind="stable")
    positions = np.linspace(len(ranked) - 1, 0, min(COUNT, len(ranked))).round().astype(int)
    chosen: list[int] = []
    total = 0
    for index in (int(ranked[position]) for position in positions):
        size = sum(array.nbytes for array in _arrays(samples[index]).values())
        if not chosen or total + size <= MOST_BYTES:
            chosen.append(index)
            total += size
    return chosen


def write(folder: Path, samples: Sequence[Sample]) -> None:
    """Keep what scores depend on, without loss, in `folder`: no times, so that the same samples make the same bytes."""
    arrays: dict[str, Any] = {"facts": np.array(json.dumps([{fact: getattr(sample, fact) for fact in _FACTS} for sample in samples]))}
    for index, sample in enumerate(samples):
        arrays |= {f"{name}{index}": array for name, array in _arrays(sample).items()}
    np.savez_compressed(folder / FILE, **arrays)


def read(folder: Path) -> list[Sample]:
    """The samples that `write` kept. Raises ModelRefused."""
    try:
        with np.load(folder / FILE, allow_pickle=False) as kept:
            facts = json.loads(str(kept["facts"]))
            found = [{name: kept[f"{name}{index}"] for name in _ARRAYS if f"{name}{index}" in kept} for index in range(len(facts))]
        return [Sample(captured=0.0, received=0.0, **fact, **arrays) for fact, arrays in zip(facts, found, strict=True)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelRefused(f"{folder / FILE}: cannot be read: {error!r}") from error


def deviation(detector: Detector, samples: Sequence[Sample], expected: Sequence[float], beat: Callable[[], None] = lambda: None) -> float:
    """Largest distance to the expected scores, each sample alone and all in one batch. Raises what scoring raises.

    `beat` is called after each call of the model."""
    values: list[float] = []
    for size in (1, len(samples)):
        for _, scores in scored(detector, samples, size):
            values += map(float, scores.values)
            beat()
    return max(abs(score - wanted) for score, wanted in zip(values, [*expected, *expected], strict=True))


def load_detector(version: ModelVersion, *, device: str, precision: str, report: Report) -> Detector:
    """Verify, load and check a version: a detector that is ready to serve.

    Precision "auto" falls back to fp32, and reports it, where the fast one moves the reference scores too far.
    Raises ModelRefused; ConfigError for a device, precision or published weights that are not here; DeviceLost.
    """
    verify(version)
    detector = _loaded(version, device, precision)
    moved, allowed = _moved(detector, version)
    if moved <= allowed:
        return detector
    if precision == "auto" and detector.precision != "fp32":
        report("precision_refused", detector=version.name, model_version=version.id, precision=detector.precision, deviation=moved, tolerance=allowed)
        detector = _loaded(version, device, "fp32")
        moved, allowed = _moved(detector, version)
        if moved <= allowed:
            return detector
    where = f"on {detector.device} in {detector.precision}"
    raise ModelRefused(f"{version.folder}: its reference scores do not repeat {where}: off by {moved:.3g}, tolerance {allowed:.3g}")


def references_pass(detector: Detector, version: ModelVersion, beat: Callable[[], None] = lambda: None) -> bool:
    """Whether a loaded detector still repeats its reference scores: the model is sound, so the fault is the sample's.

    `beat` is called after each call of the model. Raises DeviceLost.
    """
    moved, allowed = _moved(detector, version, beat)
    return moved <= allowed


def _loaded(version: ModelVersion, device: str, precision: str) -> Detector:
    options = model_options(version)
    try:
        detector: Detector = resolve(options.implementation)(options)
        detector.load(version.folder, device=device, precision=precision)
    except MonitorError:
        raise
    except Exception as error:  # whatever a network's loader raises, this version cannot serve
        raise ModelRefused(f"{version.folder}: cannot be loaded: {error!r}") from error
    return detector


def model_options(version: ModelVersion) -> Options:
    """The options that the version was trained with. Raises ModelRefused."""
    try:
        return options_class("detectors", str(version.manifest.get("kind"))).model_validate(version.manifest.get("options"))
    except (ConfigError, ValidationError) as error:
        raise ModelRefused(f"{version.folder}: its kind or options are not of this release: {error}") from error


def _moved(detector: Detector, version: ModelVersion, beat: Callable[[], None] = lambda: None) -> tuple[float, float]:
    """How far the reference scores moved (infinitely where scoring fails), and how far they may."""
    try:
        expected = [float(score) for score in version.manifest["reference"]["scores"]]
        allowed = float(version.manifest["reference"]["tolerance"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelRefused(f"{version.folder}: its manifest has no reference scores: {error!r}") from error
    samples = read(version.folder)
    if not expected or len(expected) != len(samples):
        raise ModelRefused(f"{version.folder}: {len(samples)} reference samples, {len(expected)} scores")
    try:
        return deviation(detector, samples, expected, beat), allowed
    except DeviceLost:
        raise
    except Exception:  # a model that cannot score what it once scored is broken, however it says so
        return math.inf, allowed


def _arrays(sample: Sample) -> dict[str, NDArray[Any]]:
    return {name: array for name in _ARRAYS if (array := getattr(sample, name)) is not None}
