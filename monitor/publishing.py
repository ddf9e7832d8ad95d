"""Events to sinks: confirmed, again after a loss, and in the dead letter when a sink will never take them."""

import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence

import anyio

from monitor.errors import Backoff, Disconnected, Rejected
from monitor.ports import Context, Sink, SinkOptions
from monitor.registry import resolve
from monitor.telemetry import Telemetry
from monitor.types import DeadLetter, Event, Message, rfc_3339


class Outlet:
    """A sink with patience: sends until confirmed. While the other side is away its caller waits, and so do the sources."""

    def __init__(self, name: str, options: SinkOptions, events: Iterable[str], telemetry: Telemetry) -> None:
        self.name = name
        self.sink: Sink = resolve(options.implementation)(options, Context(name=name, report=telemetry.report))
        self.types = frozenset(f"monitor.{event}.v1" for event in events)
        self.away: str | None = "not opened yet"
        """Why the other side is not there, in words; None while it is."""
        self.opened = anyio.Event()
        self._cause: str | None = None
        self._report = telemetry.report
        self._sent = {f"monitor.{event}.v1": telemetry.counter("monitor_events_sent_total", name, event) for event in events}

    async def open(self) -> None:
        """Enter the sink; wait for its other side as long as it takes."""
        await self._patiently(self.sink.__aenter__)
        self.opened.set()

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
        confirmed: Counter[str] = Counter(event.type for event in events)
        confirmed.subtract(letter.message.topic for letter in refused)
        for kind, count in confirmed.items():
            self._sent[kind].inc(count)
        return refused

    async def _patiently(self, attempt: Callable[[], Awaitable[object]]) -> None:
        backoff = Backoff(first=0.2)
        while True:
            try:
                await attempt()
            except Disconnected as error:
                self.away = f"{error} ({error.cause})"
                if error.cause != self._cause:  # once per outage and cause, not per try and caller
                    self._cause = error.cause
                    self._report("sink_disconnected", sink=self.name, cause=error.cause, error=str(error))
                await anyio.sleep(backoff.delay())
            else:
                self.away = None
                if self._cause is not None:
                    self._cause = None
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
