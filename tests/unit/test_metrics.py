"""Pixel metrics against slow, obvious references and against scikit-learn."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage  # type: ignore[import-untyped]
from sklearn.metrics import average_precision_score, roc_auc_score

from monitor.evaluation import metrics
from monitor.evaluation.metrics import Mask, PixelMetrics, area_up_to, counts, thresholds
from monitor.types import FloatArray

Pairs = list[tuple[FloatArray, Mask]]


def made(seed: int, images: int = 6, side: int = 24, levels: int | None = None) -> Pairs:
    """Random maps that are higher in random blobs; with `levels`, many equal scores."""
    generator = np.random.default_rng(seed)
    pairs: Pairs = []
    for index in range(images):
        mask = np.zeros((side, side + index), np.bool_)
        for _ in range(index % 4):  # the first of four is normal
            y, x = generator.integers(0, side - 6, 2)
            mask[y : y + generator.integers(1, 6), x : x + generator.integers(1, 6)] = True
        scores = generator.normal(size=mask.shape) + mask
        scores = np.round(scores * levels) / levels if levels else scores
        pairs.append((scores.astype(np.float32), mask))
    return pairs


def measured(pairs: Pairs) -> PixelMetrics:
    return counts(pairs, thresholds(pairs, len(pairs))).metrics()


def obvious_aupro(pairs: Pairs, limit: float = 0.3) -> float:
    """One threshold after another, one region after another."""
    normal = np.concatenate([scores[~mask] for scores, mask in pairs])
    regions: list[NDArray[np.float32]] = []
    for scores, mask in pairs:
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        regions += [scores[labels == label] for label in range(1, count + 1)]
    points = [(0.0, 0.0)]
    points += [
        (float((normal >= threshold).mean()), float(np.mean([(region >= threshold).mean() for region in regions])))
        for threshold in np.unique(np.concatenate([scores.ravel() for scores, _ in pairs]))[::-1]
    ]
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 >= limit:
            break
        end = min(x1, limit)
        y = y0 + (y1 - y0) * (end - x0) / (x1 - x0) if x1 > x0 else y1
        area += (end - x0) * (y0 + y) / 2
    return area / limit


@pytest.mark.parametrize("levels", [None, 4, 1])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_exact_on_few_pixels(seed: int, levels: int | None) -> None:
    pairs = made(seed, levels=levels)
    scores = np.concatenate([one.ravel() for one, _ in pairs])
    labels = np.concatenate([mask.ravel() for _, mask in pairs])
    result = measured(pairs)
    assert result.auroc == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert result.ap == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    assert result.aupro == pytest.approx(obvious_aupro(pairs), abs=1e-12)


@pytest.mark.parametrize("shift", [0.0, 1000.0])  # as of a method whose scores have a large offset
def test_close_on_many_pixels(monkeypatch: pytest.MonkeyPatch, shift: float) -> None:
    pairs = [(scores + np.float32(shift), mask) for scores, mask in made(3, images=16, side=64)]
    exact = measured(pairs)
    monkeypatch.setattr(metrics, "EDGES", 4096)
    edges = thresholds(pairs, len(pairs))
    assert len(edges) <= 4096
    drawn = counts(pairs, edges).metrics()
    assert drawn.auroc == pytest.approx(exact.auroc, abs=2e-3)
    assert drawn.ap == pytest.approx(exact.ap, abs=2e-3)
    assert drawn.aupro == pytest.approx(exact.aupro, abs=2e-3)


def test_perfect_and_blind() -> None:
    mask = np.zeros((10, 10), np.bool_)
    mask[2:5, 2:5] = True
    perfect = measured([(mask.astype(np.float32), mask)])
    assert (perfect.auroc, perfect.ap, perfect.aupro) == (1.0, 1.0, 1.0)
    blind = measured([(np.zeros((10, 10), np.float32), mask)])
    assert blind.auroc == 0.5
    assert blind.ap == pytest.approx(0.09)
    assert blind.aupro == pytest.approx(0.15)  # the diagonal up to 0.3


def test_every_region_counts_the_same() -> None:
    mask = np.zeros((20, 20), np.bool_)
    mask[0:10, 0:10] = True
    mask[15, 15] = True
    scores = np.zeros((20, 20), np.float32)
    scores[0:10, 0:10] = 1.0  # the large region is found, the single pixel is not
    assert measured([(scores, mask)]).aupro == pytest.approx((0.5 + 0.5 + 0.5 * 0.3) / 2)


def test_touching_corners_are_one_region() -> None:
    mask = np.eye(8, dtype=np.bool_)
    half = np.where(np.arange(8)[:, None] < 4, mask, False).astype(np.float32)
    assert counts([(half, mask)], np.array([1.0], np.float32)).overlap[0] == pytest.approx(0.5)


def test_the_area_ends_between_two_points() -> None:
    x = np.array([0.0, 0.2, 0.4])
    assert area_up_to(x, np.array([0.0, 0.2, 0.4]), 0.3) == pytest.approx(0.045)
    assert area_up_to(x, np.array([1.0, 1.0, 1.0]), 0.4) == pytest.approx(0.4)
    assert area_up_to(np.array([0.0, 1.0]), np.array([0.0, 1.0]), 0.3) == pytest.approx(0.045)


def test_without_defects_there_is_nothing_to_measure() -> None:
    with pytest.raises(ValueError, match="normal and defective"):
        measured([(np.zeros((3, 3), np.float32), np.zeros((3, 3), np.bool_))])
