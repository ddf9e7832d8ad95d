"""The demo's camera: looks at the flanges that a simulated line makes."""

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import anyio
import cv2
import numpy as np

from monitor.demo.books import Outcome, map_values, png
from monitor.evaluation.drawing import Scale, overlay
from monitor.ports import Progress, Sender
from monitor.simulation import plan
from monitor.simulation.parts import PART_FAULTS, Part, part
from monitor.types import Message

DETECTOR, SOURCE, STREAM = "flange", "camera", "line-1"
GOOD = 340
"""Parts to train on: three tenths calibrate, and a threshold for 1 % needs 99 of them."""
RATE = 4.0
"""Parts a second."""
_ONE_IN = 8
"""So many parts to a faulty one, roughly."""
_TRAINING_SEED, _LINE_SEED = 20260, 415
"""The line's parts are others than those of the training, so nothing is found because it was seen before."""
_ENLARGED = 2


@dataclass(eq=False, kw_only=True)
class PartOutcome(Outcome):
    part: Part

    def touched(self, region: Mapping[str, float]) -> bool:
        x, y, width, height = _box(region)
        return bool(self.part.mask[y : y + height, x : x + width].any())

    def where(self, region: Mapping[str, float]) -> str:
        """In pixels of the sent picture."""
        x, y, width, height = _box(region)
        rows, columns = self.part.mask.shape
        down = ("upper", "", "lower")[min(2, int(3 * (y + height / 2) / rows))]
        across = ("left", "", "right")[min(2, int(3 * (x + width / 2) / columns))]
        return f"{f'{down} {across}'.strip() or 'middle'}, {width}x{height} px at ({x}, {y})"

    def picture(self, map_threshold: float) -> bytes:
        """Side by side, twice as large: the picture as it was sent, the planted fault outlined, and what the map shows, if it was alerted."""
        side = _ENLARGED * self.part.image.shape[0]
        sent = np.asarray(cv2.resize(self.part.image, (side, side), interpolation=cv2.INTER_CUBIC), np.uint8)
        mask = cv2.resize(self.part.mask.astype(np.uint8), (side, side), interpolation=cv2.INTER_NEAREST).astype(np.bool_)
        panels = [sent, overlay(sent, np.zeros((side, side), np.float32), mask)]
        if self.map is not None and self.alert is not None:
            values = np.asarray(cv2.resize(map_values(self.map, self.alert["map"]), (side, side)), np.float32)
            panels.append(overlay(sent, Scale(map_threshold).heat(values), np.zeros_like(mask)))
        return png(np.hstack(panels))


class Camera:
    """See Feed: a part of the line in each message."""

    detector, source, good = DETECTOR, SOURCE, GOOD
    samples, how = "parts", f"{RATE:g} a second"

    def __init__(self, seconds: float) -> None:
        self.expected = round(seconds * RATE)
        self.faulty = len(PART_FAULTS) * max(1, round(self.expected / _ONE_IN / len(PART_FAULTS)))

    def write_good(self, folder: Path, progress: Progress) -> None:
        """Pictures to train on."""
        random = np.random.default_rng(_TRAINING_SEED)
        for number in range(GOOD):
            (folder / f"{number:04}.png").write_bytes(png(part(random).image))
            progress("good parts", number + 1, GOOD, {})

    async def publish(self, sender: Sender, outcomes: dict[str, Outcome]) -> None:
        random, run = np.random.default_rng(_LINE_SEED), uuid.uuid4().hex[:8]
        begun = anyio.current_time()
        for number, fault in enumerate(plan(random, PART_FAULTS, self.expected, self.faulty)):
            made, position, now = part(random, fault), f"{run}-{number:04}", time.time()
            outcomes[position] = PartOutcome(detector=DETECTOR, name=f"part {number:03}", fault=fault, severity=made.severity, sent=now, part=made)
            headers = (("id", position.encode()), ("content-type", b"image/png"), ("captured", b"%d" % round(1000 * now)))
            message = Message(source="", topic="", position=position, payload=png(made.image), received=now, key=STREAM.encode(), headers=headers)
            await sender.send([message])
            await anyio.sleep(max(0.0, begun + (number + 1) / RATE - anyio.current_time()))


def _box(region: Mapping[str, float]) -> tuple[int, int, int, int]:
    return int(region["x"]), int(region["y"]), int(region["width"]), int(region["height"])
