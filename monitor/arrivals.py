"""The deliveries of one source that are out, and the clock by which they arrive."""

import math
from collections import deque
from collections.abc import Callable


class Arrivals:
    """The clock is the loop's (`now`), but stands still while nothing can be handed out: who is not heard then is not silent.

    Chunks of recordings rest while all that is left of them waits for further chunks.
    """

    def __init__(self, max_in_flight: int, expect_every: float | None, taken: Callable[[], int]) -> None:
        """`taken` gives the places of max_in_flight that are: by what is out, or settled and not committed yet, where that keeps its place."""
        self.unsettled = 0
        """Deliveries that were handed out and not settled."""
        self.resting = 0
        """Of these."""
        self.undealt: deque[float] = deque()
        """When those arrived that have not been dealt out, oldest first."""
        self._max_in_flight = max_in_flight
        self._patience = expect_every or math.inf
        self._taken = taken
        self._held: float | None = None  # since when all places are taken, so that the source hands out nothing
        self._moved = 0.0  # when a delivery was settled or went to rest last, or went into work after none was
        self._deaf = 0.0  # seconds in which nothing could be handed out: held, or the process stood still

    @property
    def stuck(self) -> bool:
        """Whether all that are out rest while all places are taken: only closing a segment makes room."""
        return not self.undealt and 0 < self.resting == self.unsettled and self._full

    def came(self, now: float) -> float:
        """One more is out; gives when it arrived."""
        self._work(now)
        self.unsettled += 1
        self._hold(now)
        arrived = now - self._deaf
        self.undealt.append(arrived)
        return arrived

    def settled(self, now: float) -> None:
        """One fewer is out; it did not rest."""
        self._go_on(now)
        self._held = None
        self.unsettled -= 1
        self._hold(now)

    def rests(self, now: float, resting: bool) -> None:
        """One of those that are out begins to rest, or is in work again."""
        if resting:
            if self._held is None:
                self._go_on(now)
            self.resting += 1
        else:
            self._work(now)
            self.resting -= 1

    def stood_still(self, seconds: float) -> None:
        """The process did: what came meanwhile is not read yet."""
        self._deaf += seconds

    def listened(self, now: float) -> float:
        """The clock."""
        self._hold(now)  # places are free without a settlement when their connection is over
        held = self._held_since(now)
        return (now if held is None else held) - self._deaf

    def heard_until(self, now: float) -> float:
        """By the clock: all that arrived until then was dealt out."""
        listened = self.listened(now)
        return min(listened, self.undealt[0]) if self.undealt else listened

    @property
    def _full(self) -> bool:
        return self._taken() >= self._max_in_flight

    def _hold(self, now: float) -> None:
        """The clock stands still as long as all places are taken."""
        if self._full and self._held is None:
            self._held = now
        elif self._held is not None and not self._full:
            self._go_on(now)
            self._held = None

    def _held_since(self, now: float) -> float | None:
        """None while something can be handed out.

        Where nothing is settled for so long, a broker may hold back by a limit of its own: MQTT 3.1.1 knows no other.
        """
        if self._held is not None:
            return self._held
        return self._moved if self.unsettled > self.resting and now - self._moved > self._patience else None

    def _go_on(self, now: float) -> None:
        """What was held until now is so no more."""
        held = self._held_since(now)
        if held is not None:
            self._deaf += now - held
        self._moved = now

    def _work(self, now: float) -> None:
        """Something goes into work."""
        if self.unsettled == self.resting:
            self._moved = now
