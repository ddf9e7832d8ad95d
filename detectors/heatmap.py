"""Maps of how strange each place is: smoothed on the device, enlarged to the size the image was sent in."""

from collections.abc import Sequence
from functools import lru_cache
from typing import overload

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from detectors.images import resize
from monitor.types import FloatArray


@lru_cache(maxsize=64)
def filter_matrix(side: int, kernel: tuple[float, ...], device: torch.device, *, repeat_edge: bool) -> Tensor:
    """(side, side): the matrix that filters one axis with an odd `kernel`, the border mirrored with or without its edge.

    As matrix products, filters are exact in fp32 on every device.
    """
    radius = len(kernel) // 2
    period = 2 * side if repeat_edge else max(2 * side - 2, 1)
    matrix = np.zeros((side, side))
    rows = np.arange(side)
    for offset, weight in zip(range(-radius, radius + 1), kernel, strict=True):
        columns = (rows + offset) % period
        mirrored = period - 1 - columns if repeat_edge else period - columns
        np.add.at(matrix, (rows, np.where(columns < side, columns, mirrored)), weight)
    return torch.tensor(matrix, dtype=torch.float32, device=device)


def gaussian_kernel(sigma: float, radius: int | None = None) -> tuple[float, ...]:
    """2 `radius` + 1 weights of a Gaussian, normalised; by default cut at 10/3 sigma (sigma 3: the published 21)."""
    radius = max(1, round(sigma * 10 / 3)) if radius is None else radius
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return tuple(float(weight) for weight in weights / weights.sum())


def smooth(maps: Tensor, sigma: float) -> Tensor:
    """(B, H, W) fp32 -> the same, blurred by a Gaussian of `sigma` pixels, mirrored at the border; 0 leaves it as it is."""
    if sigma == 0:
        return maps
    kernel = gaussian_kernel(sigma)
    down = filter_matrix(maps.shape[1], kernel, maps.device, repeat_edge=False)
    across = filter_matrix(maps.shape[2], kernel, maps.device, repeat_edge=False)
    return down @ maps @ across.T


def without_border(maps: Tensor, border: int) -> Tensor:
    """(B, H, W) -> (B, H - 2 border, W - 2 border)."""
    return maps[:, border : maps.shape[1] - border, border : maps.shape[2] - border]


def with_border(maps: Tensor, border: int) -> Tensor:
    """The reverse of without_border: the band repeats what is nearest to it."""
    if border == 0:
        return maps
    return functional.pad(maps[:, None], (border,) * 4, mode="replicate")[:, 0]


def enlarged(maps: Tensor, scale: int) -> Tensor:
    """(B, h, w) -> (B, scale h, scale w) along cubics, which may overshoot a little."""
    return functional.interpolate(maps[:, None], scale_factor=scale, mode="bicubic", align_corners=False)[:, 0]


class AtSentSize(Sequence[FloatArray]):
    """Maps (B, S, S) of images of `sizes` (height, width), each enlarged when it is asked for."""

    def __init__(self, maps: FloatArray, sizes: Sequence[tuple[int, int]]) -> None:
        self._maps = maps
        self._sizes = sizes

    def __len__(self) -> int:
        return len(self._sizes)

    @overload
    def __getitem__(self, index: int) -> FloatArray: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[FloatArray]: ...

    def __getitem__(self, index: int | slice) -> FloatArray | Sequence[FloatArray]:
        if isinstance(index, slice):
            return AtSentSize(self._maps[index], self._sizes[index])
        return at_size(self._maps[index], *self._sizes[index])


def at_size(map_: FloatArray, height: int, width: int) -> FloatArray:
    """(S, S) -> (height, width) float32, the size of the sent image."""
    return np.ascontiguousarray(resize(map_, height, width), dtype=np.float32)
