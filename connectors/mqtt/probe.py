"""monitor check --online: does the broker let us in, and what is doubtful there.

Under a client id of its own: with that of a running daemon it would end its connection, and without its session its messages.
"""

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import anyio.to_thread

from connectors.mqtt.connection import Connection
from connectors.mqtt.options import MqttConnectionOptions, MqttProducerOptions, MqttSourceOptions
from monitor.errors import Disconnected

_DROPPED = "$SYS/broker/publish/messages/dropped"
_ANSWER = 1.0
"""Seconds that a retained message has to come."""


async def probe_source(options: MqttSourceOptions) -> list[str]:
    """Raises Disconnected with its cause, in words; ConfigError for unusable files. Returns what is doubtful."""
    return await anyio.to_thread.run_sync(_source, options)


async def probe_producer(options: MqttProducerOptions) -> list[str]:
    """As probe_source."""
    doubts = await anyio.to_thread.run_sync(_look, options, f"{options.client_id or 'monitor'}-check-{uuid.uuid4().hex[:8]}")
    if options.protocol == "3.1.1":
        doubts.append("MQTT 3.1.1 does not tell when the broker drops an event that it does not take (forbidden topic, too large)")
    return doubts


def _source(options: MqttSourceOptions) -> list[str]:
    client_id = f"{options.client_id}-check-{uuid.uuid4().hex[:8]}"
    doubts = _session(options, client_id)  # which the next connection ends: it asks for none
    return doubts + _look(options, client_id, [topic.filter for topic in options.parsed_topics])  # no share group: it would be dealt messages


def _session(options: MqttSourceOptions, client_id: str) -> list[str]:
    if options.protocol != "5":
        return []
    with _connected(options, client_id, session_expiry=options.session_expiry) as connection:
        kept = getattr(connection.properties, "SessionExpiryInterval", options.session_expiry)
    if kept >= options.session_expiry:
        return []
    return [
        f"the broker keeps a session for {kept} s only, session_expiry = {options.session_expiry}: what comes while we are away for longer is lost"
    ]


def _look(options: MqttConnectionOptions, client_id: str, filters: list[str] | None = None) -> list[str]:
    doubts = []
    with _connected(options, client_id) as connection:
        if filters:
            connection.subscribe(filters, getattr(options, "qos", 0))
        if getattr(options, "share_group", None) and getattr(connection.properties, "SharedSubscriptionAvailable", 1) == 0:
            doubts.append("the broker has no shared subscriptions, which share_group asks for")
    dropped = _dropped(options, client_id)
    if dropped:
        doubts.append(
            f"the broker has dropped {dropped} messages since it started, for this or for other clients: "
            "behind a client that is slow or away it keeps only so many (Mosquitto: max_queued_messages)"
        )
    return doubts


@contextmanager
def _connected(options: MqttConnectionOptions, client_id: str, *, session_expiry: float | None = None) -> Iterator[Connection]:
    connection = Connection(options, client_id, session_expiry=session_expiry)
    try:
        connection.open()
        yield connection
    finally:
        connection.close()


def _dropped(options: MqttConnectionOptions, client_id: str) -> int:
    """What the broker says of messages that it dropped; 0 where it says nothing, or not to us: some end the connection upon the question."""
    with suppress(Disconnected), _connected(options, client_id) as connection:
        connection.subscribe([_DROPPED], 0)
        end = time.monotonic() + _ANSWER
        while not connection.messages and time.monotonic() < end:
            connection.step(end - time.monotonic())
        text = connection.messages[0].payload[:20] if connection.messages else b""
        return int(text) if text.isdigit() else 0
    return 0
