"""Settlement on a real Mosquitto: what is acknowledged when, and what comes again."""

import time
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from connectors.cloudevents import unwrap
from connectors.mqtt.connection import Connection
from connectors.mqtt.probe import probe_source
from integration.daemon import monitor, write_configuration
from kafka_plant import Reports
from mosquitto import Mosquitto
from mqtt_plant import PATIENCE, collecting, keep_session, numbered, publish, publish_until, reading, source_options, take, until

pytestmark = pytest.mark.anyio

both_versions = pytest.mark.parametrize("protocol", ["5", "3.1.1"])


def payloads(deliveries: list) -> list[bytes]:
    return [delivery.message.payload for delivery in deliveries]


async def test_a_topic_of_any_length_is_read_but_not_remembered(mosquitto: Mosquitto) -> None:
    options, reports = source_options(mosquitto, "long/{stream}"), Reports()
    keep_session(options)
    topics = ["long/" + "x" * 60_000 + end for end in ("a", "b")]
    for topic in topics:
        publish(mosquitto, topic, [b"x"])
    async with reading(options, reports) as (_, deliveries):
        found = [delivery.message for delivery in await take(deliveries, 2, settle=True)]
    assert [message.topic for message in found] == topics
    assert [message.key for message in found] == [topic.removeprefix("long/").encode() for topic in topics]
    assert [(len(facts["topic"]), facts["quiet"]) for facts in reports.facts("message_without_id")] == [(1024, False), (1024, True)]


async def test_an_mqtt_5_message_is_handed_over_untouched(mosquitto: Mosquitto) -> None:
    options = source_options(mosquitto, "untouched/{stream}/image")
    keep_session(options)
    publish(mosquitto, "untouched/cam 7/image", [b"\x00payload\xff"], content_type="image/png", id="boot-1:17", größe="\ufeff1", captured="1500")
    reports = Reports()
    async with reading(options, reports) as (_, deliveries):
        (delivery,) = await take(deliveries, 1, settle=True)
    message = delivery.message
    assert (message.source, message.topic, message.position) == ("cameras", "untouched/cam 7/image", "boot-1:17")
    assert (message.payload, message.key) == (b"\x00payload\xff", b"cam 7")
    user = (("id", b"boot-1:17"), ("größe", "\ufeff1".encode()), ("captured", b"1500"))  # paho ends the connection upon a byte order mark
    assert message.headers == (*user, ("content-type", b"image/png"))
    assert abs(message.received - time.time()) < 60
    envelope = unwrap(message)
    assert (envelope.stream, envelope.captured, envelope.content_type) == ("cam 7", 1.5, "image/png")
    assert reports.told == [("source_connected", {"quiet": True, "source": "cameras"})]


async def test_a_cloudevent_in_binary_mode(mosquitto: Mosquitto) -> None:
    options = source_options(mosquitto, "events/{stream}")
    keep_session(options)
    attributes = {"specversion": "1.0", "id": "a/b c", "source": "/cam", "type": "image", "subject": "press/7", "time": "2026-01-01T00:00:00Z"}
    publish(mosquitto, "events/x", [b"picture"], content_type="image/jpeg", **attributes)
    async with reading(options) as (_, deliveries):
        (delivery,) = await take(deliveries, 1, settle=True)
    envelope = unwrap(delivery.message)
    assert (envelope.stream, envelope.captured, envelope.content_type) == ("press/7", 1_767_225_600.0, "image/jpeg")
    assert delivery.message.position.isalnum()  # an id with a slash would make source/topic/position ambiguous
    assert len(delivery.message.position) == 32


async def test_without_an_id_identical_payloads_share_one(mosquitto: Mosquitto) -> None:
    by_version = {}
    for protocol in ("5", "3.1.1"):
        options, reports = source_options(mosquitto, "same/x", protocol=protocol), Reports()
        keep_session(options)
        publish(mosquitto, "same/x", [b"one", b"one", b"two"])
        async with reading(options, reports) as (_, deliveries):
            positions = [delivery.message.position for delivery in await take(deliveries, 3, settle=True)]
        assert positions[0] == positions[1] != positions[2]
        by_version[protocol] = positions
        assert [facts.get("quiet") for facts in reports.facts("message_without_id")] == ([False, True, True] if protocol == "5" else [])
    assert by_version["5"] == by_version["3.1.1"]


