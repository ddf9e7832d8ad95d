"""A sample's image as networks take it. Never rescaled per image, and 8 bit stays 8 bit until it is on the device."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from monitor.errors import BadSample
from monitor.ports import Progress
from monitor.types import FloatArray, Sample

Pixels = NDArray[Any]
"""Colours of one image or more, (..., S, S, 3): uint8, or float32 in [0, 1]."""


def square_rgb(sample: Sample, side: int) -> Pixels:
    """-> (side, side, 3) uint8, or float32 in [0, 1] of a 16-bit image (by 65535). Grey is repeated; the aspect is not kept.

    Raises BadSample where there is no such image.
    """
    image = sample.image
    if image is None:
        raise BadSample("unsupported", f"an image is needed, this is {sample.sensors}")
    if image.ndim != 3 or image.shape[2] not in (1, 3) or image.dtype not in (np.uint8, np.uint16):
        raise BadSample("unsupported", f"an image of {image.shape} {image.dtype}: expected (H, W, 1 or 3) of 8 or 16 bit")
    if image.size == 0:
        raise BadSample("empty", f"an image of {image.shape} has no pixels")
    exact = image if image.dtype == np.uint8 else image.astype(np.float32) / np.float32(65535)
    small = resize(exact, side, side)
    if small.shape[2] == 1:
        small = np.repeat(small, 3, axis=2)
    return np.ascontiguousarray(small)


def read_square(samples: Sequence[Sample], side: int, phase: str, progress: Progress) -> Pixels:
    """All of a training's samples, each as `square_rgb`: (N, side, side, 3) uint8, or float32 in [0, 1] if any is of 16 bit."""
    prepared: list[Pixels] = []
    for index in range(len(samples)):
        prepared.append(square_rgb(samples[index], side))
        progress(phase, index + 1, len(samples), {})
    return stacked(prepared)


def resize(array: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """(H, W, C) or (H, W) -> (height, width, ...): area means where it shrinks, so nothing aliases; linear where it grows."""
    h, w = array.shape[:2]
    if (h, w) == (height, width):
        return array
    shrunk = cv2.resize(array, (min(w, width), min(h, height)), interpolation=cv2.INTER_AREA)
    grown = cv2.resize(shrunk, (width, height), interpolation=cv2.INTER_LINEAR)
    return grown if array.ndim == 2 else grown.reshape(height, width, array.shape[2])


def as_unit(pixels: Tensor) -> Tensor:
    """uint8 or float32 (B, 3, S, S) -> float32 in [0, 1], channels last."""
    if pixels.dtype == torch.uint8:
        return pixels.to(torch.float32, memory_format=torch.channels_last).div_(255.0)
    return pixels.to(torch.float32, memory_format=torch.channels_last)


def stacked(images: list[Pixels]) -> Pixels:
    """B times (S, S, 3) -> (B, S, S, 3) uint8, or float32 in [0, 1] if any is."""
    if all(image.dtype == np.uint8 for image in images):
        return np.stack(images)
    return np.stack([unit(image) for image in images])


def unit(pixels: Pixels) -> FloatArray:
    """uint8, or float32 in [0, 1] -> float32 in [0, 1]."""
    return pixels.astype(np.float32) / np.float32(255) if pixels.dtype == np.uint8 else pixels
