"""Seeded scans of a rounded block with planted defects, in MVTec 3D-AD's layout: `python -m tests.scans FOLDER --train 60`.

A 3D camera half a metre above a tilted plane sees a block of 60 x 45 mm, 30 mm high, somewhat turned, shifted and larger or
smaller each time, and its textured colours. A dent is in z only and a stain in the colours only, to the last bit.
"""

import argparse
import io
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

DEFECTS = ("dent", "stain", "both")

FIELD = 0.1  # metres that a scan is wide and high
DISTANCE = 0.5  # metres from the camera to the plane
HEIGHT = 0.03
HALF = (0.030, 0.0225)  # half of the block's length and width, in metres
NOISE = 0.0001  # of z, in metres
BLOCK = np.array([168.0, 124.0, 86.0])  # RGB
PLANE = np.array([58.0, 64.0, 74.0])
STAINS = np.array([[70.0, 92.0, 120.0], [214.0, 206.0, 190.0], [66.0, 42.0, 30.0]])

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """image: (side, side, 3) uint8 RGB. xyz: (side, side, 3) float32 metres, 0 where not measured. mask: (side, side) bool, the planted defect."""

    image: NDArray[np.uint8]
    xyz: NDArray[np.float32]
    mask: NDArray[np.bool_]


def scan(defect: str, *, side: int, seed: Sequence[int]) -> Scan:
    """One scan of `defect` ("good" or one of DEFECTS). The same seed is the same block, picture and gaps, whatever the defect."""
    random, damage = np.random.default_rng([*seed, 0]), np.random.default_rng([*seed, 1])
    x, y = np.meshgrid(*[(np.arange(side) + 0.5) / side * FIELD - FIELD / 2] * 2)
    u, v = _turned(x, y, random.uniform(-0.003, 0.003, 2), random.uniform(-0.12, 0.12))
    size = random.uniform(0.97, 1.03)
    edge = (np.abs(u / (HALF[0] * size)) ** 4 + np.abs(v / (HALF[1] * size)) ** 4) ** 0.25  # 1 at the foot of the block
    relief = HEIGHT * random.uniform(0.98, 1.02) * _step(1 - edge, 0.0, 0.22) * (1 - 0.15 * edge**2)
    tilt = random.uniform(-0.03, 0.03, 2)
    z = DISTANCE + tilt[0] * x + tilt[1] * y - relief
    image = _picture(random, edge, relief, side)
    z += random.normal(0, NOISE, z.shape)
    missing = _missing(random, z)
    mask = np.zeros(z.shape, np.bool_)
    if defect != "good":
        spot = _spot(damage, u, v)
        mask = spot > 0.1
        depth, colour, strength = damage.choice([-1, 1]) * damage.uniform(0.003, 0.005), damage.integers(len(STAINS)), damage.uniform(0.6, 0.8)
        if defect in ("dent", "both"):
            z = z + depth * spot
        if defect in ("stain", "both"):
            share = strength * _step(spot, 0.0, 0.3)[..., None]
            image = image * (1 - share) + STAINS[colour] * share
    z[missing] = 0
    xyz = np.stack([np.where(missing, 0, x), np.where(missing, 0, y), z], axis=-1)
    return Scan(image=np.clip(image.round(), 0, 255).astype(np.uint8), xyz=xyz.astype(np.float32), mask=mask)


def write_scans(
    folder: Path, *, category: str = "block", train: int = 60, validation: int = 2, test_per_defect: int = 10, side: int = 256, seed: int = 0
) -> Path:
    """<folder>/<category>/{train,validation,test}/<defect>/{rgb,xyz,gt}/NNN.*; as many good ones in test as of each defect. The category's folder."""
    root = folder / category
    for split, defect, count in [
        ("train", "good", train),
        ("validation", "good", validation),
        *(("test", defect, test_per_defect) for defect in ("good", *DEFECTS)),
    ]:
        for number in range(count):
            one = scan(defect, side=side, seed=_seed(seed, split, defect, number))
            place = root / split / defect
            _write(place / "rgb" / f"{number:03}.png", ".png", one.image[..., ::-1])
            _write(place / "xyz" / f"{number:03}.tiff", ".tiff", one.xyz[..., ::-1])
            if split != "train":
                _write(place / "gt" / f"{number:03}.png", ".png", one.mask.astype(np.uint8) * 255)
    return root


