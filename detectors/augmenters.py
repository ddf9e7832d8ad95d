"""The ten changes that DRAEM and RDNA make to a texture before it becomes an anomaly, with their published ranges.

Each takes a texture (H, W, 3) uint8 and a generator and gives a new one of the same shape. They are those of imgaug 0.4, which was told RGB there and
given BGR; here everything is RGB. None writes into what it is given.
"""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

Texture = NDArray[np.uint8]
"""(H, W, 3) RGB."""
Augmenter = Callable[[Texture, Generator], Texture]

APPLIED = 3
LEVELS = np.arange(256)
BRIGHTNESS = (
    (cv2.COLOR_RGB2YCrCb, cv2.COLOR_YCrCb2RGB, 0),
    (cv2.COLOR_RGB2HSV, cv2.COLOR_HSV2RGB, 2),
    (cv2.COLOR_RGB2HLS, cv2.COLOR_HLS2RGB, 1),
    (cv2.COLOR_RGB2LAB, cv2.COLOR_LAB2RGB, 0),
    (cv2.COLOR_RGB2LUV, cv2.COLOR_LUV2RGB, 0),
    (cv2.COLOR_RGB2YUV, cv2.COLOR_YUV2RGB, 0),
)
"""There, back, and which channel is the brightness."""


def augmented(texture: Texture, random: Generator) -> Texture:
    """Three of the ten, none twice, in the order drawn."""
    for name in random.permutation(NAMES)[:APPLIED]:
        texture = AUGMENTERS[name](texture, random)
    return texture


def gamma_contrast(texture: Texture, random: Generator) -> Texture:
    """255 (v / 255)^gamma, truncated; gamma ~ U(0.5, 2) for each channel."""
    return _mapped(texture, 255 * (LEVELS[:, None] / 255) ** random.uniform(0.5, 2.0, 3))


def brightness(texture: Texture, random: Generator) -> Texture:
    """The brightness, in one of six colour spaces, times U(0.8, 1.2) (truncated) and plus round(U(-30, 30)), in random order."""
    there, back, channel = BRIGHTNESS[random.integers(len(BRIGHTNESS))]
    factor, added = random.uniform(0.8, 1.2), np.round(random.uniform(-30, 30))
    multiplied_first = random.random() < 0.5
    level = np.trunc(np.clip(LEVELS * factor, 0, 255)) + added if multiplied_first else np.clip(LEVELS + added, 0, 255) * factor
    levels = np.stack([LEVELS] * 3, axis=1).astype(np.float64)
    levels[:, channel] = np.clip(level, 0, 255)
    return _recoloured(texture, there, back, levels)


def sharpness(texture: Texture, random: Generator) -> Texture:
    """PIL's, factor ~ U(0, 2): 0 is smoothed, 1 unchanged."""
    return np.asarray(ImageEnhance.Sharpness(Image.fromarray(texture)).enhance(random.uniform(0, 2)))


def hue_and_saturation(texture: Texture, random: Generator) -> Texture:
    """Both of HSV are moved by whole numbers in [-50, 50]: the hue on its circle, scaled from 255 to 180 steps; the saturation clipped."""
    hue, saturation = random.integers(-50, 51, 2)
    levels = np.stack([(LEVELS + np.trunc(hue / 255 * 180)) % 180, np.clip(LEVELS + saturation, 0, 255), LEVELS], axis=1)
    return _recoloured(texture, cv2.COLOR_RGB2HSV, cv2.COLOR_HSV2RGB, levels)


def solarize(texture: Texture, random: Generator) -> Texture:
    """In half of all cases values from floor(U(32, 128)) on are inverted."""
    threshold = np.floor(random.uniform(32, 128)) if random.random() < 0.5 else 256
    return _mapped(texture, np.where(threshold <= LEVELS, 255 - LEVELS, LEVELS))


def posterize(texture: Texture, random: Generator) -> Texture:
    """1 to 8 bits: each value falls to the lower edge of its bin."""
    size = 256 >> int(random.integers(1, 9))
    return _mapped(texture, LEVELS // size * size)


def invert(texture: Texture, random: Generator) -> Texture:  # noqa: ARG001 (nothing is drawn)
    return 255 - texture


def autocontrast(texture: Texture, random: Generator) -> Texture:
    """PIL's: each channel is stretched, after 0 to 20 % were cut at both ends of its histogram."""
    return np.asarray(ImageOps.autocontrast(Image.fromarray(texture), cutoff=int(random.integers(0, 21))))


def equalize(texture: Texture, random: Generator) -> Texture:  # noqa: ARG001 (nothing is drawn)
    """PIL's: the histogram of each channel becomes flat."""
    return np.asarray(ImageOps.equalize(Image.fromarray(texture)))


def rotate(texture: Texture, random: Generator) -> Texture:
    """By U(-45, 45) degrees."""
    return turned(texture, random.uniform(-45, 45))


AUGMENTERS: dict[str, Augmenter] = {
    one.__name__: one
    for one in (gamma_contrast, brightness, sharpness, hue_and_saturation, solarize, posterize, invert, autocontrast, equalize, rotate)
}
NAMES = list(AUGMENTERS)


def turned(image: NDArray[Any], degrees: float) -> NDArray[Any]:
    """(H, W) or (H, W, 3) -> the same size, turned about its centre; linear, and 0 where nothing lies."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)


def _mapped(texture: Texture, levels: NDArray[Any]) -> Texture:
    """What becomes of each value: `levels` (256,), or (256, 3) by channel; truncated."""
    table = levels.astype(np.uint8)
    return np.asarray(cv2.LUT(texture, table if table.ndim == 1 else table[None]))


def _recoloured(texture: Texture, there: int, back: int, levels: NDArray[Any]) -> Texture:
    return np.asarray(cv2.cvtColor(_mapped(np.asarray(cv2.cvtColor(texture, there)), levels), back))
