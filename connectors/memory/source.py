"""Messages from a channel of this process."""

import dataclasses
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Self

from connectors.memory.channel import Channel, channel
from connectors.memory.options import MemorySourceOptions
from connectors.places import Places
from monitor.ports import Context, Delivery
from monitor.types import Message

_POLL = 0.005


class MemorySource:
    """See monitor.ports.Source. The position is the index in the channel."""

    def __init__(self, options: MemorySourceOptions, context: Context) -> None:
        self._context = context
        self._channel = channel(options.channel)
        self._places = Places(options.max_in_flight)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        pass

    async def stop(self) -> None:
        self._places.close()

    async def __aiter__(self) -> AsyncIterator[Delivery]:
        self._context.report("source_connected", quiet=True, source=self._context.name)
        index = 0
        while not self._places.closed:
            if not self._places.free:
                await self._places.changed(1.0)
            elif index == len(self._channel.messages):
                await self._places.until_closed(_POLL)
            else:
                message = self._channel.messages[index]
                index += 1
                if message.position not in self._channel.settled:
                    settle = self._places.take(partial(self._channel.settled.add, message.position))
                    yield Delivery(dataclasses.replace(message, source=self._context.name), settle)


class MemorySender:
    """See monitor.ports.Sender."""

    def __init__(self, options: MemorySourceOptions) -> None:
        self._channel: Channel = channel(options.channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        pass

    async def send(self, messages: Sequence[Message]) -> Sequence[tuple[str, str]]:
        sent = []
        for message in messages:
            position = str(len(self._channel.messages))
            self._channel.messages.append(dataclasses.replace(message, topic=self._channel.name, position=position, received=time.time()))
            sent.append((self._channel.name, position))
        return sent
