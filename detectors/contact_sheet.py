"""A picture of the synthetic anomalies that a training sees.

    python -m detectors.contact_sheet IMAGES_FOLDER OUT.png [--anomaly-source FOLDER] [--side 256] [--count 8] [--seed 0]

One row for each sample that carries an anomaly: the clean image (three of ten are turned, as in a training), the same with the anomaly, its outline,
the mask, and the texture before its three changes. Beside them, whatever the row: one texture, and what each augmenter makes of it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from detectors.augmenters import AUGMENTERS, Texture
from detectors.synthesis import Synthetic, synthetic
from detectors.textures import TextureSource, from_folder, images_below, procedural, read_image
from monitor.errors import ConfigError

COLUMNS = ("clean", "with anomaly", "outline", "mask", "texture before changes")
GAP, LINE = 6, 20
RED = (255, 40, 40)


def sheet(images: Sequence[Texture], textures: TextureSource, count: int, seed: int) -> Texture:
    """-> (H, W, 3) RGB: `count` samples of the images in turn, below each other, and at the right the augmenters."""
    random = np.random.default_rng(seed)
    rows = [_row(images[index % len(images)], textures, random) for index in range(count)]
    texture = textures(random)
    changed = {"texture": texture} | {name: change(texture, random) for name, change in AUGMENTERS.items()}
    tiles = [_titled(tile, name) for name, tile in changed.items()]
    blank = np.full_like(tiles[0], 255)
    columns = -(-len(tiles) // count)
    tiles += [blank] * (columns * count - len(tiles))
    return np.vstack([np.hstack([row, *tiles[index::count]]) for index, row in enumerate(rows)])


def _row(image: Texture, textures: TextureSource, random: Generator) -> Texture:
    drawn: list[Texture] = []

    def kept(random: Generator) -> Texture:
        drawn.append(textures(random))
        return drawn[-1]

    sample = synthetic(image, kept, random)
    while not sample.mask.any():
        sample = synthetic(image, kept, random)
    tiles = (_bytes(sample.clean), _bytes(sample.image), _outlined(sample), np.repeat(_bytes(sample.mask)[..., None], 3, axis=2), drawn[-1])
    return np.hstack([_titled(tile, name) for tile, name in zip(tiles, COLUMNS, strict=True)])


def _bytes(plane: NDArray[Any]) -> NDArray[np.uint8]:
    return np.round(255 * plane.astype(np.float32)).astype(np.uint8)


def _outlined(sample: Synthetic) -> Texture:
    edges, _ = cv2.findContours(sample.mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    return np.asarray(cv2.drawContours(_bytes(sample.image), edges, -1, RED, 1), np.uint8)


def _titled(tile: Texture, name: str) -> Texture:
    """The tile on white, with its name above."""
    framed = cv2.copyMakeBorder(tile, LINE, GAP, GAP, GAP, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    return np.asarray(cv2.putText(framed, name, (GAP, LINE - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA), np.uint8)


def main(arguments: Sequence[str] | None = None) -> int:
    described, _, columns = (__doc__ or "").strip().split("\n\n")
    parser = argparse.ArgumentParser(prog="python -m detectors.contact_sheet", description=described, epilog=columns)
    parser.add_argument("images", type=Path, metavar="IMAGES_FOLDER", help="normal images, also those in folders below")
    parser.add_argument("out", type=Path, metavar="OUT.png", help="the picture to write")
    parser.add_argument("--anomaly-source", type=Path, metavar="FOLDER", help="textures; without it they are drawn")
    parser.add_argument("--side", type=int, default=256, help="pixels of a sample, at least 32 (default: 256)")
    parser.add_argument("--count", type=int, default=8, help="samples, 1 to 100 (default: 8)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    if not 32 <= given.side <= 2048:
        parser.error(f"--side {given.side}: 32 to 2048 pixels")
    if not 1 <= given.count <= 100:
        parser.error(f"--count {given.count}: 1 to 100 samples")
    if given.seed < 0:
        parser.error(f"--seed {given.seed}: 0 or more")
    try:
        images = [read_image(path, given.side) for path in images_below(given.images, given.count, given.seed)]
        textures = procedural(given.side, given.side) if given.anomaly_source is None else from_folder(given.anomaly_source, given.side, given.seed)
        _, png = cv2.imencode(".png", cv2.cvtColor(sheet(images, textures, given.count, given.seed), cv2.COLOR_RGB2BGR))
        given.out.write_bytes(png.tobytes())
    except ConfigError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"{given.out}: cannot be written: {error.strerror}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
