"""Normal images with synthetic anomalies, drawn beside the training in threads."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator, SeedSequence, default_rng
from torch import Tensor

from detectors.images import Pixels
from detectors.inference import Arriving, Upload
from detectors.synthesis import Synthetic, synthetic
from detectors.textures import TextureSource

AHEAD = 4
"""Batches that are drawn before they are asked for, at least."""
HELD_OUT = 0
"""Stands where the number of an epoch, from 1, does."""


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """A batch on its way to the device: images (B, 3, S, S) with anomalies or not, without them, and masks (B, 1, S, S) of 0 and 1; fp32."""

    images: Arriving
    clean: Arriving
    masks: Arriving

    def here(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.images.here(), self.clean.here(), self.masks.here()


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """images: (N, S, S, 3) uint8, or float32 in [0, 1]; they stay on the CPU.

    What is drawn depends on the seed, the epoch and the place in it alone, not on the threads: no two epochs repeat each other.
    """

    images: Pixels
    textures: TextureSource
    upload: Upload
    seed: int

    def epoch(self, number: int, steps: int, batch_size: int) -> Iterator[Drawn]:
        """Batches of images drawn uniformly with replacement."""
        return self._drawn(number, [range(first, first + batch_size) for first in range(0, steps * batch_size, batch_size)])

    def held_out(self, count: int, batch_size: int) -> Iterator[Drawn]:
        """The same `count` samples every time."""
        return self._drawn(HELD_OUT, [range(first, min(first + batch_size, count)) for first in range(0, count, batch_size)])

    def _drawn(self, epoch: int, batches: Sequence[Sequence[int]]) -> Iterator[Drawn]:
        threads = min(8, len(os.sched_getaffinity(0)))
        pool = ThreadPoolExecutor(threads, thread_name_prefix="synthesis")
        coming: deque[Future[Drawn]] = deque()
        try:
            for places in batches:
                coming.append(pool.submit(self._batch, epoch, places))
                if len(coming) >= max(AHEAD, threads):
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _batch(self, epoch: int, places: Sequence[int]) -> Drawn:
        drawn = [self._one(default_rng(SeedSequence(self.seed, spawn_key=(epoch, place)))) for place in places]
        masks = np.stack([one.mask for one in drawn])[..., None].astype(np.float32)
        return Drawn(
            images=self.upload.send(np.stack([one.image for one in drawn])),
            clean=self.upload.send(np.stack([one.clean for one in drawn])),
            masks=self.upload.send(masks),
        )

    def _one(self, random: Generator) -> Synthetic:
        return synthetic(self.images[random.integers(len(self.images))], self.textures, random)
