"""Synthetic anomalies on normal images: to train on, and to choose without labels what no normal image can tell apart, e.g. which score to use.

A texture, changed by three augmenters, shines through where Perlin noise is high (DRAEM, Zavrtanik et al., ICCV 2021; RDNA, Liu et al.).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from detectors.augmenters import Texture, augmented, turned
from detectors.images import Pixels, unit
from detectors.textures import TextureSource
from monitor.ports import Progress
from monitor.types import FloatArray

ROTATED = 0.3
ANOMALOUS = 0.5
LEVEL = 0.5
"""Noise above it is the anomaly."""
LARGEST_EXPONENT = 5
"""Noise has 1 to 2^5 cells along each side."""
LEAST_OPACITY = 0.2
TRIES = 1000
DENT = (1 / 800, 1 / 16)
"""Shares of the relief that a dent covers at least and at most."""
DEFECTS = 200
One = TypeVar("One")


@dataclass(frozen=True, slots=True, eq=False)
class Synthetic:
    """A sample to train on: image and what it was without anomaly, (S, S, 3) float32 in [0, 1], and where they differ, (S, S)."""

    image: FloatArray
    clean: FloatArray
    mask: NDArray[np.bool_]


def synthetic(image: Pixels, textures: TextureSource, random: Generator) -> Synthetic:
    """One training sample of a normal image (S, S, 3), uint8 or float32 in [0, 1]; `textures` gives its size.

    With probability 0.3 the image is turned by U(-90, 90) degrees, and with it the target. With probability 0.5 nothing else happens; of the others
    one in twenty has an empty mask.
    """
    if random.random() < ROTATED:
        image = turned(image, random.uniform(-90, 90))
    clean = unit(image)
    height, width = clean.shape[:2]
    if random.random() >= ANOMALOUS:
        return Synthetic(image=clean, clean=clean, mask=np.zeros((height, width), np.bool_))
    texture = painted(clean, textures, random)
    mask = anomaly_mask(height, width, random)
    return Synthetic(image=blended(clean, texture, mask, random.uniform(LEAST_OPACITY, 1)), clean=clean, mask=mask)


def defect(image: Pixels, textures: TextureSource, random: Generator) -> tuple[Pixels, NDArray[np.bool_]]:
    """A normal image (H, W, 3), uint8 or float32 in [0, 1], with one defect in one place, and the mask (H, W) of where it is; never an empty one.

    One connected piece of an anomaly mask: of all its pieces together every score finds some, and none can be told the better.
    """
    clean, (height, width) = unit(image), image.shape[:2]
    texture = painted(clean, textures, random)
    for _ in range(TRIES):
        mask = anomaly_mask(height, width, random)
        if mask.any():
            mask, _ = _piece(mask, random)
            changed = blended(clean, texture, mask, random.uniform(LEAST_OPACITY, 1))
            return np.round(changed * 255).astype(np.uint8) if image.dtype == np.uint8 else changed, mask
    raise ValueError(f"an image of {image.shape} has no room for an anomaly")


def painted(image: FloatArray, textures: TextureSource, random: Generator) -> Texture:
    """A texture, changed by three augmenters. Grey for a grey image: colour alone would give every anomaly away, and no real one."""
    texture = augmented(textures(random), random)
    grey = np.array_equal(image[..., 0], image[..., 1]) and np.array_equal(image[..., 1], image[..., 2])
    return np.asarray(cv2.cvtColor(cv2.cvtColor(texture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB), np.uint8) if grey else texture


def blended(clean: FloatArray, texture: Texture, mask: NDArray[np.bool_], opacity: float) -> FloatArray:
    """Inside the mask the texture, as far as it is opaque; elsewhere the very image."""
    if texture.shape != clean.shape:
        raise ValueError(f"an image of {clean.shape} needs textures of its size, got {texture.shape}")
    image = clean.copy()
    pixels, inside = image.reshape(-1, 3), np.flatnonzero(mask)
    pixels[inside] = np.float32(1 - opacity) * pixels[inside] + np.float32(opacity / 255) * texture.reshape(-1, 3)[inside]
    return image


def anomaly_mask(height: int, width: int, random: Generator) -> NDArray[np.bool_]:
    """(H, W): where Perlin noise, turned by U(-90, 90) degrees, is above 0.5; empty in one draw of twenty."""
    rows, columns = 2 ** random.integers(0, LARGEST_EXPONENT + 1, 2)
    noise = perlin(height, width, (int(rows), int(columns)), random)
    return np.asarray(turned(noise, random.uniform(-90, 90)) > LEVEL)


def perlin(height: int, width: int, cells: tuple[int, int], random: Generator) -> FloatArray:
    """(H, W) gradient noise of one octave in [-1, 1], with so many cells down and across; pixel i of a side lies at i * cells / side.

    The dot product of a gradient and the way to its corner, weighted by the fade, is a sum of products of one term of the row and one of the
    column, so the whole plane is two matrix products.
    """
    angle = random.uniform(0, 2 * np.pi, (cells[0] + 1, cells[1] + 1))
    down, down_away = _corners(height, cells[0])
    across, across_away = _corners(width, cells[1])
    noise = down @ np.cos(angle).astype(np.float32) @ across_away.T
    noise += down_away @ np.sin(angle).astype(np.float32) @ across.T
    noise *= np.float32(np.sqrt(2))
    return noise


@lru_cache(maxsize=64)
def _corners(side: int, cells: int) -> tuple[FloatArray, FloatArray]:
    """(side, cells + 1), twice: each pixel's weight at each corner, and that times the way from the corner, in cells."""
    place = np.arange(side) * cells / side
    cell = np.floor(place).astype(np.intp)
    way = place - cell
    fade = way**3 * (way * (6 * way - 15) + 10)
    pixels = np.arange(side)
    weight, away = np.zeros((2, side, cells + 1), np.float32)
    weight[pixels, cell], weight[pixels, cell + 1] = 1 - fade, fade
    away[pixels, cell], away[pixels, cell + 1] = (1 - fade) * way, fade * (way - 1)
    return weight, away


