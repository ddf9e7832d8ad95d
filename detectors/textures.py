"""Textures of which synthetic anomalies are made: images from a folder, or patterns drawn at random."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from monitor.errors import ConfigError
from monitor.types import FloatArray

TextureSource = Callable[[Generator], NDArray[np.uint8]]
"""Draws one texture (H, W, 3) RGB; what it gives is not to be written into."""

MOST, MOST_BYTES = 1000, 1024**3
"""Images of a folder that are held in memory at most, and their bytes; at 256 px a thousand take 200 MB."""
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})


def from_folder(folder: Path, side: int, seed: int) -> TextureSource:
    """The images in `folder` and all below it, at most MOST of them in MOST_BYTES, each brought to side x side whatever its aspect.

    Reads them at once. Raises ConfigError where there is no folder, no image in it, or one that cannot be read.
    """
    paths = images_below(folder, min(MOST, max(1, MOST_BYTES // (3 * side**2))), seed)
    images = np.empty((len(paths), side, side, 3), np.uint8)
    for index, path in enumerate(paths):
        images[index] = read_image(path, side)
    images.flags.writeable = False

    def draw(random: Generator) -> NDArray[np.uint8]:
        one: NDArray[np.uint8] = images[random.integers(len(images))]
        return one

    return draw


def procedural(height: int, width: int) -> TextureSource:
    """Patterns drawn at random, for where there is no folder: clouds, stripes, weaves, grains, cells and gradients, in two to four colours."""

    def draw(random: Generator) -> NDArray[np.uint8]:
        field = PATTERNS[random.integers(len(PATTERNS))](height, width, random)
        if random.random() < 0.6:
            field = field + random.uniform(0.1, 0.6) * PATTERNS[random.integers(len(PATTERNS))](height, width, random)
        if random.random() < 0.6:
            field = field + random.uniform(0.05, 0.4) * _grain(height, width, random)
        return _coloured(field, random)

    return draw


def images_below(folder: Path, most: int, seed: int) -> list[Path]:
    """At most so many images in a folder or below it, drawn by the seed, in the order of their names. Raises ConfigError where there is none."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder of images")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ConfigError(f"{folder}: no image in it or below ({', '.join(sorted(SUFFIXES))})")
    drawn = np.random.default_rng(seed).permutation(len(paths))[:most]
    return [paths[index] for index in sorted(drawn)]


def read_image(path: Path, side: int) -> NDArray[np.uint8]:
    """(side, side, 3) RGB, whatever its aspect: area means where both sides shrink, else linear. Raises ConfigError."""
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB) if data.size else None
    except (OSError, cv2.error) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if image is None:
        raise ConfigError(f"{path}: not an image that can be decoded")
    shrinks = min(image.shape[:2]) >= side
    return np.asarray(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR), np.uint8)


def _coloured(field: FloatArray, random: Generator) -> NDArray[np.uint8]:
    """(H, W) of any range -> (H, W, 3): its values from the lowest to the highest run through two to four colours.

    They differ more in lightness than in hue, as those of materials do.
    """
    count = int(random.integers(2, 5))
    contrast = random.uniform(50, 255)
    lightness = random.uniform(0, 255 - contrast) + contrast * random.permutation(np.linspace(0, 1, count))
    tint = random.exponential(30) * random.normal(size=3) + random.exponential(15) * random.normal(size=(count, 3))
    colours = np.clip(lightness[:, None] + tint - tint.mean(axis=1, keepdims=True), 0, 255)
    stops = np.concatenate(([0], np.sort(random.uniform(20, 235, count - 2)), [255]))
    table = np.stack([np.interp(np.arange(256), stops, colours[:, channel]) for channel in range(3)], axis=1).astype(np.uint8)
    level = (255 * _level(field)).astype(np.uint8)
    return np.asarray(cv2.LUT(cv2.merge([level] * 3), table[None]))


