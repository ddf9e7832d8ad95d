"""`monitor publish` to an MQTT source: templates, ids, and what cannot be sent as it is."""

from collections.abc import Callable

import pytest

from connectors.cloudevents import unwrap
from connectors.mqtt.sender import MqttSender
from monitor.errors import Rejected
from monitor.types import Message
from mosquitto import Mosquitto
from mqtt_plant import keep_session, reading, source_options, take

pytestmark = pytest.mark.anyio

both_versions = pytest.mark.parametrize("protocol", ["5", "3.1.1"])


def _message(key: bytes | None = None, payload: bytes = b"x", **headers: bytes) -> Message:
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Message(source="", topic="", position="file.png", payload=payload, received=0.0, key=key, headers=named)


@both_versions
async def test_publish_fills_the_template(mosquitto: Mosquitto, protocol: str) -> None:
    options = source_options(mosquitto, f"sent/{protocol}/+/sound", f"sent/{protocol}/{{stream}}/image", protocol=protocol)
    keep_session(options)
    async with MqttSender(options) as sender:
        sent = await sender.send([_message(b"cam7", stream=b"cam7", captured=b"1500", content_type=b"image/png"), _message(b"cam8")])
    async with reading(options) as (_, deliveries):
        first, second = (delivery.message for delivery in await take(deliveries, 2, settle=True))
    assert sent == [(first.topic, first.position), (second.topic, second.position)]
    assert [first.topic, second.topic] == [f"sent/{protocol}/cam7/image", f"sent/{protocol}/cam8/image"]
    if protocol == "5":
        envelope = unwrap(first)
        assert (envelope.stream, envelope.captured, envelope.content_type) == ("cam7", 1.5, "image/png")
        assert len(first.position) == 36  # a UUID


@pytest.mark.parametrize(
    ("topics", "message", "protocol", "says"),
    [
        (["a/{stream}"], _message(), "5", "topic 'a/{stream}' needs a stream"),
        (["a/{stream}"], _message(b"press/7"), "5", "stream 'press/7' does not fit into topic 'a/{stream}'"),
        (["a/+/b", "b/#"], _message(b"cam"), "5", "nobody can publish to 'a/+/b', which has wildcards: write {stream}"),
        (["a/b"], _message(b"cam"), "3.1.1", "MQTT 3.1.1 cannot say stream 'cam' on topic 'a/b'"),
        (["a/b"], _message(x=b"\xff"), "5", "header 'x' is not UTF-8"),
        (["a/b"], _message(b"\xff"), "5", "the stream's name is not UTF-8"),
    ],
)
async def test_what_cannot_be_published_is_told(mosquitto: Mosquitto, topics: list[str], message: Message, protocol: str, says: str) -> None:
    async with MqttSender(source_options(mosquitto, *topics, protocol=protocol)) as sender:
        with pytest.raises(Rejected) as caught:
            await sender.send([message])
    assert says in str(caught.value)


async def test_a_packet_that_the_broker_does_not_take(mosquitto_with: Callable[..., Mosquitto]) -> None:
    broker = mosquitto_with(max_packet_size=2000)
    options = source_options(broker, "a/b")
    keep_session(options)
    async with MqttSender(options) as sender:
        with pytest.raises(Rejected, match=r"a packet of 30.. bytes, the broker takes at most 2000"):
            await sender.send([_message(payload=bytes(3000))])
        assert len(await sender.send([_message(payload=bytes(1000))])) == 1


async def test_publishing_to_nobody_is_told(mosquitto: Mosquitto) -> None:
    """The broker confirms it, and keeps nothing."""
    options = source_options(mosquitto, "nobody/{stream}")
    async with MqttSender(options) as sender:
        with pytest.raises(Rejected, match="nobody has subscribed to nobody/cam"):
            await sender.send([_message(b"cam")])
        keep_session(options)
        assert len(await sender.send([_message(b"cam")])) == 1
