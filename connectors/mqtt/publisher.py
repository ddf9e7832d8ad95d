"""Messages with QoS 1, each confirmed by the broker. Blocking: for a worker thread, one call at a time."""

import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from connectors.mqtt.connection import NOT_AUTHORISED, Connection
from connectors.mqtt.options import MOST_OUT, MqttConnectionOptions
from connectors.shrinking import Refused, Shrink, Shrinking
from monitor.errors import Backoff, ConfigError, Disconnected

_LONGEST_PACKET = 268_435_455
"""Bytes behind the fixed header (MQTT 5.0, 2.1.4)."""
_FIXED_HEADER = 5
_SLICE = 0.2
"""Seconds after which a wait looks whether the publisher was closed."""
_CLOSE = 1.0
"""Seconds that closing waits for a `send` that hangs."""
_TRIES = 3
"""How often in a row the connection must end upon a message until that counts as the broker's answer."""

# PUBACK reason codes (MQTT 5.0, 3.4.2.1).
_NO_SUBSCRIBER = 0x10
_FAILED = 0x80
_NEVER = (0x90, 0x99)  # topic name invalid, payload format invalid


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """`content_type` and `headers` (the user properties) are sent in MQTT 5 only."""

    topic: str
    value: bytes
    content_type: str | None = None
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Taken:
    """The broker confirmed it. Not `heard`: nobody has subscribed, so it kept nothing (told by MQTT 5 only)."""

    heard: bool


