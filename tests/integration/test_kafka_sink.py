"""Events to a real broker: confirmed, in order, too large, while it is away; and dead letters."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from brokers import Broker
from connectors.cloudevents import STRUCTURED
from connectors.kafka.dead_letter import KafkaDeadLetter
from connectors.kafka.options import KafkaDeadLetterOptions, KafkaSinkOptions
from connectors.kafka.receiver import KafkaReceiver
from connectors.kafka.sink import KafkaSink
from kafka_plant import Reports, everything, fresh, make_topic, produce
from monitor.errors import Disconnected, MonitorError, Rejected
from monitor.ports import Context
from some_events import alert, letter

pytestmark = pytest.mark.anyio


def sink_options(broker: Broker, topic: str, **options: Any) -> KafkaSinkOptions:
    return KafkaSinkOptions(**{"bootstrap_servers": broker.plain, "topic": topic, "connect_timeout": 2.0, "delivery_timeout": 3.0, **options})


def made(options: KafkaSinkOptions, reports: Reports | None = None) -> KafkaSink:
    return KafkaSink(options, Context(name="alerts", report=(reports or Reports()).report))


def spilled_at(path: str) -> bytes:
    return Path(path).read_bytes()


def numbers(records: list[Any], key: bytes | None = None) -> list[int]:
    return [json.loads(record.value)["data"]["number"] for record in records if key is None or record.key == key]


async def test_the_record_is_a_cloud_event_keyed_by_stream(kafka: Broker) -> None:
    topic = make_topic(kafka, "alerts")
    async with made(sink_options(kafka, topic)) as sink:
        await sink.send([alert(1)])
        (record,) = everything(kafka, topic, 1)
    assert record.key == b"press/7/cam"
    assert record.headers == [("content-type", STRUCTURED.encode())]
    assert json.loads(record.value)["id"] == "bottle:cameras/t/0-1"


async def test_a_batch_is_one_round_trip(kafka: Broker) -> None:
    """Not one per event: 500 take less than ten times as long as one."""
    topic = make_topic(kafka, "batch", partitions=3)
    async with made(sink_options(kafka, topic)) as sink:
        await sink.send([alert(0, note="x" * 100)])
        began = time.monotonic()
        for number in range(20):
            await sink.send([alert(number)])
        single = (time.monotonic() - began) / 20
        began = time.monotonic()
        await sink.send([alert(number, key=f"cam{number % 5}") for number in range(500)])
        batch = time.monotonic() - began
    assert batch < 500 * single / 4
    records = everything(kafka, topic, 521)
    for camera in range(5):
        of_camera = numbers(records, b"cam%d" % camera)
        assert of_camera == list(range(camera, 500, 5))
        assert len({record.partition for record in records if record.key == b"cam%d" % camera}) == 1


async def test_what_the_broker_refuses_goes_without_its_map_and_the_order_holds(kafka_with: Callable[[str], Broker]) -> None:
    """The topic takes less than max_bytes says."""
    kafka = kafka_with("limits")
    topic = make_topic(kafka, "small", max_message_bytes="20000")
    reports = Reports()
    async with made(sink_options(kafka, topic), reports) as sink:
        with pytest.raises(Rejected) as caught:
            await sink.send([alert(1), alert(2, side=200), alert(3), alert(4, note="x" * 30_000), alert(5, side=20), alert(6)])
        await sink.send([alert(7)])
    assert caught.value.events == ((alert(4).type, alert(4).id),)
    records = everything(kafka, topic, 6)
    assert numbers(records) == [1, 2, 3, 5, 6, 7]
    assert [("map" in json.loads(record.value)["data"]) for record in records] == [False, False, False, True, False, False]
    assert reports.count("map_dropped") == 1


async def test_maps_go_to_a_topic_and_are_followed(kafka: Broker) -> None:
    topic, maps = make_topic(kafka, "alerts"), make_topic(kafka, "maps")
    options = sink_options(kafka, topic, maps={"topic": maps})
    async with made(options) as sink, KafkaReceiver(options) as receiver:
        await sink.send([alert(1, side=20), alert(2, side=400)])
        events = []
        with anyio.fail_after(20):
            async for event in receiver:
                events.append(event)
                if len(events) == 2:
                    break
        small, large = events
        assert "base64" in small["data"]["map"]
        assert large["data"]["map"]["uri"] == f"kafka:{maps}/0-0"
        png = await receiver.map(large)
        assert png is not None
        assert png == everything(kafka, maps, 1)[0].value
        with pytest.raises(MonitorError, match="gone"):
            await receiver.map({"id": "x", "data": {"map": {"uri": f"kafka:{maps}/0-99", "sha256": ""}}})


async def test_a_map_that_its_topic_refuses_is_dropped(kafka_with: Callable[[str], Broker]) -> None:
    kafka = kafka_with("limits")
    topic, maps = make_topic(kafka, "alerts"), make_topic(kafka, "maps", max_message_bytes="2000")
    reports = Reports()
    async with made(sink_options(kafka, topic, maps={"topic": maps}), reports) as sink:
        await sink.send([alert(1, side=400), alert(2)])
    assert numbers(everything(kafka, topic, 2)) == [1, 2]
    assert reports.count("map_dropped") == 1


async def test_a_listener_misses_nothing_of_a_topic_that_is_not_there_yet(kafka: Broker) -> None:
    options = sink_options(kafka, fresh("later"))
    async with KafkaReceiver(options) as receiver, made(options) as sink:
        await sink.send([alert(1)])
        with anyio.fail_after(20):
            async for event in receiver:
                assert event["data"]["number"] == 1
                break


async def test_what_others_write_ends_no_listener(kafka: Broker) -> None:
    topic = make_topic(kafka, "foreign")
    async with KafkaReceiver(sink_options(kafka, topic)) as receiver:
        produce(kafka, topic, [b"\xff no JSON", b"[1]", b'{"a": 1}'])
        produce(kafka, topic, [b"x"], headers=[("monitor-source", b"me")])
        heard = []
        with anyio.fail_after(20):
            async for event in receiver:
                heard.append(event)
                if len(heard) == 4:
                    break
    assert heard[:3] == [{"error": f"kafka:{topic}/0-0 is no JSON object"}, {"error": f"kafka:{topic}/0-1 is no JSON object"}, {"a": 1}]
    assert str(heard[3]["error"]).startswith(f"kafka:{topic}/0-3 is no dead letter")


async def test_a_broker_that_goes_and_comes_back(own_kafka: Broker) -> None:
    """Disconnected within bounded time, with its cause; sent again, nothing is lost and the order holds."""
    topic = make_topic(own_kafka, "stopped")
    async with made(sink_options(own_kafka, topic)) as sink:
        await sink.send([alert(number) for number in range(10)])
        await anyio.to_thread.run_sync(own_kafka.stop)
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises(Disconnected) as caught:
                await sink.send([alert(number) for number in range(10, 20)])
            assert caught.value.cause == "refused"
            assert time.monotonic() - began < 15
        await anyio.to_thread.run_sync(own_kafka.start)
        with anyio.fail_after(60):
            while True:
                try:
                    await sink.send([alert(number) for number in range(10, 20)])
                    break
                except Disconnected:
                    await anyio.sleep(0.2)
    got = numbers(everything(own_kafka, topic, 20))
    assert list(dict.fromkeys(got)) == list(range(20))


async def test_killed_while_sending(own_kafka: Broker) -> None:
    """What was confirmed is there, in order; what was not is sent again."""
    topic = make_topic(own_kafka, "mid")
    confirmed, after = 0, 0
    killer = threading.Timer(0.7, own_kafka.kill)
    killer.start()
    async with made(sink_options(own_kafka, topic)) as sink:
        with anyio.fail_after(90):
            while after < 100:
                try:
                    await sink.send([alert(number) for number in range(confirmed, confirmed + 20)])
                except Disconnected:
                    if not after:
                        killer.join()
                        await anyio.to_thread.run_sync(own_kafka.start)
                        after = 1
                    await anyio.sleep(0.1)
                else:
                    confirmed += 20
                    after += 20 if after else 0
    got = numbers(everything(own_kafka, topic, confirmed, seconds=90))
    assert list(dict.fromkeys(got)) == list(range(confirmed))


async def test_closing_is_quick_while_the_broker_is_away(own_kafka: Broker) -> None:
    topic = make_topic(own_kafka, "closing")
    try:
        async with made(sink_options(own_kafka, topic)) as sink:
            await sink.send([alert(1)])
            await anyio.to_thread.run_sync(own_kafka.kill)
            began = time.monotonic()
        assert time.monotonic() - began < 5
    finally:
        await anyio.to_thread.run_sync(own_kafka.start)


async def test_a_send_that_hangs_is_cancelled_at_once(own_kafka: Broker) -> None:
    """As by a second SIGTERM: the broker stands still with its connections open."""
    topic = make_topic(own_kafka, "hangs")
    try:
        async with made(sink_options(own_kafka, topic, delivery_timeout=60.0)) as sink:
            await sink.send([alert(1)])
            own_kafka.suspend()
            began = time.monotonic()
            with anyio.move_on_after(0.5) as scope:
                await sink.send([alert(2)])
            assert scope.cancelled_caught
        assert time.monotonic() - began < 3
    finally:
        own_kafka.resume()
    assert 1 in numbers(everything(own_kafka, topic, 1))


async def test_dead_letters_that_the_topic_refuses_are_spilled(kafka_with: Callable[[str], Broker], tmp_path: Path) -> None:
    """The payload is within max_bytes, but not within what the topic takes; and a message whose headers alone are too much."""
    kafka = kafka_with("limits")
    topic = make_topic(kafka, "dead", max_message_bytes="20000")
    options = KafkaDeadLetterOptions(bootstrap_servers=kafka.plain, topic=topic, spill=tmp_path / "spill", max_bytes=50_000)
    reports = Reports()
    payload, headers = bytes(range(256)) * 100, (("content-type", b"image/png"), ("long", b"\xff" * 60_000))
    async with KafkaDeadLetter(options, Context(name="dead_letter", report=reports.report)) as dead:
        await dead.send(
            [letter(b"fits"), letter(payload, key=b"cam"), letter(b"tiny", headers=headers), alert(1, note="x" * 30_000), letter(b"last")]
        )
    whole, spilled, headed, rejected, last = everything(kafka, topic, 5)
    assert (whole.value, last.value) == (b"fits", b"last")
    facts = json.loads(spilled.value)
    assert (spilled_at(facts["path"]), facts["size"], spilled.key) == (payload, 25_600, b"cam")
    assert dict(spilled.headers)["monitor-reason"] == b"undecodable"
    beside = json.loads(spilled_at(dict(headed.headers)["monitor-headers-spilled"].decode()))
    assert [name for name, _ in beside["headers"]] == ["content-type", "long"]
    assert spilled_at(json.loads(headed.value)["path"]) == b"tiny"
    assert json.loads(spilled_at(json.loads(rejected.value)["path"]))["id"] == alert(1).id
    assert reports.count("payload_spilled") == 3


async def test_a_rejected_alert_goes_to_the_dead_letter_as_an_event(kafka: Broker, tmp_path: Path) -> None:
    topic = make_topic(kafka, "dead")
    options = KafkaDeadLetterOptions(bootstrap_servers=kafka.plain, topic=topic, spill=tmp_path)
    async with KafkaDeadLetter(options, Context(name="dead_letter", report=Reports().report)) as dead, KafkaReceiver(options) as receiver:
        await dead.send([alert(1, side=20), letter(b"\xff", key=b"k", headers=(("stream", b"s"),))])
        (record, _) = everything(kafka, topic, 2)
        heard = []
        with anyio.fail_after(20):
            async for event in receiver:
                heard.append(event)
                if len(heard) == 2:
                    break
    assert json.loads(record.value)["data"]["number"] == 1
    assert dict(record.headers)["monitor-reason"] == b"rejected"
    assert heard[0]["id"] == alert(1).id
    assert heard[1]["data"] == {
        "source": "cameras",
        "topic": "press",
        "position": "0-7",
        "reason": "undecodable",
        "error": "broken",
        "key": {"text": "k"},
        "headers": [{"name": "stream", "text": "s"}],
        "payload": "/w==",
    }
