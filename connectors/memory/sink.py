"""Events to a channel of this process, which fails, waits and rejects as its test says."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Self

import anyio
import anyio.to_thread

from connectors.cloudevents import encode
from connectors.maps import read_map
from connectors.memory.channel import channel
from connectors.memory.options import MemorySinkOptions
from monitor.errors import Rejected
from monitor.ports import Context
from monitor.types import Event


class MemorySink:
    """See monitor.ports.Sink."""

    def __init__(self, options: MemorySinkOptions, context: Context) -> None:
        self._options = options
        self._context = context
        self._channel = channel(options.channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        pass

    async def look(self) -> None:
        self._channel.look()

    async def send(self, events: Sequence[Event]) -> None:
        await anyio.sleep(self._channel.delay)
        self._channel.fail()
        rejected: list[Rejected] = []
        for event in events:
            try:
                name = (event.type, event.id)
                if name in self._channel.rejects:
                    raise Rejected(f"channel {self._channel.name} never takes {event.type} {event.id}", [name])
                await anyio.to_thread.run_sync(self._take, event)
            except Rejected as error:
                rejected.append(error)
        if rejected:
            raise Rejected("; ".join(map(str, rejected)), [name for error in rejected for name in error.events])

    def _take(self, event: Event) -> None:
        record = encode(event, max_bytes=self._options.max_bytes, report=self._context.report)
        self._channel.events.append(json.loads(record))


class MemoryDeadLetter(MemorySink):
    """See monitor.ports.Sink. Keeps the messages themselves."""

    def _take(self, event: Event) -> None:
        assert event.dead_letter is not None
        self._channel.letters.append(event.dead_letter)


class MemoryReceiver:
    """See monitor.ports.Receiver. Events only; dead letters are looked at in the channel."""

    def __init__(self, options: MemorySinkOptions) -> None:
        self._events = channel(options.channel).events
        self._next = 0

    async def __aenter__(self) -> Self:
        self._next = len(self._events)
        return self

    async def __aexit__(self, *exc: object) -> None:
        pass

    async def __aiter__(self) -> AsyncIterator[Mapping[str, Any]]:
        while True:
            while self._next < len(self._events):
                self._next += 1
                yield self._events[self._next - 1]
            await anyio.sleep(0.01)

    async def map(self, event: Mapping[str, Any]) -> bytes | None:
        return read_map(event)
