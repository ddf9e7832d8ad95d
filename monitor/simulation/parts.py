"""Parts as a camera sees them: seeded, good or with a planted fault.

Nothing here was measured on a machine. What differs between good ones (place, turn, light, grain) is drawn from `random` alone, so
that a seed gives the same parts again.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from monitor.types import FloatArray

PartFault = Literal["scratch", "stain", "crack", "chip", "missing bolt", "wrong bolt"]
PART_FAULTS: tuple[PartFault, ...] = get_args(PartFault)

BOLTS = 6
CHANGED = 4 / 255
"""A pixel belongs to a fault that changes one of its colours by more than this, in even light and without grain."""


def _colour(red: float, green: float, blue: float) -> FloatArray:
    return np.array((red, green, blue), np.float32)


_STEEL, _BRASS, _BLACK, _HOLE = _colour(0.56, 0.58, 0.61), _colour(0.80, 0.62, 0.27), _colour(0.16, 0.16, 0.18), _colour(0.09, 0.09, 0.10)
_TABLE, _RUST, _PLASTIC, _CRACK, _BARE = (
    _colour(0.16, 0.24, 0.30),
    _colour(0.34, 0.20, 0.10),
    _colour(0.80, 0.16, 0.12),
    _colour(0.12, 0.12, 0.12),
    _colour(0.93, 0.93, 0.93),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """A flange on its table. image: (S, S, 3) uint8 RGB. mask: (S, S) bool, where the fault is; empty of a good one.

    severity: from 0 to 1, how strongly a fault of its kind was drawn; 0 of a good one.
    """

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    fault: PartFault | None
    severity: float


def part(random: Generator, fault: PartFault | None = None, *, side: int = 192) -> Part:
    """One flange with six bolts, a little shifted and turned, in a little other light, with the camera's grain."""
    view = _View(random, side)
    good = view.flange()
    if fault is None:
        return Part(image=view.exposed(good, random), mask=np.zeros((side, side), np.bool_), fault=None, severity=0.0)
    severity = 1.0 if fault == "missing bolt" else random.uniform()
    seen = view.faulty(good, fault, severity, random)
    mask = np.abs(seen - good).max(axis=2) > CHANGED
    return Part(image=view.exposed(seen, random), mask=mask, fault=fault, severity=severity)