def dent(depth: FloatArray, inside: NDArray[np.bool_], random: Generator) -> FloatArray:
    """A normal relief (H, W) in centimetres with one dent or bump of 1 to 6 mm, somewhere `inside`, where there must be something."""
    places = np.argwhere(inside)
    shape = np.zeros_like(depth)
    while not (shape > 0.5).any():
        shape = _patch(depth.shape, places[random.integers(len(places))], random) * inside
    changed: FloatArray = depth + np.float32(random.choice((-1, 1)) * random.uniform(0.1, 0.6)) * shape
    return changed


def _patch(shape: tuple[int, ...], place: NDArray[np.intp], random: Generator) -> FloatArray:
    """(H, W) in [0, 1]: one connected piece of an anomaly mask, softened, moved so that it lies on `place`; all 0 if there is none that fits."""
    height, width = shape
    mask = anomaly_mask(height, width, random)
    if not mask.any():
        return np.zeros(shape, np.float32)
    piece, pixel = _piece(mask, random)
    if not DENT[0] <= piece.mean() <= DENT[1]:
        return np.zeros(shape, np.float32)
    down, across = place - pixel
    moved = cv2.warpAffine(piece.astype(np.float32), np.array([[1.0, 0, across], [0, 1.0, down]]), (width, height))
    return np.asarray(cv2.GaussianBlur(moved, (0, 0), 1.0), np.float32)


def _piece(mask: NDArray[np.bool_], random: Generator) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
    """A connected piece of a mask (H, W) that is not empty, the larger the likelier, and one of its pixels (row, column)."""
    pixels = np.argwhere(mask)
    pixel = pixels[random.integers(len(pixels))]
    _, labels = cv2.connectedComponents(mask.astype(np.uint8))
    return labels == labels[tuple(pixel)], pixel


def synthetic_auroc(
    normals: Sequence[One],
    damaged: Callable[[One, Generator], One],
    score: Callable[[One], Mapping[str, float]],
    seed: int,
    progress: Progress,
) -> dict[str, float]:
    """Image AUROC of each score: held-out normals against at least DEFECTS of them with a synthetic defect.

    `damaged(normal, random)` draws one.
    """
    random = np.random.default_rng(seed)
    count = max(DEFECTS, len(normals))
    values: dict[str, list[float]] = {}
    for index in range(len(normals) + count):
        one = normals[index % len(normals)]
        if index >= len(normals):
            one = damaged(one, random)
        for name, value in score(one).items():
            values.setdefault(name, []).append(value)
        progress("choose score", index + 1, len(normals) + count, {})
    labels = [0] * len(normals) + [1] * count
    return {name: float(roc_auc_score(labels, value)) for name, value in values.items()}