@both_versions
async def test_the_session_outlives_the_source_and_the_broker(own_mosquitto: Mosquitto, protocol: str) -> None:
    options, reports = source_options(own_mosquitto, "kept/x", protocol=protocol), Reports()
    keep_session(options)
    publish(own_mosquitto, "kept/x", numbered(5))
    async with reading(options, reports) as (_, deliveries):
        first = await take(deliveries, 5)
        first[0].settle()
        first[1].settle()
    publish(own_mosquitto, "kept/x", numbered(3, 5))  # while nobody is there
    async with reading(options, reports) as (_, deliveries):
        assert payloads(await take(deliveries, 6)) == numbered(6, 2)
        await anyio.to_thread.run_sync(own_mosquitto.stop)
        await until(lambda: reports.count("source_disconnected"))
        await anyio.to_thread.run_sync(own_mosquitto.start)
        again = await take(deliveries, 6, settle=True)
        assert payloads(again) == numbered(6, 2)
        assert [delivery.message.id for delivery in again[:3]] == [delivery.message.id for delivery in first[2:]]
        publish(own_mosquitto, "kept/x", numbered(1, 8))
        assert payloads(await take(deliveries, 1, settle=True)) == numbered(1, 8)
    assert reports.count("source_connected") == 3  # of each source at first, and after the outage
    assert reports.count("session_lost") == 0


@both_versions
async def test_acknowledged_in_the_order_received(mosquitto: Mosquitto, protocol: str) -> None:
    """What is settled behind a gap is not acknowledged: MQTT demands the order, and the first may still be lost."""
    options = source_options(mosquitto, f"order/{protocol}", protocol=protocol)
    keep_session(options)
    publish(mosquitto, f"order/{protocol}", numbered(6))
    async with reading(options) as (_, deliveries):
        out = await take(deliveries, 6)
        for number in (5, 3, 0, 4, 1):
            out[number].settle()
    async with reading(options) as (_, deliveries):
        again = await take(deliveries, 4)
        assert payloads(again) == numbered(4, 2)
        for delivery in reversed(again):
            delivery.settle()
    publish(mosquitto, f"order/{protocol}", [b"after"])
    async with reading(options) as (_, deliveries):
        assert payloads(await take(deliveries, 1, settle=True)) == [b"after"]


@both_versions
async def test_what_was_received_and_not_handed_out_comes_again(mosquitto: Mosquitto, protocol: str) -> None:
    topic = f"stopped/{protocol}"
    options = source_options(mosquitto, topic, protocol=protocol, max_in_flight=2)
    keep_session(options)
    publish(mosquitto, topic, numbered(5))
    async with reading(options) as (source, deliveries):
        out = await take(deliveries, 2)
        await source.stop()
        assert [delivery async for delivery in deliveries] == []
        for delivery in out:
            delivery.settle()
    async with reading(options) as (_, deliveries):
        assert payloads(await take(deliveries, 3, settle=True)) == numbered(3, 2)


@both_versions
async def test_a_late_settlement_acknowledges_no_other_message(own_mosquitto: Mosquitto, protocol: str) -> None:
    """The packet-id trap: a broker that lost its session numbers from 1 again, and would take the old 1 for the new one."""
    options, reports = source_options(own_mosquitto, "trap/x", protocol=protocol), Reports()
    keep_session(options)
    publish(own_mosquitto, "trap/x", numbered(3))
    async with reading(options, reports) as (_, deliveries):
        old = await take(deliveries, 3)
        await anyio.to_thread.run_sync(own_mosquitto.kill)  # nothing was saved
        await anyio.to_thread.run_sync(own_mosquitto.start)
        await until(lambda: reports.count("source_connected") >= 2)
        publish(own_mosquitto, "trap/x", numbered(3, 3))
        assert payloads(await take(deliveries, 3)) == numbered(3, 3)
        for delivery in old:
            delivery.settle()
        with pytest.raises(ValueError, match="twice"):
            old[0].settle()
    assert reports.count("session_lost") == 1
    async with reading(options) as (_, deliveries):
        assert payloads(await take(deliveries, 3, settle=True)) == numbered(3, 3)


