"""What a Kafka sink and a Kafka dead letter share: one producer, one send at a time, a quick end."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, Self, TypeVar

import anyio
import anyio.to_thread

from connectors.kafka.connection import client_arguments
from connectors.kafka.options import KafkaProducerOptions
from connectors.kafka.producer import Producer
from monitor.ports import Context
from monitor.types import Event

Chosen = TypeVar("Chosen", bound=KafkaProducerOptions)


class KafkaWriter(ABC, Generic[Chosen]):
    """A monitor.ports.Sink but for `_send`. After a cancelled `send` only the exit may follow, which ends what hangs in it."""

    def __init__(self, options: Chosen, context: Context) -> None:
        self._options = options
        self._context = context
        self._producer = Producer(options, options.delivery_timeout)
        self._turn = anyio.Lock()

    async def __aenter__(self) -> Self:
        client_arguments(self._options)  # unusable files are a mistake in the configuration, not a broker that is away
        return self

    async def __aexit__(self, *exc: object) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._producer.close)

    async def send(self, events: Sequence[Event]) -> None:
        """As monitor.ports.Sink."""
        async with self._turn:
            await anyio.to_thread.run_sync(self._send, events, abandon_on_cancel=True)

    @abstractmethod
    def _send(self, events: Sequence[Event]) -> None:
        """In a worker thread."""
