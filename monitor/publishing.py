"""Events to sinks: confirmed, again after a loss, and in the dead letter when a sink will never take them."""

import json
from collections.abc import Awaitable, Callable, Iterable, Sequence

import anyio

from monitor.errors import Backoff, Disconnected, Rejected
from monitor.ports import Report, Sink
from monitor.types import DeadLetter, Event, Message, rfc_3339


class Outlet:
    """A sink with patience: sends until confirmed. While the other side is away its caller waits, and so do the sources."""

    def __init__(self, name: str, sink: Sink, events: Iterable[str], report: Report) -> None:
        self.name = name
        self.sink = sink
        self.types = frozenset(f"monitor.{event}.v1" for event in events)
        self._report = report

    async def open(self) -> None:
        """Enter the sink; wait for its other side as long as it takes."""
        await self._patiently(self.sink.__aenter__)

    async def send(self, events: Sequence[Event]) -> list[DeadLetter]:
        """Return when every event is confirmed, or refused for ever: those come back as dead letters."""
        refused: list[DeadLetter] = []

        async def attempt() -> None:
            try:
                await self.sink.send(events)
            except Rejected as error:
                for event in events:
                    if (event.type, event.id) in error.events:
                        self._report("event_rejected", sink=self.name, id=event.id, type=event.type, error=str(error))
                        refused.append(_refused(self.name, event, str(error)))

        await self._patiently(attempt)
        return refused

    async def _patiently(self, attempt: Callable[[], Awaitable[object]]) -> None:
        backoff = Backoff(first=0.2)
        cause: str | None = None
        while True:
            try:
                await attempt()
            except Disconnected as error:
                if error.cause != cause:  # once per outage and cause, not per try
                    cause = error.cause
                    self._report("sink_disconnected", sink=self.name, cause=cause, error=str(error))
                await anyio.sleep(backoff.delay())
            else:
                if cause is not None:
                    self._report("sink_connected", sink=self.name)
                return


def burial(letter: DeadLetter, site: str) -> Event:
    """The event that carries a dead letter."""
    message = letter.message
    return Event(
        id=f"dead_letter:{message.id}",
        type="monitor.dead_letter.v1",
        source=f"/{site}",
        key=message.key.decode("utf-8", "replace") if message.key else message.topic,
        time=message.received,
        data={},
        dead_letter=letter,
    )


def _refused(sink: str, event: Event, error: str) -> DeadLetter:
    facts = {"id": event.id, "source": event.source, "type": event.type, "subject": event.key, "time": rfc_3339(event.time), "data": event.data}
    message = Message(
        source=f"sink {sink}", topic=event.type, position=event.id, key=event.key.encode(), payload=json.dumps(facts).encode(), received=event.time
    )
    return DeadLetter(message=message, reason="rejected", error=error)