def _clouds(height: int, width: int, random: Generator) -> FloatArray:
    """Octaves of smooth noise, often drawn out in one direction: stains, rust, marble."""
    field = np.zeros((height, width), np.float32)
    rows, columns = 2 ** random.uniform(0.5, 4, 2)
    fading = random.uniform(0.35, 0.8)
    for octave in range(5):
        grid = random.random((min(height, round(rows) + 2), min(width, round(columns) + 2)), np.float32)
        field += fading**octave * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        rows, columns = 2 * rows, 2 * columns
    if random.random() < 0.3:
        field = np.abs(field - field.mean())  # veins
    return _level(field)


def _stripes(height: int, width: int, random: Generator) -> FloatArray:
    """Waves at an angle, bent by smooth noise: wood, brushed metal, corrugation."""
    return _wave(_along(height, width, random, random.uniform(0, np.pi)), random)


def _weave(height: int, width: int, random: Generator) -> FloatArray:
    """Two waves across each other, by their product or the higher: checks, cloth, grids, dots."""
    angle = random.uniform(0, np.pi)
    one = _wave(_along(height, width, random, angle), random)
    other = _wave(_along(height, width, random, angle + np.pi / 2), random)
    return np.asarray(one * other if random.random() < 0.5 else np.maximum(one, other))


def _grain(height: int, width: int, random: Generator) -> FloatArray:
    """Speckle of 1 to some pixels, round or drawn out: sand, cast iron, fibres."""
    noise = random.random((height, width), np.float32)
    across, down = np.exp(random.uniform(np.log(0.3), np.log(4.0), 2))
    return _level(np.asarray(cv2.GaussianBlur(noise, (0, 0), sigmaX=across, sigmaY=down), np.float32))


def _cells(height: int, width: int, random: Generator) -> FloatArray:
    """Cells around points strewn at random, each of one level, darker towards its edge: gravel, blobs, cracks."""
    count = int(np.exp(random.uniform(np.log(8), np.log(600))))
    seeds = np.full((height, width), 255, np.uint8)
    seeds[random.integers(0, height, count), random.integers(0, width, count)] = 0
    distance, labels = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_CCOMP)
    levels = random.random(count + 1, np.float32)
    relief = 1 - np.minimum(distance / np.float32(0.7 * np.sqrt(height * width / count)), 1)
    share = np.float32(random.uniform(0, 1))
    return np.asarray(share * levels[labels] + (1 - share) * relief)


def _gradient(height: int, width: int, random: Generator) -> FloatArray:
    """From one side to the other, or around a point."""
    if random.random() < 0.5:
        return _level(_along(height, width, random, random.uniform(0, 2 * np.pi)))
    row, column = random.uniform(-0.2, 1.2, 2) * (height, width)
    y, x = np.arange(height, dtype=np.float32)[:, None] - np.float32(row), np.arange(width, dtype=np.float32) - np.float32(column)
    return _level(np.sqrt(y * y + x * x))


Pattern = Callable[[int, int, Generator], FloatArray]
"""Height and width -> (H, W) in [0, 1]."""
PATTERNS: tuple[Pattern, ...] = (_clouds, _clouds, _stripes, _weave, _grain, _cells, _gradient)


def _along(height: int, width: int, random: Generator, angle: float) -> FloatArray:
    """(H, W): how far along a direction each pixel lies, in shares of the longer side, bent by smooth noise."""
    side = max(height, width)
    y, x = np.arange(height, dtype=np.float32)[:, None] / side, np.arange(width, dtype=np.float32) / side
    grid = random.random(random.integers(2, 7, 2), np.float32)
    bent = np.float32(random.uniform(0, 0.12) if random.random() < 0.6 else 0) * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y + bent)


def _wave(along: FloatArray, random: Generator) -> FloatArray:
    """A sine, or one so steep that it is a band with edges; 3 to 60 of them."""
    turns = np.exp(random.uniform(np.log(3), np.log(60)))
    steep = np.float32(np.exp(random.uniform(np.log(0.5), np.log(20))))
    wave = steep * np.sin(np.float32(2 * np.pi * turns) * along + np.float32(random.uniform(0, 2 * np.pi)))
    return _level(np.clip(wave, -1, 1))


def _level(field: FloatArray) -> FloatArray:
    """-> [0, 1]."""
    lowest, highest, _, _ = cv2.minMaxLoc(field)
    return (field - np.float32(lowest)) * np.float32(1 / max(highest - lowest, 1e-6))
