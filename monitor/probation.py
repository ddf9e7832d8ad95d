"""After an unclean end, one delivery at a time: so that a message which kills the process is known (rule 9)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from monitor.ports import Report
from monitor.state import State

MOST_DEATHS = 3  # of the process, with one message in work: then it is dead-lettered


class Probation:
    """The first `max_in_flight` deliveries of each source after an unclean end, alone in the whole daemon."""

    def __init__(self, state: State, report: Report) -> None:
        self._state = state
        self._report = report
        self._left: dict[str, int] = {}
        self._turn = anyio.Lock()

    def singly(self, source: str, max_in_flight: int) -> bool:
        """True while the next delivery of this source must be processed by itself."""
        if not self._state.unclean:
            return False
        if source not in self._left:
            self._left[source] = max_in_flight
            self._report("processing_singly", source=source, deliveries=max_in_flight)
        return self._left[source] > 0

    @asynccontextmanager
    async def alone(self, source: str, message_id: str) -> AsyncIterator[int]:
        """Around one delivery, until it is settled; gives how often the process died with it in work."""
        async with self._turn:
            yield self._state.begin(message_id)
            self._state.finish(message_id)
            self._left[source] -= 1
