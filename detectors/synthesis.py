"""Synthetic defects on normal images: to choose without labels what no normal image can tell apart, e.g. which score to use."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from monitor.ports import Progress
from monitor.types import FloatArray

KINDS = ("patch", "blob", "scratch", "smear")
DEFECTS = 200
One = TypeVar("One")


def synthetic_auroc(
    normals: Sequence[One],
    damaged: Callable[[One, One, Generator], One],
    score: Callable[[One], Mapping[str, float]],
    seed: int,
    progress: Progress,
) -> dict[str, float]:
    """Image AUROC of each score: held-out normals against at least DEFECTS of them with a synthetic defect.

    `damaged(normal, another, random)` draws one.
    """
    random = np.random.default_rng(seed)
    count = max(DEFECTS, len(normals))
    values: dict[str, list[float]] = {}
    for index in range(len(normals) + count):
        one = normals[index % len(normals)]
        if index >= len(normals):
            one = damaged(one, normals[int(random.integers(len(normals)))], random)
        for name, value in score(one).items():
            values.setdefault(name, []).append(value)
        progress("choose score", index + 1, len(normals) + count, {})
    labels = [0] * len(normals) + [1] * count
    return {name: float(roc_auc_score(labels, value)) for name, value in values.items()}


def defect(image: FloatArray, other: FloatArray, random: Generator) -> tuple[FloatArray, NDArray[np.bool_]]:
    """A normal image with one defect drawn at random, and the mask of the pixels that it changed.

    image, other: (H, W, 3) float32 in [0, 1]; `other`, a second normal image, lends the texture of patches.
    patch: foreign texture, blended in. blob: noise of one colour. scratch: a thin broken line. smear: a soft dark or bright stain.
    """
    if image.shape != other.shape:
        raise ValueError(f"images of one size are needed, got {image.shape} and {other.shape}")
    height, width = image.shape[:2]
    kind = random.choice(KINDS)
    shape = _line(height, width, random) if kind == "scratch" else _region(height, width, random)
    paint: NDArray[Any]
    strength = random.uniform(0.25, 1.0)
    if kind == "patch":
        paint = np.roll(np.rot90(other, 2), random.integers(0, (height, width)), axis=(0, 1))
    elif kind == "blob":
        grain = _blurred(random.normal(0, 0.15, (height, width)), random.uniform(0.5, 2.0))
        paint = random.uniform(0, 1, 3) + grain[..., None]
    else:
        dark = random.random() < 0.5
        paint = np.full(image.shape, random.uniform(0.0, 0.3) if dark else random.uniform(0.7, 1.0))
    if kind == "smear":
        strength *= 0.7
        shape = _blurred(shape, 0.02 * max(height, width))
    weight = (strength * shape)[..., None]
    changed = np.clip((1 - weight) * image + weight * paint, 0, 1).astype(np.float32)
    mask = np.abs(changed - image).max(axis=2) > 2 / 255
    return changed, mask


def dent(depth: FloatArray, inside: NDArray[np.bool_], random: Generator) -> FloatArray:
    """A normal relief (H, W) in centimetres with one dent or bump of 1 to 6 mm, somewhere `inside`, where there must be something."""
    height, width = depth.shape
    places = np.argwhere(inside)
    shape = np.zeros_like(depth)
    while not (shape > 0.5).any():
        shape = _blurred(_region(height, width, random, places[random.integers(len(places))]), 1.0) * inside
    changed: FloatArray = depth + np.float32(random.choice((-1, 1)) * random.uniform(0.1, 0.6)) * shape
    return changed


def _region(height: int, width: int, random: Generator, centre: NDArray[Any] | None = None) -> FloatArray:
    """(H, W) in [0, 1]: an irregular patch, 4 to 25 % of the image's side across, around the pixel `centre`, else anywhere inside."""
    grown = _blurred(random.normal(size=(height, width)), max(1.0, 0.02 * max(height, width)))
    grown = grown / max(float(grown.std()), 1e-6)
    rows, columns = np.mgrid[:height, :width]
    y, x = random.uniform(0.1, 0.9, 2) * (height, width) if centre is None else centre
    radius_y, radius_x = np.maximum(random.uniform(0.02, 0.125, 2) * (height, width), 1.0)
    angle = random.uniform(0, np.pi)
    along = (columns - x) * np.cos(angle) + (rows - y) * np.sin(angle)
    aside = (rows - y) * np.cos(angle) - (columns - x) * np.sin(angle)
    distance = np.sqrt((along / radius_x) ** 2 + (aside / radius_y) ** 2)
    inside = (distance + 0.25 * grown < 1).astype(np.float32)
    return _blurred(inside, 0.7)


def _line(height: int, width: int, random: Generator) -> FloatArray:
    """(H, W) in [0, 1]: a line of 3 to 6 pieces that bends as it goes, about 1 % of the image's side thick."""
    shape = np.zeros((height, width), np.float32)
    side = max(height, width)
    point = random.uniform(0.15, 0.85, 2) * (width, height)
    angle = random.uniform(0, 2 * np.pi)
    points = [point]
    for _ in range(random.integers(3, 7)):
        angle += random.normal(0, 0.4)
        point = point + random.uniform(0.02, 0.08) * side * np.array([np.cos(angle), np.sin(angle)])
        points.append(point)
    thickness = max(1, round(side * random.uniform(0.004, 0.016)))
    cv2.polylines(shape, [np.round(points).astype(np.int32)], isClosed=False, color=1.0, thickness=thickness)
    return _blurred(shape, 0.5)


def _blurred(plane: NDArray[Any], sigma: float) -> FloatArray:
    return np.asarray(cv2.GaussianBlur(plane, (0, 0), sigma), np.float32)
