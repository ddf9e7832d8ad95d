"""Messages to the topic that an MQTT source reads, as a plant system would send them."""

import math
import time
import uuid
from collections.abc import Sequence
from typing import Self

import anyio
import anyio.to_thread

from connectors.mqtt import records
from connectors.mqtt.connection import Connection
from connectors.mqtt.options import MqttSourceOptions
from monitor.errors import Disconnected, Rejected
from monitor.types import Message

_TIMEOUT = 30.0
"""Seconds for a batch of large files."""
_TURN = 0.5
_REFUSED = 0x80
_PACKET_OVERHEAD = 16
"""Bytes of a PUBLISH besides topic, properties and payload."""


class MqttSender:
    """See monitor.ports.Sender. A message whose topic the source does not read goes to the first that can be published to.

    There the message's key, or its header `stream`, stands at {stream}. MQTT 5: headers become user properties, and a message
    without `id` is given one. MQTT 3.1.1 carries no headers: neither time of capture nor content type arrive.
    """

    def __init__(self, options: MqttSourceOptions) -> None:
        self._options = options
        self._connection: Connection | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._connection is not None:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._connection.close)

    async def send(self, messages: Sequence[Message]) -> Sequence[tuple[str, str]]:
        return await anyio.to_thread.run_sync(self._send, messages)

    def _send(self, messages: Sequence[Message]) -> list[tuple[str, str]]:
        addressed, mistakes = [], []
        for message in messages:
            try:
                addressed.append(self._addressed(message))
            except ValueError as error:
                mistakes.append(f"{message.position}: {error}")
        if mistakes:
            raise Rejected("; ".join(mistakes))
        try:
            self._publish(addressed)
        except Disconnected:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            raise
        return [(topic, records.position(topic, headers, payload)) for topic, headers, payload in addressed]

    def _addressed(self, message: Message) -> tuple[str, records.Headers, bytes]:
        """Topic, headers and payload. Raises ValueError, in words, where the message cannot be sent as it is."""
        stream = message.key if message.key is not None else dict(message.headers).get("stream")
        try:
            name = None if stream is None else stream.decode()
        except UnicodeDecodeError:
            raise ValueError(f"the stream's name is not UTF-8: {stream!r}") from None
        topic = self._topic(message.topic, name)
        is_said = any(entry.matches(topic) and entry.stream(topic) == name for entry in self._options.parsed_topics)
        if self._options.protocol == "3.1.1":
            if name is not None and not is_said:
                raise ValueError(f"MQTT 3.1.1 cannot say stream {name!r} on topic {topic!r}: write {{stream}} for one of its levels")
            return topic, (), message.payload
        headers = list(message.headers)
        if name is not None and not is_said and not any(key == "stream" for key, _ in headers):
            headers.append(("stream", name.encode()))
        if records.said_id(headers) is None:
            headers.append(("id", str(uuid.uuid4()).encode()))
        records.properties(headers)  # what it cannot carry is a mistake now
        return topic, headers, message.payload

    def _topic(self, wanted: str, stream: str | None) -> str:
        topics = self._options.parsed_topics
        if wanted and any(topic.matches(wanted) for topic in topics):
            return wanted
        return next((topic for topic in topics if not topic.has_wildcards), topics[0]).fill(stream)

    def _publish(self, addressed: Sequence[tuple[str, records.Headers, bytes]]) -> None:
        if self._connection is None:
            connection = Connection(self._options, f"monitor-publish-{uuid.uuid4().hex[:8]}")
            try:
                connection.open()
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        connection = self._connection
        self._refuse_large(connection, addressed)
        v5 = self._options.protocol == "5"
        window = getattr(connection.properties, "ReceiveMaximum", len(addressed))
        waiting: dict[int, str] = {}
        refused: list[str] = []
        end = time.monotonic() + _TIMEOUT
        for at, (topic, headers, payload) in enumerate(addressed, 1):
            waiting[connection.publish(topic, payload, records.properties(headers) if v5 else None)] = topic
            while waiting and (at == len(addressed) or len(waiting) >= window):
                if time.monotonic() > end:
                    raise Disconnected(f"{self._options.url} confirms nothing within {_TIMEOUT} s", "timeout")
                connection.step(_TURN)
                for mid in connection.confirmed.keys() & waiting.keys():
                    said, code = waiting.pop(mid), connection.confirmed.pop(mid)
                    if code.value >= _REFUSED:
                        refused.append(f"{said}: {code}")
        if refused:
            raise Rejected(f"{self._options.url} refuses {len(refused)} of {len(addressed)} messages: {refused[0]}")

    def _refuse_large(self, connection: Connection, addressed: Sequence[tuple[str, records.Headers, bytes]]) -> None:
        """The broker would end the connection upon them."""
        largest = getattr(connection.properties, "MaximumPacketSize", math.inf)
        for topic, headers, payload in addressed:
            size = _PACKET_OVERHEAD + len(topic.encode()) + len(payload) + sum(5 + len(name.encode()) + len(value) for name, value in headers)
            if size > largest:
                raise Rejected(f"{self._options.url} takes packets of {largest} bytes at most, this one to {topic} has {size}")
