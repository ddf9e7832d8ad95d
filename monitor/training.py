"""A data set of normal samples -> a model version: split, fit, calibrate, keep references, publish, promote.

A training lives in a work folder beside the store until its version is published, so that one that was killed is resumed
by `--resume`, with the same result. Everything that follows the fit is quick and deterministic, and is done again.
"""

import fcntl
import hashlib
import json
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from monitor import reference
from monitor.calibration import Calibration, Threshold
from monitor.errors import BadSample, ConfigError
from monitor.evaluation.layouts import Files
from monitor.ports import Detector, Options, Progress, Report
from monitor.reference import scored
from monitor.registry import resolve
from monitor.store import ModelStore
from monitor.types import SENSORS, ModelVersion, Sample

DEAL = "TCTTETCTTC"
"""Contiguous tenths of the normals, in order of file or time: T training, E early stopping, C calibration.

No sample is in two, neighbours (frames of one part, clips of one shift) mostly share a part, and each part sees all of the
time. Three tenths calibrate, because a threshold for 1 % needs 99 scores and two hundred normals are common.
"""
FEWEST = len(DEAL)
PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A published and promoted version, and what its calibration supports."""

    version: ModelVersion
    threshold: Threshold


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Everything that decides a training."""

    name: str
    kind: str
    options: Options
    files: Files
    seed: int
    device: str
    false_alarm_probability: float
    max_batch_size: int


def train(job: Job, *, store: ModelStore, progress: Progress, report: Report, resume: bool = False) -> Trained:
    """Raises ConfigError for data or options that cannot work, and for a resume that differs from what was begun."""
    with _work_folder(job.name, store) as folder:
        detector: Detector = resolve(job.options.implementation)(job.options)
        digests = _read_all(job.files, detector, progress)
        parts = {part: job.files.take(indices) for part, indices in deal(len(job.files)).items()}
        _begin(folder, _plan(job, digests), resume=resume)
        fit, built = folder / "fit", folder / "model"
        fit.mkdir(exist_ok=True)
        begun = time.monotonic()
        facts = dict(detector.fit(parts["T"], parts["E"], fit, seed=job.seed, device=job.device, progress=progress))
        facts.setdefault("seconds", time.monotonic() - begun)
        shutil.rmtree(built, ignore_errors=True)
        built.mkdir()
        detector.save(built)
        manifest = _calibrated(job, parts["C"], built, progress) | {
            "kind": job.kind,
            "options": _resolved(job.options, facts),
            "seed": job.seed,
            "fit": facts,
            "trained_on": _trained_on(job.files, parts, digests),
            "software": _software(),
        }
        threshold = Threshold(**manifest["threshold"])
        candidate = store.publish(job.name, built, manifest)
        reference.load_detector(candidate, device=job.device, precision="fp32", report=report)  # as any server will
        store.promote(job.name, candidate.id)
        _clear(folder)
    return Trained(version=candidate, threshold=threshold)


