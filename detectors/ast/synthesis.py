"""Synthetic defects on what this detector takes of a sample: on its image, in its relief, or in one of both."""

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from detectors.ast.depth import Scan
from detectors.ast.features import View
from detectors.images import Pixels, resize
from detectors.synthesis import defect, dent
from detectors.textures import procedural
from monitor.types import FloatArray

TRIES = 20
"""Defects that miss the foreground are drawn again so often: behind it none can be found."""


def damaged(normal: View, random: Generator) -> View:
    """A normal view with one defect drawn at random."""
    if normal.scan is None:
        assert normal.pixels is not None
        return View(pixels=stained(normal.pixels, None, random), scan=None)
    if normal.pixels is None or random.random() < 0.5:
        inside = foreground(normal.scan.mask, normal.scan.depth.shape)
        return View(pixels=normal.pixels, scan=Scan(dent(normal.scan.depth, inside, random), normal.scan.mask))
    return View(pixels=stained(normal.pixels, normal.scan.mask, random), scan=normal.scan)


def stained(pixels: Pixels, mask: FloatArray | None, random: Generator) -> Pixels:
    """(S, S, 3) -> the same, of the same type; the defect lies at least partly on the foreground, of which the mask (g, g) tells."""
    inside = None if mask is None else foreground(mask, pixels.shape[:2])
    textures = procedural(*pixels.shape[:2])
    for _ in range(TRIES):
        changed, where = defect(pixels, textures, random)
        if inside is None or (where & inside).any():
            break
    return changed


def foreground(mask: FloatArray, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """(g, g) -> `shape`, never all False: an object smaller than a position covers none of them whole."""
    large = resize(mask, *shape)
    return np.asarray(large > 0.5 * large.max())
