"""What one connection has brought and the broker waits for: packet ids mean nothing on any other connection."""

import itertools
from collections import deque
from collections.abc import Callable

from connectors.ledger import Ledger


class Window:
    """Acknowledgements are released in the order in which the messages came, which MQTT demands (4.6).

    All calls from the event loop's thread; the connection's thread takes `released` from its left. `wake` tells it to.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self.released: deque[int] = deque()
        """Packet ids to be acknowledged, in order."""
        self.dead = False
        """The connection is over: the broker sends what was not acknowledged again, and may give its packet ids to other messages."""
        self._wake = wake
        self._numbers = itertools.count()
        self._ledger: Ledger[int] = Ledger()
        self._waiting: deque[tuple[int, int]] = deque()

    def arrived(self, mid: int) -> int:
        """A message came with this packet id. Returns its number here."""
        number = next(self._numbers)
        self._ledger.track(number)
        self._waiting.append((number, mid))
        return number

    def settle(self, number: int) -> None:
        self._ledger.settle(number)
        mark = self._ledger.uncommitted
        if mark is None:
            return
        self._ledger.committed(mark)
        while self._waiting and self._waiting[0][0] <= mark:
            self.released.append(self._waiting.popleft()[1])
        self._wake()

    def kill(self) -> None:
        """What is settled from now on is never acknowledged."""
        self.dead = True
        self._ledger.kill()
        self._waiting.clear()
