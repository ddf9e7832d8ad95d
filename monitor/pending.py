"""A delivery on its way through the pipeline, until it is settled or goes to the dead letter."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from monitor.ports import Delivery
from monitor.serving import Model
from monitor.types import Sample


class Pending:
    """A delivery on its way: settled when the last of its detectors has finished."""

    __slots__ = ("_parts", "arrived", "buried", "delivery", "on_settled")

    def __init__(self, delivery: Delivery, arrived: float, on_settled: Callable[[], None]) -> None:
        self.delivery = delivery
        self.arrived = arrived  # by the loop's clock, which stands still while nothing can be handed out (Intake)
        self.on_settled = on_settled
        self.buried = False  # it is on its way to the dead letter, once for all its detectors
        self._parts = 1  # the intake's own, until it has dealt the sample out

    def deal(self) -> None:
        """One more detector has it."""
        self._parts += 1

    def finish(self) -> None:
        """One fewer has it."""
        self._parts -= 1
        if self._parts == 0:
            self.delivery.settle()
            self.on_settled()


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """A sample that waits for one detector, prepared by the model that will score it."""

    pending: Pending
    sample: Sample
    prepared: Any
    model: Model


@dataclass(frozen=True, slots=True)
class Bad:
    """A delivery for the dead letter: why (a BadReason), and the error in words."""

    pending: Pending
    reason: str
    error: str


Bury = Callable[[Sequence[Bad]], Awaitable[None]]
"""Puts into the dead letter, and when that is confirmed finishes each."""