class _View:
    """How one part lies before the camera. Lengths are shares of the picture's side, (0, 0) is the middle of the part."""

    def __init__(self, random: Generator, side: int) -> None:
        self.side = side
        turn = math.radians(random.uniform(-1, 1))
        right, low = (random.uniform(-0.006, 0.006) for _ in range(2))
        rows, columns = (((axis + 0.5) / side - 0.5).astype(np.float32) for axis in np.mgrid[:side, :side])
        across, down = columns - right, rows - low
        self.x = across * math.cos(turn) + down * math.sin(turn)
        self.y = down * math.cos(turn) - across * math.sin(turn)
        self.radius = np.hypot(self.x, self.y)
        self.angle = np.arctan2(self.y, self.x)
        sixth = 2 * math.pi / BOLTS
        nearest = np.round(self.angle / sixth)
        self.bolt = np.mod(nearest, BOLTS)  # (S, S): the number of the nearest bolt
        folded = self.angle - sixth * nearest  # all bolts are drawn as one: x, y from the middle of the nearest
        self.bolt_x, self.bolt_y = self.radius * np.cos(folded) - 0.32, self.radius * np.sin(folded)
        self.table = _TABLE + 0.012 * np.sin(80 * rows)[..., None]  # ribs of the belt
        slope_x, slope_y = (random.uniform(-0.12, 0.12) for _ in range(2))
        self.light = random.uniform(0.95, 1.05) * (1 + slope_x * self.x + slope_y * self.y)

    def flange(self) -> FloatArray:
        """(S, S, 3) in [0, 1], in even light."""
        shadow = self._edge(np.hypot(self.x - 0.012, self.y - 0.016) - 0.43, soft=0.03)
        scene = self.table * (1 - 0.45 * shadow)[..., None]
        turned = (0.05 * np.cos(2 * (self.angle - 0.6)) + 0.015 * np.sin(260 * self.radius))[..., None]  # on a lathe
        scene = _over(scene, _STEEL + turned, self._edge(self.radius - 0.415))
        scene = _over(scene, _STEEL * 0.72, self._edge(abs(self.radius - 0.225) - 0.006))
        scene = _over(scene, _STEEL * 1.18 + turned, self._edge(self.radius - 0.185))
        scene = _over(scene, _HOLE, self._edge(self.radius - 0.105))
        scene = _over(scene, _STEEL * 0.6, self._edge(np.hypot(self.bolt_x, self.bolt_y) - 0.060))
        return self._bolted(scene, _BRASS)

    def faulty(self, good: FloatArray, fault: PartFault, severity: float, random: Generator) -> FloatArray:
        """The same with a fault."""
        if fault in ("missing bolt", "wrong bolt"):
            here = (self.bolt == random.integers(BOLTS))[..., None]
            socket = np.broadcast_to(_STEEL * 0.6, good.shape)
            if fault == "missing bolt":
                other = _over(socket, _HOLE, self._edge(np.hypot(self.bolt_x, self.bolt_y) - 0.030))
            else:
                black = 0.4 + 0.6 * severity
                other = self._bolted(socket, (1 - black) * _BRASS + black * _BLACK)
            return _over(good, other, self._edge(np.hypot(self.bolt_x, self.bolt_y) - 0.055) * here[..., 0])
        colour, coverage = self._mark(fault, severity, random)
        return _over(good, colour, coverage * self._edge(self.radius - 0.415))  # nothing of it lies on the table

    def _mark(self, fault: PartFault, severity: float, random: Generator) -> tuple[FloatArray, FloatArray]:
        """Colour and (S, S) coverage of what lies somewhere on the part."""
        where, toward = (random.uniform(0, 2 * math.pi) for _ in range(2))
        away = random.uniform(0.24, 0.36)
        x, y = away * math.cos(where), away * math.sin(where)
        if fault == "scratch":
            shape = self._stroke(x, y, toward, 0.10 + 0.18 * severity, 0.005 + 0.009 * severity, 0.25, random)
            return _BARE, shape * (0.4 + 0.6 * severity)
        if fault == "crack":
            x, y = 0.19 * math.cos(where), 0.19 * math.sin(where)
            shape = self._stroke(x, y, where, 0.10 + 0.13 * severity, 0.005 + 0.010 * severity, 0.4, random)
            return _CRACK, shape * (0.5 + 0.5 * severity)
        if fault == "chip":
            across, down = (random.uniform(0.6, 1.4) * (0.014 + 0.026 * severity) for _ in range(2))
            return _PLASTIC, self._patch(x, y, toward, across, down)
        across, down = (random.uniform(0.7, 1.3) * (0.03 + 0.05 * severity) for _ in range(2))
        soft = _floats(cv2.GaussianBlur(self._patch(x, y, toward, across, down), (0, 0), 0.012 * self.side))
        return _RUST, soft * (0.35 + 0.55 * severity)

    def exposed(self, scene: FloatArray, random: Generator) -> NDArray[np.uint8]:
        """In this view's light, with grain, as 8 bit."""
        grain = 0.008 * random.standard_normal(scene.shape, np.float32)
        return np.asarray(np.clip(scene * self.light[..., None] + grain, 0, 1) * 255 + 0.5, np.uint8)

    def _bolted(self, scene: FloatArray, metal: FloatArray) -> FloatArray:
        sides = [self.bolt_x * math.cos(turn) + self.bolt_y * math.sin(turn) for turn in (0, math.pi / 3, 2 * math.pi / 3)]
        scene = _over(scene, metal, self._edge(np.abs(sides).max(axis=0) - 0.046))
        return _over(scene, metal * 1.2, self._edge(np.hypot(self.bolt_x, self.bolt_y) - 0.026))

    def _edge(self, distance: FloatArray, soft: float = 0.0) -> FloatArray:
        """(S, S), below 0 inside -> how much of each pixel is covered, from 1 to 0 within a pixel and a half, or `soft`."""
        return _floats(np.clip(0.5 - distance / max(1.5 / self.side, soft), 0, 1))

    def _patch(self, x: float, y: float, turn: float, across: float, down: float) -> FloatArray:
        """An ellipse."""
        along = (self.x - x) * math.cos(turn) + (self.y - y) * math.sin(turn)
        aside = (self.y - y) * math.cos(turn) - (self.x - x) * math.sin(turn)
        return self._edge(_floats(np.hypot(along / across, aside / down) - 1) * min(across, down))

    def _stroke(self, x: float, y: float, toward: float, length: float, width: float, bend: float, random: Generator) -> FloatArray:  # noqa: PLR0917
        """A line of eight pieces that bends as it goes."""
        shape = np.zeros_like(self.x)
        for _ in range(8):
            toward += random.normal(0, bend)
            right, low = length / 8 * math.cos(toward), length / 8 * math.sin(toward)
            share = np.clip(((self.x - x) * right + (self.y - y) * low) / (right**2 + low**2), 0, 1)
            shape = np.maximum(shape, self._edge(np.hypot(self.x - x - share * right, self.y - y - share * low) - width / 2))
            x, y = x + right, y + low
        return _floats(shape)


def _over(scene: FloatArray, colour: FloatArray, coverage: FloatArray) -> FloatArray:
    """`colour`, (3,) or (S, S, 3), over the scene where `coverage` (S, S) in [0, 1] says."""
    return _floats(scene + coverage[..., None] * (colour - scene))


def _floats(array: Any) -> FloatArray:
    return np.asarray(array, np.float32)
