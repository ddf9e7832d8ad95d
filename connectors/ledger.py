"""Which deliveries of one partition are settled, and up to where all of them are."""

from collections import deque
from typing import Generic, TypeVar

Position = TypeVar("Position")


class Ledger(Generic[Position]):
    """Positions are tracked in the order in which they are handed out, and settled in any order, each once.

    A broker that keeps one number per partition may only be told the watermark: the last position before which, and with
    which, everything is settled. Gaps between positions mean nothing (compaction and transactions leave them).
    A dead ledger belongs to a partition or a connection that is ours no longer: its watermark stands still for ever.
    Not thread-safe.
    """

    def __init__(self) -> None:
        self._order: deque[Position] = deque()
        self._unsettled: set[Position] = set()
        self._watermark: Position | None = None
        self._committed: Position | None = None
        self._dead = False

    def track(self, position: Position) -> None:
        """A position was handed out. Raises ValueError while the same one is still unsettled."""
        if position in self._unsettled:
            raise ValueError(f"position {position} is handed out already")
        self._order.append(position)
        self._unsettled.add(position)

    def settle(self, position: Position) -> None:
        """A position is finished. Raises ValueError for one that is not out: never tracked, or settled before."""
        try:
            self._unsettled.remove(position)
        except KeyError:
            raise ValueError(f"position {position} is not out: settled twice?") from None
        while self._order and self._order[0] not in self._unsettled:
            closed = self._order.popleft()
            if not self._dead:
                self._watermark = closed

    @property
    def dead(self) -> bool:
        return self._dead

    @property
    def outstanding(self) -> int:
        """How many are handed out and not settled."""
        return len(self._unsettled)

    @property
    def uncommitted(self) -> Position | None:
        """The last position of the settled beginning, where the broker does not know it yet, else None. None for ever once dead."""
        return None if self._dead or self._watermark == self._committed else self._watermark

    def committed(self, position: Position) -> None:
        """The broker has confirmed this watermark."""
        self._committed = position

    def kill(self) -> None:
        """What is settled from now on is never committed."""
        self._dead = True
