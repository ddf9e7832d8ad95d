"""After an unclean end, one thing at a time: so that a message which kills the process is known (rule 9)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import anyio

from monitor.ports import Report
from monitor.state import State

MOST_DEATHS = 3  # of the process, with one message in work: then it is dead-lettered


class Probation:
    """The first `max_in_flight` deliveries of each source after an unclean end, each alone in work in the whole daemon.

    A chunk of a recording is in work when it is decoded, and with all others of its segment when that is scored. In between it rests,
    unsettled, and the next one may come; probation goes on until the last of these deliveries is settled, and what comes meanwhile is alone
    in work too, but prolongs it no more: of recordings that never end something always rests.
    """

    def __init__(self, state: State, report: Report) -> None:
        self.turn = anyio.Lock()
        """Whoever works singly holds it."""
        self._state = state
        self._report = report
        self._left: dict[str, int] = {}
        self._first: dict[str, set[str]] = {}  # by source: of these deliveries, those that are not settled
        self._begun: set[str] = set()  # all that is not settled and was alone in work

    def singly(self, source: str, max_in_flight: int) -> bool:
        """True while the next delivery or segment of this source must be processed by itself."""
        if not self._state.unclean:
            return False
        if source not in self._left:
            self._left[source] = max_in_flight
            self._first[source] = set()
            self._report("processing_singly", source=source, deliveries=max_in_flight)
        return self._left[source] > 0 or bool(self._first[source])

    @contextmanager
    def delivery(self, source: str, message_id: str) -> Iterator[int]:
        """Around work on the next delivery, until it is settled or rests; gives how often the process died with it in work."""
        if self._left[source] > 0:
            self._left[source] -= 1
            self._first[source].add(message_id)
        self._begun.add(message_id)
        yield self._state.begin(message_id)
        self._state.rest([message_id])

    @contextmanager
    def segment(self, message_ids: Sequence[str]) -> Iterator[None]:
        """Around work on a segment, until it is finished: dying within is a death on each of its chunks."""
        for message_id in message_ids:
            self._state.begin(message_id)
        yield
        self._state.rest(message_ids)

    def settled(self, source: str, message_id: str) -> None:
        """It did not kill the process."""
        if message_id in self._begun:
            self._begun.remove(message_id)
            self._first[source].discard(message_id)
            self._state.finish(message_id)
