"""The other side of MQTT source tests: a publisher, and a source with its reports."""

import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

import kafka_plant
from connectors.mqtt.connection import Connection
from connectors.mqtt.options import MqttSourceOptions
from connectors.mqtt.source import MqttSource
from kafka_plant import Reports, fresh
from monitor.ports import Context, Delivery
from mosquitto import Mosquitto

PATIENCE = 60.0

take = partial(kafka_plant.take, seconds=PATIENCE)
until = partial(kafka_plant.until, seconds=PATIENCE)


@contextmanager
def publisher(broker: Mosquitto) -> Iterator[mqtt.Client]:
    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    client.connect(broker.host, broker.port)
    client.loop_start()
    try:
        yield client
    finally:
        client.disconnect()
        client.loop_stop()


def publish(
    broker: Mosquitto, topic: str, payloads: Sequence[bytes], *, qos: int = 1, retain: bool = False, content_type: str | None = None, **user: str
) -> None:
    """Returns when the broker has them (QoS 1). `user`: user properties of each."""
    properties = Properties(PacketTypes.PUBLISH)
    properties.UserProperty = list(user.items())
    if content_type is not None:
        properties.ContentType = content_type
    with publisher(broker) as client:
        for sent in [client.publish(topic, payload, qos, retain, properties) for payload in payloads]:
            sent.wait_for_publish(PATIENCE)
            assert sent.is_published()


def numbered(count: int, begin: int = 0) -> list[bytes]:
    return [f"{number:04}".encode() for number in range(begin, begin + count)]


def source_options(broker: Mosquitto, *topics: str, **options: Any) -> MqttSourceOptions:
    """A client id of its own."""
    defaults = {"url": broker.url, "topics": topics, "client_id": fresh("source"), "connect_timeout": 20.0}
    return MqttSourceOptions(**{**defaults, **options})


@asynccontextmanager
async def reading(options: MqttSourceOptions, reports: Reports | None = None) -> AsyncIterator[tuple[MqttSource, AsyncIterator[Delivery]]]:
    reports = reports or Reports()
    async with MqttSource(options, Context(name="cameras", report=reports.report)) as source:
        yield source, aiter(source)


@asynccontextmanager
async def collecting(options: MqttSourceOptions, reports: Reports | None = None) -> AsyncIterator[list[bytes]]:
    """The payloads of all that comes, each settled at once."""
    collected: list[bytes] = []
    async with reading(options, reports) as (source, deliveries), anyio.create_task_group() as tasks:

        async def collect() -> None:
            async for delivery in deliveries:
                collected.append(delivery.message.payload)
                delivery.settle()

        tasks.start_soon(collect)
        yield collected
        await source.stop()


async def publish_until(condition: Callable[[], object], broker: Mosquitto, topic: str, payload: bytes) -> None:
    """Again and again: nobody tells when a source has subscribed."""
    with anyio.fail_after(PATIENCE):
        while not condition():
            await anyio.to_thread.run_sync(publish, broker, topic, [payload])
            await anyio.sleep(0.02)


def keep_session(options: MqttSourceOptions) -> None:
    """From now on the broker keeps for this client id what is published."""
    connection = Connection(options, options.client_id, session_expiry=600)
    try:
        connection.open()
        connection.subscribe([topic.filter for topic in options.parsed_topics], 1)
    finally:
        connection.close()


def dynamic_security(folder: Path, **defaults: bool) -> dict[str, str]:
    """Settings of a Mosquitto whose plugin decides who may do what; `defaults` e.g. subscribe=False."""
    plugin = next(Path("/usr/lib").glob("**/mosquitto_dynamic_security.so"), None)
    if plugin is None:
        pytest.skip("mosquitto_dynamic_security.so not found below /usr/lib (Debian: part of mosquitto)")
    access = {"publishClientSend": True, "publishClientReceive": True, "subscribe": True, "unsubscribe": True, **defaults}
    config = folder / "dynamic-security.json"
    config.write_text(json.dumps({"defaultACLAccess": access}))
    return {"plugin": str(plugin), "plugin_opt_config_file": str(config)}
