"""kind = "listener": a detector of sound that is quick, and whose score any other cut would change.

The score weighs every sample by its place in the clip. A clip with a sample of RAISES or KILLS makes `score` raise, or kills the process.
"""

import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from safetensors.numpy import load_file, save_file

from monitor.errors import BadSample
from monitor.ports import Options, Progress
from monitor.types import Batch, FloatArray, Sample, Scores, Segmentation

RAISES, KILLS = np.float32(0.9375), np.float32(-0.9375)


class ListenerOptions(Options):
    """Scores by the distance to the mean weighted sum of the training clips."""

    implementation: ClassVar[str] = "fake_listener:Listener"

    segment_seconds: float = 10.0
    """Seconds of a segment."""
    hop_seconds: float | None = None
    """Seconds from one segment to the next; by default those of a segment."""
    min_seconds: float = 4.0
    """Seconds that are scored at least."""
    delay: float = 0.0
    """Seconds per scored batch."""


class Listener:
    modality = "sound"

    def __init__(self, options: ListenerOptions) -> None:
        self._options = options
        self._mean = np.zeros(1, np.float32)
        self.device = "cpu"
        self.precision = "fp32"
        hop = options.segment_seconds if options.hop_seconds is None else options.hop_seconds
        self.segmentation = Segmentation(length=options.segment_seconds, hop=hop, shortest=options.min_seconds)

    def fit(
        self, training: Sequence[Sample], held_out: Sequence[Sample], folder: Path, *, seed: int, device: str, progress: Progress
    ) -> Mapping[str, Any]:
        sums = [weighted(self.prepare(clip)) for clip in training]
        self._mean = np.array([np.mean(sums)], np.float32)
        return {"held_out_loss": float(np.mean([abs(weighted(self.prepare(clip)) - self._mean[0]) for clip in held_out]))}

    def save(self, folder: Path) -> None:
        save_file({"mean": self._mean}, folder / "weights.safetensors")
        (folder / "network.json").write_text(json.dumps({}))

    def load(self, folder: Path, *, device: str, precision: str) -> None:
        self._mean = load_file(folder / "weights.safetensors")["mean"]

    def prepare(self, sample: Sample) -> FloatArray:
        if sample.waveform is None:
            raise BadSample("unsupported", f"sound is needed, this is {sample.modality}")
        return sample.waveform.mean(axis=0, dtype=np.float32)

    def stack(self, samples: Sequence[Sample], prepared: Sequence[Any]) -> Batch:
        return Batch(samples=tuple(samples), data=list(prepared))

    def score(self, batch: Batch, *, every: bool = False) -> Scores:
        time.sleep(self._options.delay)
        for sample in batch.samples:
            assert sample.waveform is not None
            if (sample.waveform == KILLS).any():
                os.kill(os.getpid(), signal.SIGKILL)
            if (sample.waveform == RAISES).any():
                raise ValueError(f"{sample.id} makes this network raise")
        values = np.array([abs(weighted(clip) - self._mean[0]) for clip in batch.data], np.float32)
        return Scores(values=values, named={"distance": values} if every else {})


def weighted(clip: FloatArray) -> float:
    """(T,): a sum in which every sample counts by its own weight, so that one that is lost, doubled or moved changes it."""
    places = np.arange(len(clip))
    return float(np.dot(clip.astype(np.float64), 1 + np.sin(places * 0.7) + places / 1000))
