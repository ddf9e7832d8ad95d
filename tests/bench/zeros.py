"""kind = "zeros": a detector that costs nothing, so that what is measured is the flow around it."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from monitor.ports import Options, Progress
from monitor.types import Batch, Sample, Scores


class ZerosOptions(Options):
    implementation: ClassVar[str] = "zeros:Zeros"

    delay: float = 0.0
    """Seconds per batch: a network that is slow, on a device of its own."""


class Zeros:
    modality = "image"
    segmentation = None

    def __init__(self, options: ZerosOptions) -> None:
        self._delay = options.delay
        self.device = "cpu"
        self.precision = "fp32"

    def fit(
        self, training: Sequence[Sample], held_out: Sequence[Sample], folder: Path, *, seed: int, device: str, progress: Progress
    ) -> Mapping[str, Any]:
        return {}

    def save(self, folder: Path) -> None:
        (folder / "network.json").write_text("{}")

    def load(self, folder: Path, *, device: str, precision: str) -> None:
        pass

    def prepare(self, sample: Sample) -> None:
        pass

    def stack(self, samples: Sequence[Sample], prepared: Sequence[Any]) -> Batch:
        return Batch(samples=tuple(samples), data=None)

    def score(self, batch: Batch, *, every: bool = False) -> Scores:
        if self._delay:
            time.sleep(self._delay)
        return Scores(values=np.zeros(len(batch.samples), np.float32))
