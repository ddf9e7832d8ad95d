"""How well scores tell defects from normals, per image and per pixel.

Pixel metrics come from counts at many thresholds, gathered image by image, so that memory does not grow with the data set:
AUROC, average precision, and AUPRO (Bergmann et al., IJCV 2021: the per-region overlap, averaged over all connected defect
regions, integrated over false-positive rates up to 30 %).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from monitor.types import FloatArray

Mask = NDArray[np.bool_]

LIMIT = 0.3
"""AUPRO integrates up to this false-positive rate."""
EDGES = 1 << 17
"""Thresholds at most, half of them drawn from normal pixels, half from defective ones, the same number from each image.

Where no image has more of either than its share, every score is a threshold and all results are exact."""


@dataclass(frozen=True, slots=True, eq=False)
class PixelMetrics:
    """Areas under curves, each in [0, 1]."""

    auroc: float
    ap: float
    aupro: float


@dataclass(frozen=True, slots=True, eq=False)
class Counts:
    """At each of T descending thresholds: how much of what is scored at least that high.

    false_positives, true_positives: (T,) pixels. overlap: (T,) the mean over regions of the share of the region.
    The last threshold is below every score, so that the last counts are everything.
    """

    false_positives: NDArray[np.float64]
    true_positives: NDArray[np.float64]
    overlap: NDArray[np.float64]

    def metrics(self) -> PixelMetrics:
        """Raises ValueError where no pixel is normal or none is defective."""
        if not self.false_positives[-1] or not self.true_positives[-1]:
            raise ValueError("pixel metrics need normal and defective pixels")
        false_rate = np.concatenate([[0.0], self.false_positives / self.false_positives[-1]])
        recall = np.concatenate([[0.0], self.true_positives / self.true_positives[-1]])
        overlap = np.concatenate([[0.0], self.overlap])
        flagged = self.true_positives + self.false_positives
        precision = np.divide(self.true_positives, flagged, out=np.zeros_like(flagged), where=flagged > 0)
        return PixelMetrics(
            auroc=float(np.trapezoid(recall, false_rate)),
            ap=float(np.sum(np.diff(recall) * precision)),
            aupro=min(1.0, area_up_to(false_rate, overlap, LIMIT) / LIMIT),  # sums of shares round up
        )


def area_up_to(x: NDArray[np.float64], y: NDArray[np.float64], limit: float) -> float:
    """Area under the piecewise linear curve through x, ascending from 0 to at least `limit`, up to `limit`."""
    beyond = int(np.searchsorted(x, limit, side="right"))
    xs, ys = x[:beyond], y[:beyond]
    if beyond < len(x):
        end = np.interp(limit, x[beyond - 1 : beyond + 1], y[beyond - 1 : beyond + 1])
        xs, ys = np.append(xs, limit), np.append(ys, end)
    return float(np.trapezoid(ys, xs))


def thresholds(maps: Iterable[tuple[FloatArray, Mask]], images: int) -> FloatArray:
    """Ascending thresholds from a first look at `images` pairs of map and mask: every score, or EDGES of them drawn evenly.

    Between two neighbours lies about 1/65,536 of the normal pixels and of the defective ones, which bounds every area's error.
    """
    share = max(1, EDGES // 2 // images)
    generator = np.random.default_rng(0)
    drawn: list[FloatArray] = []
    for scores, mask in maps:
        drawn += [_some(scores[mask], share, generator), _some(scores[~mask], share, generator)]
    return np.unique(np.concatenate(drawn))


def counts(maps: Iterable[tuple[FloatArray, Mask]], ascending: FloatArray) -> Counts:
    """A second look at the pairs of (H, W) float32 map and (H, W) bool mask; regions are 8-connected."""
    edges = np.concatenate([np.array([-np.inf], np.float32), ascending])
    below_false = np.zeros(len(edges), np.int64)  # normal pixels below each edge
    true = np.zeros(len(edges), np.int64)  # defective pixels from each edge up to the next
    weight = np.zeros(len(edges), np.float64)  # the same, each as its share of its region
    normal = regions = 0
    for scores, mask in maps:
        negatives = np.sort(scores[~mask])
        normal += len(negatives)
        below_false += np.searchsorted(negatives, edges, side="left")
        if not mask.any():
            continue
        count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        regions += count - 1
        places = np.asarray(labels)[mask]
        bins = np.searchsorted(edges, scores[mask], side="right") - 1
        shares = 1 / np.bincount(places, minlength=count)[places]
        true += np.bincount(bins, minlength=len(edges))
        weight += np.bincount(bins, weights=shares, minlength=len(edges))
    return Counts(
        false_positives=(normal - below_false[::-1]).astype(np.float64),
        true_positives=np.cumsum(true[::-1]).astype(np.float64),
        overlap=np.cumsum(weight[::-1]) / max(regions, 1),
    )


def _some(scores: FloatArray, share: int, generator: np.random.Generator) -> FloatArray:
    return scores if len(scores) <= share else generator.choice(scores, share, replace=False, shuffle=False)