def write_messages(folder: Path, *, defect: str = "good", count: int = 10, side: int = 256, seed: int = 0) -> list[Path]:
    """<folder>/NNN.npz: the first scans of that defect in the test split of `write_scans`, each with `image` and `xyz`, for `monitor publish`."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number in range(count):
        one = scan(defect, side=side, seed=_seed(seed, "test", defect, number))
        written.append(folder / f"{number:03}.npz")
        written[-1].write_bytes(npz(image=one.image, xyz=one.xyz))
    return written


def npz(**arrays: NDArray[np.generic]) -> bytes:
    """A payload of `image` with `xyz` or `depth`."""
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def _seed(seed: int, split: str, defect: str, number: int) -> tuple[int, ...]:
    return seed, zlib.crc32(f"{split}/{defect}".encode()), number


def _turned(x: Floats, y: Floats, shift: Floats, angle: float) -> tuple[Floats, Floats]:
    """Where on the block a point of the plane lies."""
    x, y = x - shift[0], y - shift[1]
    return np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x


def _step(values: Floats, low: float, high: float) -> Floats:
    """0 below `low`, 1 above `high`, smooth between."""
    share = np.clip((values - low) / (high - low), 0, 1)
    return np.asarray(share * share * (3 - 2 * share))


def _texture(random: np.random.Generator, side: int) -> Floats:
    """(side, side), mean 0 and deviation 1: grain of three sizes."""
    grain = np.zeros((side, side))
    for share, weight in ((0.004, 1.0), (0.015, 0.8), (0.05, 0.6)):
        layer = cv2.GaussianBlur(random.normal(size=(side, side)), (0, 0), max(0.6, share * side))
        grain += weight * layer / layer.std()
    return np.asarray((grain - grain.mean()) / grain.std())


def _picture(random: np.random.Generator, edge: Floats, relief: Floats, side: int) -> Floats:
    """(side, side, 3), 0 to 255. The light comes from nearly above: what is not a steep side of the block is lit alike."""
    albedo = BLOCK * random.uniform(0.97, 1.03) + 11 * _texture(random, side)[..., None] * np.array([1.0, 0.9, 0.7])
    plane = PLANE + 5 * _texture(random, side)[..., None]
    slope_y, slope_x = np.gradient(relief, FIELD / side)
    light = 1 - 0.12 * (1 - 1 / np.sqrt(1 + slope_x**2 + slope_y**2)) + 0.02 * np.clip(slope_x + slope_y, -1, 1)
    inside = _step(1 - edge, -0.02, 0.02)[..., None]
    image = cv2.GaussianBlur((plane * (1 - inside) + albedo * inside) * light[..., None], (0, 0), 0.5)
    return np.asarray(image + random.normal(0, 1.5, image.shape))


def _missing(random: np.random.Generator, z: Floats) -> NDArray[np.bool_]:
    """Where nothing is measured: specks, some of what is steep, and up to 3 rows or columns at some borders."""
    slope = np.hypot(*np.gradient(z, FIELD / len(z)))
    missing = random.random(z.shape) < np.where(slope > 4, 0.25, 0.002)
    missing |= cv2.GaussianBlur(random.normal(size=z.shape), (0, 0), 1.2) > 0.78
    for turn in range(4):
        if random.random() < 0.3:
            np.rot90(missing, turn)[: random.integers(1, 4)] = True
    return missing


def _spot(random: np.random.Generator, u: Floats, v: Floats) -> Floats:
    """1 in the middle of a roundish spot on the top of the block, falling to 0 at its border, 4 to 8 mm away."""
    centre = random.uniform(-0.55, 0.55, 2) * HALF
    along, across = _turned(u, v, centre, random.uniform(0, np.pi))
    radius = random.uniform(0.004, 0.008) * random.uniform(0.75, 1.0, 2)
    away = np.clip(np.hypot(along / radius[0], across / radius[1]), 0, 1)
    return np.asarray(0.5 + 0.5 * np.cos(np.pi * away))


def _write(path: Path, suffix: str, pixels: NDArray[np.generic]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(suffix, np.ascontiguousarray(pixels))[1].tobytes())


def main(write: Callable[[str], object] = print) -> None:
    parser = argparse.ArgumentParser(description="Write seeded scans with planted defects in the layout mvtec3d.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--category", default="block")
    parser.add_argument("--train", type=int, default=60)
    parser.add_argument("--test-per-defect", type=int, default=10)
    parser.add_argument("--side", type=int, default=256, help="pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--messages", type=Path, metavar="DIR", help="also write DIR/<defect>/NNN.npz of the test split, to publish")
    given = vars(parser.parse_args())
    messages = given.pop("messages")
    write(f"scans in {write_scans(given.pop('folder'), **given)}")
    if messages is not None:
        for defect in ("good", *DEFECTS):
            write_messages(messages / defect, defect=defect, count=given["test_per_defect"], side=given["side"], seed=given["seed"])
        write(f"messages in {messages}")


if __name__ == "__main__":
    main()
