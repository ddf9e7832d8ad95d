"""What an MQTT sink or dead letter sends, from now on (`monitor listen`)."""

import time
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any, Self

import anyio
import anyio.to_thread

from connectors.cloudevents import read_event
from connectors.letters import read_letter
from connectors.maps import read_map
from connectors.mqtt.connection import Connection
from connectors.mqtt.dead_letter import letter_of
from connectors.mqtt.options import MqttProducerOptions
from connectors.mqtt.publish import Arrived
from connectors.mqtt.topics import PLACE

_POLL = 0.2


class MqttReceiver:
    """See monitor.ports.Receiver. In a session of its own that ends with it: every listener gets everything, and keeps nobody's place."""

    def __init__(self, options: MqttProducerOptions) -> None:
        self._options = options
        self._connection = Connection(options, f"monitor-listen-{uuid.uuid4().hex[:12]}")

    async def __aenter__(self) -> Self:
        """Subscribed when it returns: nothing that is sent after is missed. Raises Disconnected, ConfigError."""
        await anyio.to_thread.run_sync(self._open)
        return self

    async def __aexit__(self, *exc: object) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._connection.close)

    async def __aiter__(self) -> AsyncIterator[Mapping[str, Any]]:
        while True:
            for message in await anyio.to_thread.run_sync(self._poll):
                yield _event(message)

    async def map(self, event: Mapping[str, Any]) -> bytes | None:
        return await anyio.to_thread.run_sync(read_map, event)

    def _open(self) -> None:
        try:
            self._connection.open()
            self._connection.subscribe([self._options.topic.replace(PLACE, "#")], 1)
        except BaseException:
            self._connection.close()
            raise

    def _poll(self) -> list[Arrived]:
        self._connection.step(_POLL)
        messages, self._connection.messages = self._connection.messages, []
        for message in messages:
            if message.qos:
                self._connection.acknowledge(message.mid)
        return messages


def _event(message: Arrived) -> Mapping[str, Any]:
    """A sink's CloudEvent; of a dead letter, one with the `data` that a folder dead letter writes."""
    where = f"mqtt:{message.topic}"
    properties = [(name, value.decode("utf-8", "replace")) for name, value in message.user_properties]
    if "monitor-source" not in dict(properties):
        return read_event(message.payload, where)
    try:
        return read_letter(letter_of(message.payload, properties), where, time.time())
    except ValueError as error:
        return {"error": f"{where} is no dead letter: {error}"}