@pytest.mark.parametrize(("protocol", "window"), [("5", 30), ("3.1.1", 20)])
async def test_the_broker_holds_back(mosquitto_with: Callable[..., Mosquitto], protocol: str, window: int) -> None:
    """MQTT 5: max_in_flight is the receive maximum. 3.1.1: the broker's own limit. Behind it a stock broker drops: probe tells."""
    broker = mosquitto_with(max_inflight_messages=20, max_queued_messages=10, sys_interval=1)
    options = source_options(broker, "held/x", protocol=protocol, max_in_flight=30)
    keep_session(options)
    async with reading(options) as (_, deliveries):
        publish(broker, "held/x", numbered(1))
        await take(deliveries, 1)
        publish(broker, "held/x", numbered(59, 1))
        out = await take(deliveries, window - 1)
        out[-1].settle()  # behind a gap: the broker is told nothing
        assert payloads(out) == numbered(window - 1, 1)
        with anyio.fail_after(PATIENCE):
            while not any(f"has dropped {60 - window - 10} messages" in doubt for doubt in await probe_source(options)):
                pass


@both_versions
async def test_retained_messages_are_skipped_unless_wanted(mosquitto: Mosquitto, protocol: str) -> None:
    topic = f"retained/{protocol}"
    publish(mosquitto, topic, [b"old"], retain=True)
    wanted = source_options(mosquitto, topic, protocol=protocol, retained=True)
    async with reading(wanted) as (_, deliveries):
        assert payloads(await take(deliveries, 1, settle=True)) == [b"old"]
    options, reports = source_options(mosquitto, topic, protocol=protocol), Reports()
    async with reading(options, reports) as (_, deliveries):
        await until(lambda: reports.count("message_skipped", "retained"))
        publish(mosquitto, topic, [b"live"])
        assert payloads(await take(deliveries, 1, settle=True)) == [b"live"]
    publish(mosquitto, topic, [b"after"])
    async with reading(options) as (_, deliveries):  # it was acknowledged: else it would be first
        assert payloads(await take(deliveries, 1, settle=True)) == [b"after"]


async def test_what_was_published_with_qos_0(mosquitto: Mosquitto) -> None:
    """It is taken while there are places, said once, and beyond them dropped and counted."""
    options, reports = source_options(mosquitto, "unkept/x", max_in_flight=5), Reports()
    keep_session(options)
    publish(mosquitto, "unkept/x", [b"kept"])
    async with reading(options, reports) as (_, deliveries):
        await take(deliveries, 1)
        publish(mosquitto, "unkept/x", numbered(50), qos=0)
        out = await take(deliveries, 4)
        assert payloads(out) == numbered(4)
        await until(lambda: reports.count("message_dropped", "qos_0") == 46)
        out[0].settle()
        publish(mosquitto, "unkept/x", [b"later"], qos=0)
        assert payloads(await take(deliveries, 1)) == [b"later"]
    assert [facts["quiet"] for facts in reports.facts("message_at_most_once")] == [False, *[True] * 50]


async def test_a_lossy_source(mosquitto: Mosquitto) -> None:
    options, reports = source_options(mosquitto, "lossy/x", qos=0, lossy=True), Reports()
    async with collecting(options, reports) as collected:
        await publish_until(lambda: collected, mosquitto, "lossy/x", b"now")
    publish(mosquitto, "lossy/x", [b"while away"])
    async with collecting(options, reports) as collected:
        await publish_until(lambda: collected, mosquitto, "lossy/x", b"again")
    assert set(collected) == {b"again"}
    assert reports.count("message_at_most_once") == 0


async def test_a_session_that_expires(mosquitto: Mosquitto) -> None:
    options = source_options(mosquitto, "expires/x", session_expiry=1)
    keep_session(options)
    publish(mosquitto, "expires/x", [b"one"])
    async with reading(options) as (_, deliveries):
        await take(deliveries, 1)  # and the source leaves with its own session_expiry
    await until(lambda: f"Expiring client {options.client_id}" in mosquitto.log())
    async with collecting(options) as collected:
        await publish_until(lambda: b"new" in collected, mosquitto, "expires/x", b"new")
    assert set(collected) == {b"new"}


@both_versions
async def test_another_client_with_our_client_id(mosquitto: Mosquitto, protocol: str) -> None:
    """It is told by name, and taken back after a while."""
    topic = f"taken/{protocol}"
    options, reports = source_options(mosquitto, topic, protocol=protocol), Reports()
    keep_session(options)
    publish(mosquitto, topic, numbered(1))
    other = Connection(options, options.client_id, session_expiry=600)
    async with collecting(options, reports) as collected:
        await until(lambda: collected)
        try:
            await anyio.to_thread.run_sync(other.open)
            await until(lambda: reports.count("source_disconnected", "lost"))
            publish(mosquitto, topic, numbered(1, 1))
            await until(lambda: numbered(1, 1)[0] in collected)
        finally:
            await anyio.to_thread.run_sync(other.close)
    facts = reports.facts("source_disconnected")[0]
    assert f"another client with client_id {options.client_id!r}" in facts["error"]
    assert reports.count("session_lost") == 0


