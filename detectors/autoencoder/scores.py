"""What a reconstruction error says. All in fp32; images and reconstructions are (B, 3, S, S) in [0, 1]."""

import torch
from torch import Tensor

from detectors.heatmap import filter_matrix

TOP_SHARE = 0.01


def pixel_l1(images: Tensor, reconstructions: Tensor) -> Tensor:
    """(B, S, S): mean over the colours of |reconstruction - image|."""
    return (reconstructions - images).abs().mean(dim=1)


def top_mean(errors: Tensor, share: float = TOP_SHARE) -> Tensor:
    """(B, H, W) -> (B,): mean of the largest `share` of the pixels, rounded down, at least one."""
    flat = errors.flatten(1)
    k = max(1, int(share * flat.shape[1]))
    return flat.topk(k, dim=1).values.mean(dim=1)


def dissimilarity(images: Tensor, reconstructions: Tensor) -> Tensor:
    """(B, S, S): 1 - SSIM of the greys in 7x7 boxes, the border mirrored with its edge (Wang et al. 2004, as scikit-image).

    The published script first rounds the reconstruction down to 8 bit. Not so here: a step of 1/255 would amplify the small
    differences between precisions.
    """
    x, y = _grey(images), _grey(reconstructions)
    c1, c2 = 0.01**2, 0.03**2
    mean_x, mean_y = _box(x), _box(y)
    unbiased = 49 / 48
    var_x = unbiased * (_box(x * x) - mean_x * mean_x)
    var_y = unbiased * (_box(y * y) - mean_y * mean_y)
    cov = unbiased * (_box(x * y) - mean_x * mean_y)
    similarity = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return 1 - similarity


def _grey(images: Tensor) -> Tensor:
    weights = torch.tensor((0.299, 0.587, 0.114), device=images.device)
    return (images * weights[:, None, None]).sum(dim=1)


def _box(maps: Tensor) -> Tensor:
    matrix = filter_matrix(maps.shape[-1], (1 / 7,) * 7, maps.device, repeat_edge=True)
    return matrix @ maps @ matrix.T
