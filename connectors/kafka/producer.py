"""Records to Kafka, each confirmed by all replicas in sync. Blocking: for a worker thread, one call at a time."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from kafka import KafkaProducer
from kafka.errors import InvalidRecordError, KafkaError, MessageSizeTooLargeError, RecordListTooLargeError
from kafka.producer.future import FutureRecordMetadata

from connectors.kafka.connection import client_arguments, disconnected
from connectors.kafka.diagnosis import check
from connectors.kafka.options import KafkaConnectionOptions
from connectors.shrinking import Refused, Shrink, Shrinking
from monitor.errors import ConfigError, Disconnected

_REFUSED = (MessageSizeTooLargeError, RecordListTooLargeError, InvalidRecordError)
"""What the broker says of a record that it will never take."""
_FRAMING = 1024
"""Bytes that a request holds beside its records, at least; records are refused by the broker, not by the client."""
_LARGEST = 2**31 - 1 - _FRAMING
_CLOSE = 1.0
"""Seconds that closing a client may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    topic: str
    value: bytes
    key: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a confirmed record lies."""

    partition: int
    offset: int


class Producer:
    """Connects at the first `send` and after every failure, until it is closed."""

    def __init__(self, options: KafkaConnectionOptions, delivery_timeout: float) -> None:
        self._options = options
        self._timeout = delivery_timeout
        self._client: KafkaProducer | None = None
        self._closed = False
        self._shrinking = Shrinking[Record, Placed](self.send)

    def send_or_shrink(self, records: Sequence[Record], shrink: Shrink[Record]) -> list[Placed | Refused]:
        """As `send`; what is refused goes again as `shrink(index, refused)`, unless that is None. The order holds."""
        return self._shrinking.send(records, shrink)

    def send(self, records: Sequence[Record]) -> list[Placed | Refused]:
        """One round trip for all of them; the order per key is kept. Raises Disconnected where one may not have arrived.

        After one refusal kafka-python (3.0.12: `transition_to_fatal_error`) fails whatever else it has, and all that comes
        later, with the same error. So that client is given up, and of several a refusal counts only once it was met alone.
        """
        outcomes = self._attempt(records)
        if len(records) > 1:
            for at, outcome in enumerate(outcomes):
                if isinstance(outcome, Refused):
                    (outcomes[at],) = self._attempt([records[at]])
        return outcomes

    def _attempt(self, records: Sequence[Record]) -> list[Placed | Refused]:
        try:
            client = self._connected()
            futures: list[FutureRecordMetadata] = [
                client.send(record.topic, value=record.value, key=record.key, headers=list(record.headers)) for record in records
            ]
            client.flush(timeout=2 * self._timeout)
            outcomes = [_outcome(future, self._timeout) for future in futures]
        except ConfigError as error:  # a secret that could be read at start-up
            raise Disconnected(str(error), "not_authorised") from error
        except KafkaError as error:
            self._abandon()
            if not self._closed:
                check(self._options)  # it knows better what is wrong
            raise disconnected(error, self._options) from error
        if any(isinstance(outcome, Refused) for outcome in outcomes):
            self._abandon()
        return outcomes

    def look(self) -> None:
        """Whether a broker lets us in, over a connection of its own: any thread may call it. Raises Disconnected."""
        try:
            check(self._options)
        except ConfigError as error:  # as in a send
            raise Disconnected(str(error), "not_authorised") from error

    def close(self) -> None:
        """For good, within about _CLOSE. Any thread may call it: a `send` that hangs in another raises Disconnected."""
        self._closed = True
        self._abandon()

    def _connected(self) -> KafkaProducer:
        if self._closed:
            raise Disconnected("the producer is closed", "lost")
        if self._client is None:
            check(self._options)
            milliseconds = int(1000 * self._timeout)
            self._client = KafkaProducer(
                **client_arguments(self._options),
                acks="all",
                enable_idempotence=True,
                max_request_size=_LARGEST,
                max_block_ms=milliseconds,
                delivery_timeout_ms=milliseconds,
                request_timeout_ms=milliseconds,
            )
            if self._closed:  # meanwhile, when there was no client to close yet
                self._abandon()
                raise Disconnected("the producer is closed", "lost")
        return self._client

    def _abandon(self) -> None:
        """What is pending in it must not arrive after what is sent again."""
        client, self._client = self._client, None
        if client is not None:
            client._sender.force_close()  # `close` alone flushes first, and leaves all running when that takes too long (kafka-python 3.0.12)
            with suppress(KafkaError):
                client.close(timeout=_CLOSE)


def _outcome(future: FutureRecordMetadata, timeout: float) -> Placed | Refused:
    try:
        metadata = future.get(timeout=timeout)
    except _REFUSED as error:
        return Refused(f"{type(error).__name__}: {error}")
    return Placed(metadata.partition, metadata.offset)