@both_versions
async def test_a_shared_subscription_deals_the_messages_out(mosquitto: Mosquitto, protocol: str) -> None:
    topic = f"shared/{protocol}"
    one, two = (source_options(mosquitto, topic, protocol=protocol, share_group=f"group {protocol}") for _ in range(2))
    async with collecting(one) as ours, collecting(two) as theirs:
        await publish_until(lambda: ours and theirs, mosquitto, topic, b"hello")  # both have subscribed

        def dealt() -> list[bytes]:
            return sorted(payload for payload in (*ours, *theirs) if payload != b"hello")

        await anyio.to_thread.run_sync(publish, mosquitto, topic, numbered(20))
        await until(lambda: len(dealt()) == 20)
        await probe_source(one)  # is dealt none of them
        await anyio.to_thread.run_sync(publish, mosquitto, topic, numbered(2, 20))
        await until(lambda: len(dealt()) == 22)
    assert dealt() == numbered(22)
    assert set(ours) - {b"hello"}
    assert set(theirs) - {b"hello"}


async def test_what_an_older_session_subscribed_to_is_not_scored(mosquitto: Mosquitto) -> None:
    """A session keeps its subscriptions when `topics` changes."""
    before, reports = source_options(mosquitto, "before/x"), Reports()
    keep_session(before)
    now = source_options(mosquitto, "now/x", client_id=before.client_id)
    async with reading(now, reports) as (_, deliveries):
        publish(mosquitto, "before/x", [b"unwanted"])
        await until(lambda: reports.count("message_skipped", "not_subscribed"))
        publish(mosquitto, "now/x", [b"wanted"])
        assert payloads(await take(deliveries, 1, settle=True)) == [b"wanted"]
    (facts,) = reports.facts("message_skipped")
    assert facts["topic"] == "before/x"


async def test_check_does_not_disturb_a_source_that_runs(mosquitto: Mosquitto) -> None:
    options, reports = source_options(mosquitto, "checked/x"), Reports()
    keep_session(options)
    publish(mosquitto, "checked/x", numbered(1))
    async with reading(options, reports) as (_, deliveries):
        await take(deliveries, 1)
        assert await probe_source(options) == []
        publish(mosquitto, "checked/x", numbered(1, 1))
        assert payloads(await take(deliveries, 1)) == numbered(1, 1)
    assert reports.count("source_disconnected") == 0


def test_check_warns_of_a_batch_that_a_stock_broker_never_fills(tmp_path: Path) -> None:
    source = {"kind": "mqtt", "url": "mqtt://127.0.0.1", "topics": ["a"], "client_id": "one", "protocol": "3.1.1"}
    detector = {"kind": "fake", "inputs": ["gate"], "max_batch_size": 21}
    tables = {"sources.gate": source, "detectors.bottle": detector, "sinks.alerts": {"kind": "folder", "path": "alerts"}}
    warning = "detectors.bottle.max_batch_size: warning: 21 never fill from sources.gate"
    for protocol, size, warned in (("3.1.1", 21, True), ("3.1.1", 20, False), ("5", 21, False)):
        source["protocol"], detector["max_batch_size"] = protocol, size
        assert (warning in monitor("check", "--config", str(write_configuration(tmp_path / "monitor.toml", tables))).stdout) is warned


async def test_another_process_may_hold_the_password(mosquitto: Mosquitto, tmp_path: Path) -> None:
    """The file is read again at every try."""
    password = tmp_path / "password"
    password.write_text("wrong")
    options, reports = source_options(mosquitto, "rotated/x", username=mosquitto.user, password_file=password), Reports()
    keep_session(source_options(mosquitto, "rotated/x", client_id=options.client_id, username=mosquitto.user, password=mosquitto.password))
    publish(mosquitto, "rotated/x", [b"x"])
    async with reading(options, reports) as (_, deliveries):
        await until(lambda: reports.count("source_disconnected", "not_authorised"))
        password.write_text(mosquitto.password + "\n")
        await take(deliveries, 1, settle=True)
    assert reports.count("source_connected") == 1
