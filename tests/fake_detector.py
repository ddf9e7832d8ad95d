"""kind = "fake": the smallest detector that satisfies the port, and one that breaks on command.

fakes-0.dist-info beside it registers the kind wherever this folder is on sys.path: pytest puts it there for the tests'
own process; processes that tests start get it by PYTHONPATH.

Whatever it scores, a sample whose top left pixel is RAISES, NAN or KILLS makes `score` raise, answer NaN, or kill the process.
"""

import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from monitor.errors import BadSample, ConfigError, DeviceLost
from monitor.ports import Options, Progress
from monitor.types import Batch, Sample, Scores

SIDE = 32
RAISES = (251, 3, 77)
NAN = (249, 5, 79)
KILLS = (247, 7, 81)


class FakeOptions(Options):
    """Scores by the difference to the mean training image."""

    implementation: ClassVar[str] = "fake_detector:FakeDetector"

    preset: Literal["paper", "cpu"] = "cpu"
    score: Literal["auto", "mean", "largest"] = "auto"
    maps: bool = True
    epochs: int = 2
    fit_delay: float = 0.0
    """Seconds per training step, one image each."""
    delay: float = 0.0
    """Seconds per scored batch."""
    bf16_error: float = 0.0
    """Added to every score in bf16, which "auto" chooses when this is not 0."""
    sabotage: Path | None = None
    """While this file exists the whole model is broken, as it says: nan, raise, lost (the device), or stall (until it is gone)."""


class FakeDetector:
    modality = "image"
    segmentation = None

    def __init__(self, options: FakeOptions) -> None:
        self._options = options
        self._mean = np.zeros((SIDE, SIDE, 3), np.float32)
        self.device = "cpu"
        self.precision = "fp32"

    def fit(
        self, training: Sequence[Sample], held_out: Sequence[Sample], folder: Path, *, seed: int, device: str, progress: Progress
    ) -> Mapping[str, Any]:
        begun = time.monotonic()
        steps = len(training) * self._options.epochs
        order = np.random.default_rng(seed).permutation(steps) % len(training)
        checkpoint = folder / "checkpoint.npz"
        total, done = np.zeros((SIDE, SIDE, 3), np.float64), 0
        if checkpoint.exists():
            with np.load(checkpoint, allow_pickle=False) as saved:
                total, done = saved["total"], int(saved["done"])
        for step in range(done, steps):
            total += _small(training[order[step]]) * (1 + step / steps)  # the order matters, as in a real training
            time.sleep(self._options.fit_delay)
            temporary = folder / "checkpoint.new.npz"
            np.savez(temporary, total=total, done=step + 1)
            temporary.replace(checkpoint)
            progress("train", step + 1, steps, {"brightness": float(total.mean() / (step + 1))})
        weight = sum(1 + step / steps for step in range(steps))
        self._mean = (total / weight).astype(np.float32)
        loss = float(np.mean([np.abs(_small(sample) - self._mean).mean() for sample in held_out]))
        resolved = {"score": "mean" if self._options.score == "auto" else self._options.score}
        return {"held_out_loss": loss, "resumed_at": done, "options": resolved, "seconds": time.monotonic() - begun}

    def save(self, folder: Path) -> None:
        save_file({"mean": self._mean}, folder / "weights.safetensors")
        (folder / "network.json").write_text(json.dumps({"side": SIDE}))

    def load(self, folder: Path, *, device: str, precision: str) -> None:
        if device not in ("auto", "cpu"):
            raise ConfigError(f"device: {device!r} is not here")
        if precision == "fp16":
            raise ConfigError("precision: fp16 needs a CUDA device")
        fast = "bf16" if self._options.bf16_error else "fp32"
        self.precision = fast if precision == "auto" else precision
        self._mean = load_file(folder / "weights.safetensors")["mean"]

    def prepare(self, sample: Sample) -> Any:
        if sample.image is None:
            raise BadSample("unsupported", f"an image is needed, this is {sample.modality}")
        return _small(sample)

    def stack(self, samples: Sequence[Sample], prepared: Sequence[Any]) -> Batch:
        return Batch(samples=tuple(samples), data=np.stack(prepared))

    def score(self, batch: Batch, *, every: bool = False) -> Scores:
        time.sleep(self._options.delay)
        self._break()
        difference = np.abs(batch.data - self._mean).mean(axis=3)  # (B, SIDE, SIDE)
        named = {"mean": difference.mean(axis=(1, 2)), "largest": difference.max(axis=(1, 2))}
        if self.precision == "bf16":
            named = {name: values + np.float32(self._options.bf16_error) for name, values in named.items()}
        if self._options.sabotage is not None and self._options.sabotage.exists():
            named = {name: np.full_like(values, np.nan) for name, values in named.items()}
        for index, sample in enumerate(batch.samples):
            trigger = _corner(sample)
            if trigger == RAISES:
                raise ValueError(f"{sample.id} makes this network raise")
            if trigger == KILLS:
                os.kill(os.getpid(), signal.SIGKILL)
            if trigger == NAN:
                for values in named.values():
                    values[index] = np.nan
        maps = None
        if self._options.maps:
            maps = tuple(_large(difference[index], sample) for index, sample in enumerate(batch.samples))
        chosen = "largest" if self._options.score == "largest" else "mean"
        return Scores(values=named[chosen], maps=maps, named=named if every else {})

    def _break(self) -> None:
        if self._options.sabotage is None or not self._options.sabotage.exists():
            return
        how = self._options.sabotage.read_text().strip()
        while how == "stall" and self._options.sabotage.exists():
            time.sleep(0.02)
        if how == "raise":
            raise RuntimeError("this model is broken")
        if how == "lost":
            raise DeviceLost("cuda:0 no longer answers")


def _small(sample: Sample) -> NDArray[np.float32]:
    """-> (SIDE, SIDE, 3) in [0, 1]."""
    assert sample.image is not None
    unit = sample.image.astype(np.float32) / np.float32(np.iinfo(sample.image.dtype).max)
    small = cv2.resize(unit, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    rgb = small if small.ndim == 3 else np.repeat(small[..., None], 3, axis=2)
    return np.asarray(rgb, dtype=np.float32)


def _large(difference: NDArray[np.float32], sample: Sample) -> NDArray[np.float32]:
    assert sample.image is not None
    height, width = sample.image.shape[:2]
    return np.asarray(cv2.resize(difference, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.float32)


def _corner(sample: Sample) -> tuple[int, ...]:
    assert sample.image is not None
    return tuple(int(value) for value in sample.image[0, 0])
