"""What RDNA is trained with, against slow plain versions and numbers by hand."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from detectors.rdna.losses import deception, discrimination, focal, similarity


def slow_similarity(one: NDArray[np.float64], other: NDArray[np.float64], span: float) -> float:
    """Pixel by pixel: weighted sums over a window of 11 x 11 with zeros beyond the border."""
    offsets = np.arange(-5, 6)
    weights = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    weights /= weights.sum()
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    values = []
    around = ((0, 0), (0, 0), (5, 5), (5, 5))
    for x, y in zip(*(np.pad(images, around).reshape(-1, *(side + 10 for side in images.shape[2:])) for images in (one, other)), strict=True):
        for row, column in np.ndindex(one.shape[2:]):
            a, b = (plane[row : row + 11, column : column + 11] for plane in (x, y))
            mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
            var_a, var_b = (weights * a * a).sum() - mean_a**2, (weights * b * b).sum() - mean_b**2
            both = (weights * a * b).sum() - mean_a * mean_b
            luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
            values.append(luminance * (2 * both + c2) / (var_a + var_b + c2))
    return float(np.mean(values))


def pair(height: int = 13, width: int = 17) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(2, 3, H, W) in [0, 1], alike."""
    random = np.random.default_rng(1)
    one = random.random((2, 3, height, width))
    return one, np.clip(one + random.normal(0, 0.2, one.shape), 0, 1)


def tensors(*arrays: NDArray[Any]) -> list[Tensor]:
    return [torch.from_numpy(array).float() for array in arrays]


@pytest.mark.parametrize(
    ("lowest", "highest", "span"),
    [
        (0.0, 1.0, 1.0),
        (-0.4, 1.0, 1.0),  # a little below 0 does not count
        (-0.6, 1.0, 2.0),
        (0.0, 127.0, 1.0),
        (0.0, 129.0, 255.0),
        (-0.6, 129.0, 256.0),
    ],
)
def test_similarity_is_the_slow_one_with_the_range_of_the_whole_batch_of_reconstructions(lowest: float, highest: float, span: float) -> None:
    reconstructions, images = pair()
    reconstructions[1, 2, 3, 4], reconstructions[0, 0, 7, 7] = lowest, highest
    found = similarity(*tensors(reconstructions, images)).item()
    assert found == pytest.approx(slow_similarity(reconstructions, images, span), abs=2e-5)


def test_the_range_of_the_images_does_not_count() -> None:
    reconstructions, images = pair()
    images[0, 0, 0, 0] = -0.9
    assert similarity(*tensors(reconstructions, images)).item() == pytest.approx(slow_similarity(reconstructions, images, 1.0), abs=2e-5)


def test_an_image_is_wholly_similar_to_itself_and_to_nothing_else() -> None:
    one, other = tensors(*pair())
    assert similarity(one, one).item() == pytest.approx(1, abs=1e-6)
    assert similarity(other, one).item() < 0.95
    assert similarity(1 - one, one).item() < 0


def logits(*probabilities: float) -> Tensor:
    """(1, 2, 1, N) of these probabilities of an anomaly."""
    p = torch.tensor(probabilities, dtype=torch.float64)
    return torch.stack([(1 - p).log() + 3, p.log() + 3])[None, :, None]  # a number added to both changes nothing


def mask(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[None, None, None]


def by_hand(true: float) -> float:
    """`true`: the probability given to the class that is right."""
    p = (1 - 1e-5) * true + 1e-5 * (1 - true) + 1e-5
    return -((1 - p) ** 2) * math.log(p)


def test_focal_loss_of_single_pixels() -> None:
    assert focal(logits(0.5), mask(1)).item() == pytest.approx(0.25 * math.log(2), rel=1e-4)
    for probability, truth in ((0.9, 1), (0.9, 0), (0.2, 1), (0.2, 0), (1 - 1e-9, 1)):
        expected = by_hand(probability if truth else 1 - probability)
        assert focal(logits(probability), mask(truth)).item() == pytest.approx(expected, rel=1e-6)


def test_focal_loss_is_the_mean_over_pixels_and_both_classes_weigh_the_same() -> None:
    one, other = focal(logits(0.8), mask(1)).item(), focal(logits(0.8), mask(0)).item()
    assert focal(logits(0.8, 0.8, 0.8, 0.8), mask(1, 0, 0, 0)).item() == pytest.approx((one + 3 * other) / 4, rel=1e-6)
    assert focal(logits(0.2), mask(0)).item() == pytest.approx(one, rel=1e-6)


def test_focal_loss_of_a_pixel_that_is_wholly_wrong_is_finite() -> None:
    certain = torch.tensor([[[[200.0]], [[-200.0]]]], requires_grad=True)
    loss = focal(certain, torch.ones(1, 1, 1, 1))
    assert loss.item() == pytest.approx(-math.log(2e-5), rel=1e-3)  # what the clamp lets through, and as much again
    loss.backward()  # type: ignore[no-untyped-call]
    assert certain.grad is not None
    assert torch.isfinite(certain.grad).all()


def test_a_discriminator_calls_what_was_drawn_1_and_what_is_real_0() -> None:
    drawn, real = torch.tensor([2.0, -1.0]), torch.tensor([0.5, -3.0])
    expected = 0.5 * ((math.log(1 + math.exp(-2)) + math.log(1 + math.e)) / 2 + (math.log(1 + math.exp(0.5)) + math.log(1 + math.exp(-3))) / 2)
    assert discrimination(drawn, real).item() == pytest.approx(expected)
    assert discrimination(torch.full((2,), 50.0), torch.full((2,), -50.0)).item() == pytest.approx(0, abs=1e-6)
    assert discrimination(torch.zeros(3), torch.zeros(3)).item() == pytest.approx(math.log(2))


def test_who_draws_wants_it_called_0() -> None:
    assert deception(torch.tensor([2.0, -1.0])).item() == pytest.approx((math.log(1 + math.exp(2)) + math.log(1 + math.exp(-1))) / 2)
    drawn = torch.zeros(2, requires_grad=True)
    deception(drawn).backward()  # type: ignore[no-untyped-call]
    assert drawn.grad is not None
    assert (drawn.grad > 0).all()  # going down lowers the logit, towards real