def deal(n: int) -> dict[str, list[int]]:
    """Indices 0 to n - 1 -> those for "T", "E" and "C", as DEAL says. Raises ConfigError for fewer than FEWEST."""
    if n < FEWEST:
        raise ConfigError(f"expected at least {FEWEST} normal samples, found {n}")
    parts: dict[str, list[int]] = {"T": [], "E": [], "C": []}
    for index in range(n):
        parts[DEAL[index * len(DEAL) // n]].append(index)
    return parts


def _calibrated(job: Job, normals: Files, built: Path, progress: Progress) -> dict[str, Any]:
    """Score the calibration part in fp32, write the references into `built`, and measure every precision of this machine.

    In fp32, whatever will serve: those scores mean the same on every device, and a faster precision is only admitted
    when it repeats the references within a tenth of the way to the threshold.
    """
    detector: Detector = resolve(job.options.implementation)(job.options)
    detector.load(built, device=job.device, precision="fp32")
    scores: list[float] = []
    peaks: list[float] = []
    for _, batch in scored(detector, normals, job.max_batch_size):
        scores += [float(score) for score in batch.values]
        peaks += [float(one.max()) for one in batch.maps or ()]
        progress("calibrate", len(scores), len(normals), {})
    calibration = Calibration.of(scores, peaks or None)
    threshold = calibration.threshold(job.false_alarm_probability)
    kept = reference.choose(normals, np.asarray(scores, dtype=np.float32))
    samples, expected = [normals[index] for index in kept], [scores[index] for index in kept]
    reference.write(built, samples)
    allowed = reference.tolerance(calibration, threshold)
    return {
        "calibration": calibration.to_manifest(),
        "threshold": {"value": threshold.value, "asked": threshold.asked, "supported": threshold.supported, "more_needed": threshold.more_needed},
        "map_threshold": calibration.map_threshold(job.false_alarm_probability),
        "reference": {"tolerance": allowed, "scores": expected},
        "checks": [_check(job, built, precision, samples, expected, allowed=allowed) for precision in PRECISIONS],
    }


def _check(job: Job, built: Path, precision: str, samples: Sequence[Sample], expected: Sequence[float], *, allowed: float) -> dict[str, Any]:
    detector: Detector = resolve(job.options.implementation)(job.options)
    try:
        detector.load(built, device=job.device, precision=precision)
    except ConfigError as error:
        return {"precision": precision, "absent": str(error)}
    moved = reference.deviation(detector, samples, expected)
    return {"precision": precision, "device": detector.device, "deviation": moved, "within": moved <= allowed}


def _read_all(files: Files, detector: Detector, progress: Progress) -> list[str]:
    """The sha256 of every sample's files, each decoded and prepared once.

    What cannot be learnt from is named before hours of training, not after."""
    digests = []
    rate: int | None = None
    for index in range(len(files)):
        payloads = files.payloads(index)
        found = files.sample(index, payloads)
        if not found.has(detector.modality):
            raise ConfigError(f"{files.position(index)}: expected {SENSORS[detector.modality]}, found {found.sensors}")
        try:
            detector.prepare(found)
        except BadSample as error:
            raise ConfigError(f"{files.position(index)}: {error}") from error
        rate = rate or found.rate
        if found.rate is not None and rate is not None and found.rate < rate:
            raise ConfigError(
                f"{files.position(index)}: sound at {found.rate} Hz, {files.position(0)} at {rate} Hz: none may have a lower rate than the first"
            )
        digests.append(hashlib.sha256(b"".join(payloads)).hexdigest())
        progress("read", index + 1, len(files), {})
    return digests


def _plan(job: Job, digests: Sequence[str]) -> dict[str, Any]:
    """What must be the same for a resumed training to have the same result."""
    contents = [[job.files.position(index), digest] for index, digest in enumerate(digests)]
    return {
        "kind": job.kind,
        "options": json.loads(job.options.model_dump_json()),
        "seed": job.seed,
        "device": job.device,
        "data": {"files": len(contents), "sha256": _sha256(contents)},
        "split": DEAL,
    }


def _begin(folder: Path, plan: dict[str, Any], *, resume: bool) -> None:
    """Leave `folder` as this training must find it: empty, or as the same training left it."""
    path = folder / "plan.json"
    if resume and path.exists():
        begun = json.loads(path.read_text())
        if differing := sorted(key for key in plan if begun.get(key) != plan[key]):
            what = ", ".join(_differing(key, begun.get(key), plan[key]) for key in differing)
            raise ConfigError(f"--resume: the training in {folder} differs: {what}; expected the same, or to begin anew without --resume")
        return
    _clear(folder)
    temporary = folder / "plan.new"
    temporary.write_text(json.dumps(plan))
    temporary.replace(path)


def _differing(key: str, was: Any, now: Any) -> str:
    """Only what differs, of tables too."""
    if isinstance(was, dict) and isinstance(now, dict):
        return ", ".join(_differing(f"{key}.{part}", was.get(part), now.get(part)) for part in was | now if was.get(part) != now.get(part))
    return f"{key} was {json.dumps(was)}, is {json.dumps(now)}"


def _clear(folder: Path) -> None:
    (folder / "plan.json").unlink(missing_ok=True)  # first: without it, nothing in the folder counts
    for part in ("fit", "model"):
        shutil.rmtree(folder / part, ignore_errors=True)


@contextmanager
def _work_folder(name: str, store: ModelStore) -> Iterator[Path]:
    """Beside the store: training/<name>, ours alone while we live. Raises ConfigError while another trains that name."""
    store.ids(name)  # refuses a name that escapes
    folder = store.path.parent / "training" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise ConfigError(f"store.path: {folder}, where the training works, cannot be written: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{name}: another training of it is running in {folder}") from None
        yield folder


def _resolved(options: Options, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The options, with what the fit decided where they left it open."""
    asked: dict[str, Any] = json.loads(options.model_dump_json())
    return asked | {key: value for key, value in dict(facts.get("options", {})).items() if key in asked}


def _trained_on(files: Files, parts: Mapping[str, Files], digests: Sequence[str]) -> dict[str, Any]:
    ids = {part: [f"{some.topic}/{some.position(index)}" for index in range(len(some))] for part, some in parts.items()}
    words = {"T": "training", "E": "early_stopping", "C": "calibration"}
    return {
        "path": str(files.root.resolve()),
        "files": len(files),
        "sha256": _sha256(list(digests)),
        **{words[part]: {"count": len(some), "ids_sha256": _sha256(some)} for part, some in ids.items()},
    }


def _software() -> dict[str, str]:
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in ("plant-monitor", "numpy", "opencv-python-headless", "torch"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
