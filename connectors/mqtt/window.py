"""What one connection has brought and the broker waits for: packet ids mean nothing on any other connection."""

import itertools
from collections import deque
from collections.abc import Callable

from connectors.ledger import Ledger
from monitor.types import Message


class Window:
    """Acknowledgements are released in the order in which the messages came, which MQTT demands (4.6).

    All calls from the event loop's thread; the connection's thread takes `released` from its left. `wake` tells it to.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self.released: deque[int] = deque()
        """Packet ids to be acknowledged, in order."""
        self.waiting: deque[tuple[int | None, Message]] = deque()
        """What is not handed out yet, with its number; None with QoS 0, for which nobody waits."""
        self._wake = wake
        self._numbers = itertools.count()
        self._ledger: Ledger[int] = Ledger()
        self._unacknowledged: deque[tuple[int, int]] = deque()

    def arrived(self, mid: int) -> int:
        """A message came with this packet id. Returns its number here."""
        number = next(self._numbers)
        self._ledger.track(number)
        self._unacknowledged.append((number, mid))
        return number

    def settle(self, number: int) -> None:
        self._ledger.settle(number)
        mark = self._ledger.uncommitted
        if mark is None:
            return
        self._ledger.committed(mark)
        while self._unacknowledged and self._unacknowledged[0][0] <= mark:
            self.released.append(self._unacknowledged.popleft()[1])
        self._wake()

    @property
    def taken(self) -> int:
        """Messages that were handed out, and whose acknowledgement is not released."""
        return max(0, len(self._unacknowledged) - len(self.waiting))

    def kill(self) -> int:
        """The connection is over: what is settled from now on is never acknowledged, and may have another's packet id by now.

        What waits is dropped, as it comes again; returns how many. Messages with QoS 0 do not, and stay."""
        self._ledger.kill()
        self._unacknowledged.clear()
        before = len(self.waiting)
        self.waiting = deque(one for one in self.waiting if one[0] is None)
        return before - len(self.waiting)
