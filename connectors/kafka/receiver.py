"""What a Kafka sink or dead letter sends, from now on (`monitor listen`)."""

import re
from collections.abc import AsyncIterator, Mapping
from typing import Any, Self

import anyio
import anyio.to_thread
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from connectors.cloudevents import read_event
from connectors.kafka.connection import client_arguments, disconnected
from connectors.kafka.diagnosis import check
from connectors.kafka.options import KafkaProducerOptions
from connectors.letters import letter_of, read_letter
from connectors.maps import read_map
from monitor.errors import MonitorError

_POLL = 0.2
_ANSWER = 10_000
"""Milliseconds that the broker has for offsets and for a map."""
_MAP = re.compile(r"kafka:([A-Za-z0-9._-]+)/(\d+)-(\d+)")


class KafkaReceiver:
    """See monitor.ports.Receiver. A member of no group: every listener gets everything, and commits nothing."""

    def __init__(self, options: KafkaProducerOptions) -> None:
        self._options = options
        self._consumer: Any = None
        self._maps: Any = None

    async def __aenter__(self) -> Self:
        """Positioned at the end when it returns: nothing that is sent after is missed. Raises Disconnected, ConfigError."""
        await anyio.to_thread.run_sync(self._open)
        return self

    async def __aexit__(self, *exc: object) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._close)

    async def __aiter__(self) -> AsyncIterator[Mapping[str, Any]]:
        while True:
            for record in await anyio.to_thread.run_sync(self._poll):
                yield _event(record)

    async def map(self, event: Mapping[str, Any]) -> bytes | None:
        return await anyio.to_thread.run_sync(read_map, event, self._fetch)

    def _open(self) -> None:
        check(self._options)
        try:
            self._consumer = self._client()
            self._assign(from_end=True)
        except KafkaError as error:
            self._close()
            raise disconnected(error, self._options) from error

    def _close(self) -> None:
        for consumer in (self._consumer, self._maps):
            if consumer is not None:
                consumer.close(timeout_ms=1000)

    def _client(self) -> KafkaConsumer:
        """Partitions that appear later are noticed within seconds."""
        return KafkaConsumer(
            **client_arguments(self._options), group_id=None, enable_auto_commit=False, auto_offset_reset="earliest", metadata_max_age_ms=3000
        )

    def _assign(self, *, from_end: bool) -> None:
        """Partitions that appear after we came are read from their beginning: all that is in them was sent after."""
        known = self._consumer.assignment()
        found = {TopicPartition(self._options.topic, number) for number in self._consumer.partitions_for_topic(self._options.topic)}
        if added := found - known:
            offsets = (self._consumer.end_offsets if from_end else self._consumer.beginning_offsets)(list(added), timeout_ms=_ANSWER)
            self._consumer.assign(list(found | known))
            for partition, offset in offsets.items():
                self._consumer.seek(partition, offset)

    def _poll(self) -> list[Any]:
        try:
            self._assign(from_end=False)
            return [record for batch in self._consumer.poll(timeout_ms=int(1000 * _POLL)).values() for record in batch]
        except KafkaError as error:
            raise disconnected(error, self._options) from error

    def _fetch(self, uri: str) -> bytes:
        """The record that `kafka:<topic>/<partition>-<offset>` names."""
        found = _MAP.fullmatch(uri)
        if found is None:
            raise MonitorError(f"{uri} is not kafka:<topic>/<partition>-<offset>")
        partition, offset = TopicPartition(found[1], int(found[2])), int(found[3])
        try:
            if self._maps is None:
                self._maps = self._client()
            self._maps.assign([partition])
            self._maps.seek(partition, offset)
            records = self._maps.poll(timeout_ms=_ANSWER, max_records=1).get(partition, [])
        except KafkaError as error:
            raise disconnected(error, self._options) from error
        if not records or records[0].offset != offset:
            raise MonitorError(f"{uri} is gone from its topic")
        value: bytes = records[0].value or b""
        return value


def _event(record: Any) -> Mapping[str, Any]:
    """A sink's CloudEvent; of a dead letter, one with the `data` that a folder dead letter writes."""
    where, headers = f"kafka:{record.topic}/{record.partition}-{record.offset}", dict(record.headers)
    if "monitor-source" not in headers:
        return read_event(record.value or b"", where)
    try:
        letter = letter_of(record.value or b"", record.key, tuple((name, value or b"") for name, value in record.headers))
    except ValueError as error:
        return {"error": f"{where} is no dead letter: {error}"}
    return read_letter(letter, where, record.timestamp / 1000)
