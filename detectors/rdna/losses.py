"""What the networks of RDNA are trained with; all in fp32. Images are (B, C, H, W), reconstructions the same (specification, section 4)."""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from detectors.heatmap import gaussian_kernel

WINDOW, SIGMA = 11, 1.5
GAMMA = 2.0
EDGE = 1e-5
"""One-hot targets are clamped to [EDGE, 1 - EDGE], and probabilities raised by it before the logarithm."""


def similarity(reconstructions: Tensor, images: Tensor) -> Tensor:
    """Mean SSIM over everything: per channel, under a Gaussian window of 11 pixels and sigma 1.5, zeros beyond the border.

    The dynamic range L is 1, or 255 where the reconstructions exceed 128; one more once they fall below -0.5: a linear output may.
    """
    high = torch.where(reconstructions.amax() > 128, 255.0, 1.0)
    low = torch.where(reconstructions.amin() < -0.5, -1.0, 0.0)
    c1, c2 = (0.01 * (high - low)) ** 2, (0.03 * (high - low)) ** 2
    x, y = reconstructions, images
    mean_x, mean_y, of_xx, of_yy, of_xy = _blurred(torch.cat((x, y, x * x, y * y, x * y), dim=1)).chunk(5, dim=1)
    var_x, var_y, cov = of_xx - mean_x**2, of_yy - mean_y**2, of_xy - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return (luminance * (2 * cov + c2) / (var_x + var_y + c2)).mean()


def focal(logits: Tensor, masks: Tensor) -> Tensor:
    """logits (B, 2, H, W) of normal and anomalous, masks (B, 1, H, W) of 0 and 1: mean of -(1 - p)^2 log p, p that of the true class."""
    normal, anomalous = functional.softmax(logits, dim=1).chunk(2, dim=1)
    target = masks.clamp(EDGE, 1 - EDGE)
    p = target * anomalous + (1 - target) * normal + EDGE
    return (-((1 - p) ** GAMMA) * p.log()).mean()


def discrimination(drawn: Tensor, real: Tensor) -> Tensor:
    """Logits (B,) of a discriminator -> its loss: what a network drew is 1, what is real 0 (the reverse of the usual)."""
    cross_entropy = functional.binary_cross_entropy_with_logits
    return 0.5 * (cross_entropy(drawn, torch.ones_like(drawn)) + cross_entropy(real, torch.zeros_like(real)))


def deception(drawn: Tensor) -> Tensor:
    """Logits (B,) of a discriminator -> the loss of the network that drew: it wants them taken for real."""
    return functional.binary_cross_entropy_with_logits(drawn, torch.zeros_like(drawn))


def _blurred(maps: Tensor) -> Tensor:
    channels = maps.shape[1]
    weights = _window(maps.device)
    down = functional.conv2d(maps, weights.view(1, 1, -1, 1).expand(channels, 1, -1, 1), padding=(WINDOW // 2, 0), groups=channels)
    return functional.conv2d(down, weights.view(1, 1, 1, -1).expand(channels, 1, 1, -1), padding=(0, WINDOW // 2), groups=channels)


@lru_cache(maxsize=8)
def _window(device: torch.device) -> Tensor:
    return torch.tensor(gaussian_kernel(SIGMA, WINDOW // 2), dtype=torch.float32, device=device)
