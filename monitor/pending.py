"""A delivery on its way through the pipeline, until it is settled or goes to the dead letter."""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import anyio

from monitor.errors import BadSample
from monitor.finished import FinishedSegments
from monitor.ports import Delivery
from monitor.serving import Model
from monitor.types import Sample


class Pending:
    """A delivery on its way: settled when the last of its parts has finished. A part is what one detector makes of it.

    The chunk of a recording has one part per segment that it lies in. Some of them may wait for further chunks; while all do, it rests.
    """

    __slots__ = ("_on_rest", "_on_settled", "_parts", "_resting", "_stirred", "_waiting", "arrived", "buried", "delivery")

    def __init__(self, delivery: Delivery, arrived: float, *, on_settled: Callable[[], None], on_rest: Callable[[bool], None]) -> None:
        """`on_rest` is told when it begins to rest, and when that is over."""
        self.delivery = delivery
        self.arrived = arrived  # by the loop's clock, which stands still while nothing can be handed out (Intake)
        self.buried = False  # it is on its way to the dead letter, once for all its parts
        self._on_settled = on_settled
        self._on_rest = on_rest
        self._parts = 1  # the intake's own, until it has dealt the sample out
        self._waiting = 0  # of these
        self._resting = False
        self._stirred: anyio.Event | None = None

    @property
    def pendings(self) -> Sequence["Pending"]:
        return (self,)

    @property
    def lasting(self) -> None:
        """That it is settled is for its source to remember."""
        return

    def deal(self) -> None:
        """One more part, in work."""
        self._parts += 1
        self._update()

    def wait(self) -> None:
        """One more part, which waits for other chunks."""
        self._parts += 1
        self._waiting += 1
        self._update()

    def resume(self) -> None:
        """A part that waited is in work."""
        self._waiting -= 1
        self._update()

    def finish(self) -> None:
        """A part that was in work is finished."""
        self._parts -= 1
        self._update()

    async def at_rest(self) -> None:
        """Returns when nothing of it is in work: it is settled, or rests."""
        while self._parts and not self._resting:
            self._stirred = anyio.Event()
            await self._stirred.wait()

    def _update(self) -> None:
        resting = 0 < self._parts == self._waiting
        if resting != self._resting:
            self._resting = resting
            self._on_rest(resting)
        if self._parts == 0:
            self.delivery.settle()
            self._on_settled()
        if self._stirred is not None:
            self._stirred.set()


class Part(Protocol):
    """What a detector finishes as a whole: a message, or a segment of a recording with all of its chunks."""

    @property
    def pendings(self) -> Sequence[Pending]:
        """The deliveries that hold it."""
        ...

    @property
    def lasting(self) -> tuple[FinishedSegments, str] | None:
        """The record in which it must stand before they are finished, and as what; None of a message, which comes again as a whole or not at all."""
        ...

    def finish(self) -> None:
        """In each of the deliveries."""
        ...


async def finish(parts: Iterable[Part]) -> None:
    """Every effect of these parts is safe elsewhere. What must be known after a restart is recorded first."""
    parts = list(parts)
    records: dict[FinishedSegments, list[str]] = defaultdict(list)
    for part in parts:
        if part.lasting is not None:
            record, key = part.lasting
            records[record].append(key)
    for record, keys in records.items():
        await record.add(keys)
    for part in parts:
        part.finish()


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """A sample that waits for one detector, prepared by the model that will score it."""

    part: Part
    sample: Sample
    prepared: Any
    model: Model


@dataclass(frozen=True, slots=True)
class Bad:
    """What goes to the dead letter, all messages of it: why (a BadReason), and the error in words."""

    part: Part
    reason: str
    error: str

    @classmethod
    def of(cls, part: Part, error: Exception) -> "Bad":
        if isinstance(error, BadSample):
            return cls(part, error.reason, str(error))
        return cls(part, "failed", f"{type(error).__name__}: {error}")


Bury = Callable[[Sequence[Bad]], Awaitable[None]]
"""Puts into the dead letter, and when that is confirmed finishes each."""
