"""kind = "fake_ear": the smallest detector of sound that draws maps: how far each band is from the mean of the training clips.

Registered beside "fake", see fake_detector.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from monitor.ports import Options, Progress
from monitor.types import Axes, Batch, Sample, Scores, Segmentation

BANDS, COLUMN = 16, 0.1  # bands from 0 to half the rate, seconds in a column


class FakeEarOptions(Options):
    """Scores by the difference to the mean training clip."""

    implementation: ClassVar[str] = "fake_ear:FakeEar"

    score: str = "auto"
    maps: bool = True


class FakeEar:
    modality = "sound"
    segmentation: Segmentation | None = None
    device = "cpu"
    precision = "fp32"

    def __init__(self, options: FakeEarOptions) -> None:
        self._options = options
        self._mean = np.zeros(BANDS, np.float32)

    def fit(
        self, training: Sequence[Sample], held_out: Sequence[Sample], folder: Path, *, seed: int, device: str, progress: Progress
    ) -> Mapping[str, Any]:
        self._mean = np.mean([self.prepare(sample).mean(axis=1) for sample in training], axis=0).astype(np.float32)
        return {"seconds": 0.5, "options": {"score": "mean"}}

    def save(self, folder: Path) -> None:
        save_file({"mean": self._mean}, folder / "weights.safetensors")

    def load(self, folder: Path, *, device: str, precision: str) -> None:
        self._mean = load_file(folder / "weights.safetensors")["mean"]
        self.segmentation = Segmentation(length=1.0, hop=1.0, shortest=0.5)

    def prepare(self, sample: Sample) -> NDArray[np.float32]:
        """(BANDS, columns) log amplitudes, high pitch first."""
        assert sample.waveform is not None
        assert sample.rate is not None
        length = round(COLUMN * sample.rate)
        whole = sample.waveform.mean(axis=0)[: sample.waveform.shape[1] // length * length].reshape(-1, length)
        amplitudes = np.abs(np.fft.rfft(whole))[:, 1 : length // 2 // BANDS * BANDS + 1]
        return np.log(1e-3 + amplitudes.reshape(len(whole), BANDS, -1).mean(axis=2)).T[::-1].astype(np.float32)

    def stack(self, samples: Sequence[Sample], prepared: Sequence[Any]) -> Batch:
        return Batch(samples=tuple(samples), data=tuple(prepared))

    def score(self, batch: Batch, *, every: bool = False) -> Scores:
        maps = tuple(np.abs(one - self._mean[:, None]) for one in batch.data)
        named = {
            "mean": np.array([one.mean() for one in maps], np.float32),
            "largest": np.array([one.max() for one in maps], np.float32),
            "level": np.array([np.abs(one.mean(axis=1) - self._mean).mean() for one in batch.data], np.float32),
        }
        axes = tuple(self._axes(sample, one) for sample, one in zip(batch.samples, maps, strict=True))
        shown = self._options.maps
        return Scores(values=named["mean"], maps=maps if shown else None, axes=axes if shown else None, named=named if every else {})

    def _axes(self, sample: Sample, one: NDArray[np.float32]) -> Axes:
        assert sample.rate is not None
        columns = np.arange(one.shape[1] + 1, dtype=np.float32) * np.float32(COLUMN)
        highest = round(COLUMN * sample.rate) // 2 // BANDS * BANDS / COLUMN
        return Axes(seconds=columns, hertz=np.linspace(highest, 0, BANDS + 1, dtype=np.float32))
