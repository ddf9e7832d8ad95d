"""Messages to the topic that a Kafka source reads, as a plant system would send them."""

from collections.abc import Sequence
from typing import Self

import anyio
import anyio.to_thread

from connectors.kafka.options import KafkaSourceOptions
from connectors.kafka.producer import Placed, Producer, Record
from connectors.shrinking import Refused
from monitor.errors import Rejected
from monitor.types import Message

_TIMEOUT = 30.0
"""Seconds for a batch of large files."""


class KafkaSender:
    """See monitor.ports.Sender. A message whose topic the source does not read goes to the first that it reads."""

    def __init__(self, options: KafkaSourceOptions) -> None:
        self._options = options
        self._producer = Producer(options, _TIMEOUT)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._producer.close)

    async def send(self, messages: Sequence[Message]) -> Sequence[tuple[str, str]]:
        records = [self._record(message) for message in messages]
        outcomes = await anyio.to_thread.run_sync(self._producer.send, records)
        refused = [(message.id, outcome.error) for message, outcome in zip(messages, outcomes, strict=True) if isinstance(outcome, Refused)]
        if refused:
            raise Rejected("; ".join(f"{name}: {error}" for name, error in refused))
        return [
            (record.topic, f"{outcome.partition}-{outcome.offset}")
            for record, outcome in zip(records, outcomes, strict=True)
            if isinstance(outcome, Placed)
        ]

    def _record(self, message: Message) -> Record:
        topics = self._options.topics
        topic = message.topic if message.topic in topics else topics[0]
        return Record(topic=topic, value=message.payload, key=message.key, headers=message.headers)