class Publisher:
    """Connects at the first `send` or `look`, after every failure, and after `keepalive` seconds without either, until it is closed.

    A connection that failed is never used again, so that what it still holds cannot be sent later, after what was sent anew.
    """

    def __init__(self, options: MqttConnectionOptions, *, delivery_timeout: float, client_id: str | None = None) -> None:
        self._options = options
        self._delivery_timeout = delivery_timeout
        self._client_id = client_id
        self._connection: Connection | None = None
        self._last_used = 0.0
        self._closed = False
        self._busy = threading.Lock()
        self._shrinking = Shrinking[Record, Taken](self._send)

    def send(self, records: Sequence[Record], shrink: Shrink[Record]) -> list[Taken | Refused]:
        """All are confirmed or refused when it returns, in the order given; what is refused goes again as `shrink` says.

        As many are out at once as the broker takes. Raises Disconnected where one may not have arrived.
        """
        with self._used():
            return self._shrinking.send(records, shrink)

    def look(self) -> None:
        """Connect where there is no connection, and keep it alive. Raises Disconnected."""
        with self._used():
            self._connected()

    @contextmanager
    def _used(self) -> Iterator[None]:
        """By one thread at a time; a connection that failed is given up."""
        with self._busy:
            try:
                yield
                self._last_used = time.monotonic()
            except Disconnected:
                self._abandon(at_once=True)
                raise
            except ConfigError as error:  # a secret that could be read at start-up
                self._abandon()
                raise Disconnected(str(error), "not_authorised") from error
            finally:
                if self._closed:
                    self._abandon()

    def close(self) -> None:
        """For good, within about _CLOSE. Any thread may call it: a `send` that hangs in another raises Disconnected."""
        self._closed = True
        if self._busy.acquire(timeout=_CLOSE):
            try:
                self._abandon()
            finally:
                self._busy.release()

    def _send(self, records: Sequence[Record]) -> list[Taken | Refused]:
        """A broker may refuse a record by ending the connection upon it, alone and larger than any that it took, again and again.

        An end for another reason that it gives (busy, shutting down) is no answer.
        """
        tried, backoff = 0, Backoff()
        while True:
            try:
                return self._attempt(records)
            except Disconnected as error:
                answered = self._connection is not None and self._connection.refused_by_ending
                if error.cause != "lost" or not answered or self._closed or len(records) > 1 or len(records[0].value) <= self._shrinking.taken:
                    raise
                self._abandon(at_once=True)
                tried += 1
                if tried == _TRIES:
                    return [Refused(f"the broker ended the connection {_TRIES} times upon it: {error}")]
                time.sleep(backoff.delay())

    def _attempt(self, records: Sequence[Record]) -> list[Taken | Refused]:
        connection = self._connected()
        window = min(getattr(connection.properties, "ReceiveMaximum", MOST_OUT), MOST_OUT)
        longest = getattr(connection.properties, "MaximumPacketSize", _LONGEST_PACKET + _FIXED_HEADER)
        outcomes: dict[int, Taken | Refused] = {}
        out: dict[int, int] = {}  # packet id -> index
        for at, record in enumerate(records):
            properties = self._properties(record)
            if (size := _packet_size(record, properties)) > longest:
                outcomes[at] = Refused(f"a packet of {size} bytes, the broker takes at most {longest}")
                continue
            while len(out) >= window:
                self._collect(connection, records, out, outcomes)
            out[connection.publish(record.topic, record.value, properties)] = at
        while out:
            self._collect(connection, records, out, outcomes)
        return [outcomes[at] for at in range(len(records))]

    def _connected(self) -> Connection:
        if self._connection is not None:
            try:
                if time.monotonic() - self._last_used < self._options.keepalive:
                    self._connection.step(0)  # notices that the broker has gone meanwhile
                else:
                    self._abandon()
            except Disconnected:
                self._abandon()
        if self._closed:
            raise Disconnected("the sink is closed", "lost")
        if self._connection is None:
            self._connection = Connection(self._options, self._client_id or f"monitor-{uuid.uuid4().hex[:12]}")
            self._connection.open()
            if getattr(self._connection.properties, "MaximumQoS", 1) == 0:
                raise Disconnected(f"{self._options.url} takes messages with QoS 0 only, which it never confirms; ours have QoS 1", "refused")
            if self._closed:  # meanwhile
                raise Disconnected("the sink is closed", "lost")
        return self._connection

    def _collect(self, connection: Connection, records: Sequence[Record], out: dict[int, int], outcomes: dict[int, Taken | Refused]) -> None:
        """Wait for the next answers, and move what they answer from `out` to `outcomes`."""
        end = time.monotonic() + self._delivery_timeout
        while not connection.confirmed:
            if self._closed:
                raise Disconnected("the sink is closed", "lost")
            if time.monotonic() > end:
                within = f"delivery_timeout = {self._delivery_timeout} s"
                raise Disconnected(f"{self._options.url} has not confirmed {len(out)} messages within {within}", "timeout")
            connection.step(_SLICE)
        for mid, reason in connection.confirmed.items():
            if mid in out:
                at = out.pop(mid)
                outcomes[at] = self._outcome(records[at], reason)
        connection.confirmed.clear()

    def _outcome(self, record: Record, reason: ReasonCode) -> Taken | Refused:
        if reason.value < _FAILED:
            return Taken(heard=reason.value != _NO_SUBSCRIBER)
        if reason.value in _NEVER:
            return Refused(f"topic {record.topic}: {reason}")
        cause = "not_authorised" if reason.value in NOT_AUTHORISED else "refused"
        raise Disconnected(f"{self._options.url} does not take a message to {record.topic} {self._options.as_whom}: {reason}", cause)  # type: ignore[arg-type]

    def _properties(self, record: Record) -> Properties | None:
        if self._options.protocol != "5":
            return None
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        if record.content_type is not None:
            properties.ContentType = record.content_type
        if record.headers:
            properties.UserProperty = list(record.headers)
        return properties

    def _abandon(self, *, at_once: bool = False) -> None:
        self._shrinking.taken = 0  # the next may be to a broker that takes less
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close(at_once=at_once)


def _packet_size(record: Record, properties: Properties | None) -> int:
    """Bytes of its PUBLISH, at most four too many."""
    beside = len(properties.pack()) if properties is not None else 0  # type: ignore[no-untyped-call]
    return _FIXED_HEADER + 2 + len(record.topic.encode()) + 2 + beside + len(record.value)
