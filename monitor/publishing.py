"""Events to sinks: confirmed, again after a loss, and in the dead letter when a sink will never take them."""

import json
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

import anyio

from monitor.errors import Backoff, Disconnected, Rejected
from monitor.ports import Context, Sink, SinkOptions
from monitor.registry import resolve
from monitor.telemetry import Telemetry
from monitor.types import DeadLetter, Event, Message, rfc_3339

R = TypeVar("R")

LOOK_EVERY = 15.0
"""Seconds without a send after which the other side is looked at: shorter than a connection is kept alive by itself."""
_TRIES = 4
"""How often a sink that is there is offered an event that it does not take."""


class Outlet:
    """A sink with patience: sends until confirmed. While the other side is away its caller waits, and so do the sources."""

    def __init__(self, name: str, options: SinkOptions, events: Iterable[str], telemetry: Telemetry) -> None:
        self.name = name
        self.sink: Sink = resolve(options.implementation)(options, Context(name=name, report=telemetry.report))
        self.types = frozenset(f"monitor.{event}.v1" for event in events)
        self.away: str | None = "not connected yet"
        """Why the other side is not there, or does not take what is sent, in words; None while it is there."""
        self.opened = anyio.Event()
        self._cause: str | None = None
        self._held = 0  # callers of `send` (and `open`) whose last try failed
        self._there = -math.inf  # when the other side was there, by the loop's clock
        self._report = telemetry.report
        self._sent = {f"monitor.{event}.v1": telemetry.counter("monitor_events_sent_total", name, event) for event in events}

    async def open(self) -> None:
        """Enter the sink. Whether its other side is there is for `watch` and `send` to find."""
        await self._patiently(self.sink.__aenter__)
        self.opened.set()

    async def watch(self) -> None:
        """Once it is open: look whether the other side is there, now and whenever nothing was sent for LOOK_EVERY. Holds nothing."""
        backoff = Backoff(first=0.2)
        while True:
            idle = anyio.current_time() - self._there
            if self._held or idle < LOOK_EVERY:  # who is held finds it out, too
                await anyio.sleep(LOOK_EVERY - (0.0 if self._held else idle))
            elif await self._look():
                backoff.reset()
            else:
                await anyio.sleep(backoff.delay())

    async def send(self, events: Sequence[Event]) -> list[DeadLetter]:
        """Return when every event is confirmed, or refused for ever: those come back as dead letters."""
        refused = await self._patiently(lambda: self._send(events))
        self._found()
        return refused

    async def offer(self, event: Event) -> str | None:
        """For what holds nothing and may be lost: None when it is confirmed, else why not. While the other side is away, it waits.

        Where that is there, and takes what the flow sends, but again and again not this event, that is no trouble of the flow."""
        backoff = Backoff(first=0.2)
        refusals = 0
        while True:
            try:
                refused = await self._send([event])
            except Disconnected as error:
                refusals += await self._look() and not self._held
                if refusals == _TRIES:
                    return f"{error} ({error.cause})"
            else:
                self._found()
                return refused[0].error if refused else None
            await anyio.sleep(backoff.delay())

    async def _look(self) -> bool:
        try:
            await self.sink.look()
        except Disconnected as error:
            self._lost(error)
            return False
        self._found()
        return True

    async def _send(self, events: Sequence[Event]) -> list[DeadLetter]:
        refused: list[DeadLetter] = []
        try:
            await self.sink.send(events)
        except Rejected as error:
            for event in events:
                if (event.type, event.id) in error.events:
                    self._report("event_rejected", sink=self.name, id=event.id, type=event.type, error=str(error))
                    refused.append(_refused(self.name, event, str(error)))
        confirmed: Counter[str] = Counter(event.type for event in events)
        confirmed.subtract(letter.message.topic for letter in refused)
        for kind, count in confirmed.items():
            self._sent[kind].inc(count)
        return refused

    async def _patiently(self, attempt: Callable[[], Awaitable[R]]) -> R:
        backoff = Backoff(first=0.2)
        failed = False
        try:
            while True:
                try:
                    return await attempt()
                except Disconnected as error:
                    self._held += not failed
                    failed = True
                    self._lost(error)
                await anyio.sleep(backoff.delay())
        finally:
            self._held -= failed

    def _lost(self, error: Disconnected) -> None:
        self.away = f"{error} ({error.cause})"
        if error.cause != self._cause:  # once per outage and cause, not per try and caller
            self._cause = error.cause
            self._report("sink_disconnected", sink=self.name, cause=error.cause, error=str(error))

    def _found(self) -> None:
        self._there = anyio.current_time()
        if self._held:  # it is there, but does not take what another caller sends
            return
        self.away = None
        if self._cause is not None:
            self._cause = None
            self._report("sink_connected", sink=self.name)


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
