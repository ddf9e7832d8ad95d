"""Settlement on a real broker: what is committed when, and what comes again."""

import threading
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import anyio
import pytest
from kafka import KafkaProducer, TopicPartition
from kafka.admin import MemberToRemove
from kafka.errors import CorruptRecordError

from brokers import Broker
from connectors.kafka.records import ReadableBatch
from connectors.kafka.sender import KafkaSender
from kafka_plant import Reports, admin, committed, fresh, make_topic, nothing, produce, reading, source_options, take, until
from monitor.types import Message

pytestmark = pytest.mark.anyio


def payloads(count: int, start: int = 0) -> list[bytes]:
    return [f"{number:06}".encode() for number in range(start, start + count)]


async def test_a_message_is_handed_over_untouched(kafka: Broker) -> None:
    topic = make_topic(kafka, "untouched", retention_ms="-1")  # its first record is years old
    headers = [("content-type", b"image/png"), ("x", b"\xff\x00"), ("x", b"")]
    produce(kafka, topic, [b"\x00payload\xff"], key=b"press/7/cam", headers=headers, timestamp_ms=1_700_000_000_250)
    produce(kafka, topic, [b""])
    async with reading(source_options(kafka, topic)) as (_, deliveries):
        first, second = (delivery.message for delivery in await take(deliveries, 2, settle=True))
    assert (first.source, first.topic, first.position, first.id) == ("cameras", topic, "0-0", f"cameras/{topic}/0-0")
    assert (first.payload, first.key, first.headers) == (b"\x00payload\xff", b"press/7/cam", tuple(headers))
    assert first.timestamp == 1_700_000_000.25
    assert abs(first.received - time.time()) < 60
    assert (second.position, second.payload, second.key, second.headers) == ("0-1", b"", None, ())


class _Latin1(str):
    """A header's name as a producer of another language may write it; kafka-python encodes names itself."""

    def encode(self, *_: str) -> bytes:  # type: ignore[override]
        return super().encode("latin-1")


async def test_a_header_name_that_is_not_utf8_holds_up_nothing(kafka: Broker) -> None:
    topic = make_topic(kafka, "latin")
    headers = [("stream", b"cam"), (_Latin1("größe"), b"\xff\xfe"), ("höhe", b"1")]
    for compression in (None, "gzip"):
        producer = KafkaProducer(bootstrap_servers=kafka.plain, linger_ms=200, compression_type=compression)
        for payload in (b"before", b"gr\xf6\xdfe \xff", b"after"):
            producer.send(topic, payload, headers=headers if payload.startswith(b"gr") else [])
        producer.close()
    async with reading(source_options(kafka, topic)) as (_, deliveries):
        messages = [delivery.message for delivery in await take(deliveries, 6, settle=True)]
    assert [message.payload for message in messages] == 2 * [b"before", b"gr\xf6\xdfe \xff", b"after"]
    for message in (messages[1], messages[4]):
        assert message.headers == (("stream", b"cam"), ("gr??e", b"\xff\xfe"), ("höhe", b"1"))


async def test_a_corrupt_record_holds_its_partition_and_is_named(kafka: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    topic = make_topic(kafka, "corrupt")
    produce(kafka, topic, [b"0"])
    produce(kafka, topic, [b"1"])
    whole = ReadableBatch._read_msg

    def damaged(batch: ReadableBatch) -> Any:
        record = whole(batch)
        if record.offset == 1:
            raise CorruptRecordError("as after a disk error")
        return record

    monkeypatch.setattr(ReadableBatch, "_read_msg", damaged)
    reports, options = Reports(), source_options(kafka, topic)
    async with reading(options, reports) as (_, deliveries):
        await take(deliveries, 1, settle=True)
        await until(lambda: reports.count("source_disconnected"))
        monkeypatch.setattr(ReadableBatch, "_read_msg", whole)
        (delivery,) = await take(deliveries, 1, settle=True)
        assert delivery.message.position == "0-1"
    (facts,) = reports.facts("record_corrupt")
    assert (facts["topic"], facts["partition"], facts["offset"], facts["cause"]) == (topic, 0, 1, "structure")


async def test_order_and_places(kafka: Broker) -> None:
    """At most max_in_flight are out; each settlement lets the next one out; order within a partition."""
    topic = make_topic(kafka, "places")
    sent = payloads(300)
    produce(kafka, topic, sent)
    async with reading(source_options(kafka, topic, max_in_flight=10)) as (_, deliveries):
        out = await take(deliveries, 10)
        waiting = anyio.Event()
        seen = [delivery.message.payload for delivery in out]
        async with anyio.create_task_group() as group:

            async def go_on() -> None:
                for _ in range(290):
                    delivery = await anext(deliveries)
                    waiting.set()
                    seen.append(delivery.message.payload)
                    delivery.settle()

            group.start_soon(go_on)
            await anyio.sleep(1.0)
            assert not waiting.is_set()  # ten are out
            for delivery in out:
                delivery.settle()
    assert seen == sent


async def test_the_watermark_is_committed_and_reading_goes_on_there(kafka: Broker) -> None:
    topic = make_topic(kafka, "watermark")
    produce(kafka, topic, payloads(10))
    options = source_options(kafka, topic)
    async with reading(options) as (_, deliveries):
        out = await take(deliveries, 10)
        for number in (0, 1, 2, 4, 5, 9):  # 3 is missing
            out[number].settle()
        await until(lambda: committed(kafka, options.group_id, topic) == 3)
        out[3].settle()
        await until(lambda: committed(kafka, options.group_id, topic) == 6)
        out[6].settle()  # in the last moment
    assert committed(kafka, options.group_id, topic) == 7
    async with reading(options) as (_, deliveries):
        again = await take(deliveries, 3, settle=True)
    assert [delivery.message.position for delivery in again] == ["0-7", "0-8", "0-9"]
    assert committed(kafka, options.group_id, topic) == 10


async def test_stop_ends_the_iteration_and_what_is_out_is_still_settled(kafka: Broker) -> None:
    topic = make_topic(kafka, "stop")
    produce(kafka, topic, payloads(50))
    options = source_options(kafka, topic)
    async with reading(options) as (source, deliveries):
        out = await take(deliveries, 20)
        await source.stop()
        assert [delivery async for delivery in deliveries] == []
        for delivery in out:
            delivery.settle()
        await until(lambda: committed(kafka, options.group_id, topic) == 20)


async def test_its_lag_is_what_is_not_settled_wherever_it_lies(kafka: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("connectors.kafka.lag._ASK_EVERY", 0.1)
    topic = make_topic(kafka, "lag", 2)
    for partition in (0, 1):
        produce(kafka, topic, payloads(5), partition=partition)
    async with reading(source_options(kafka, topic, max_in_flight=4)) as (source, deliveries):
        out = await take(deliveries, 4)
        await until(lambda: source.lag() == 10)
        produce(kafka, topic, payloads(3), partition=0)  # while all places are taken and nothing is fetched
        await until(lambda: source.lag() == 13)
        for delivery in out:
            delivery.settle()
        await until(lambda: source.lag() == 9)
        await take(deliveries, 9, settle=True)
        await until(lambda: source.lag() == 0)


async def test_nothing_is_lost_between_latest_and_earliest(kafka: Broker) -> None:
    """A new group gets what was there before it; with latest, only what comes after."""
    topic = make_topic(kafka, "reset")
    produce(kafka, topic, payloads(5))
    async with reading(source_options(kafka, topic)) as (_, deliveries):
        assert len(await take(deliveries, 5, settle=True)) == 5
    async with reading(source_options(kafka, topic, auto_offset_reset="latest")) as (_, deliveries):
        assert await nothing(deliveries, 3)


async def test_a_slow_consumer_stays_a_member(kafka: Broker) -> None:
    """Places used up for longer than session and poll interval: the thread goes on polling, so nobody takes the partition."""
    topic = make_topic(kafka, "slow")
    produce(kafka, topic, payloads(20))
    reports = Reports()
    options = source_options(kafka, topic, max_in_flight=5, session_timeout=2.0, max_poll_interval=3.0, drain=1.0)
    async with reading(options, reports) as (_, deliveries):
        out = await take(deliveries, 5)
        await anyio.sleep(5)
        for delivery in out:
            delivery.settle()
        await take(deliveries, 15, settle=True)
        await until(lambda: committed(kafka, options.group_id, topic) == 20)
    assert reports.told == [("source_connected", {"quiet": True, "source": "cameras"})]


async def test_a_new_partition_is_read_and_not_past_the_places(kafka_with: Callable[[str], Broker]) -> None:
    kafka = kafka_with("limits")
    topic = make_topic(kafka, "grows")
    produce(kafka, topic, payloads(3))
    async with reading(source_options(kafka, topic, max_in_flight=3, metadata_max_age=0.5)) as (_, deliveries):
        out = await take(deliveries, 3)
        with admin(kafka) as client:
            client.create_partitions({topic: 3})
        produce(kafka, topic, payloads(4), partition=2)
        async with anyio.create_task_group() as group:
            more: list[str] = []

            async def go_on() -> None:
                more.extend([delivery.message.position for delivery in await take(deliveries, 4, settle=True)])

            group.start_soon(go_on)
            await anyio.sleep(3)
            assert more == []
            for delivery in out:
                delivery.settle()
    assert more == ["2-0", "2-1", "2-2", "2-3"]


async def test_a_member_without_partitions_is_connected_but_hears_nothing_until_its_turn(kafka: Broker) -> None:
    topic, reports = make_topic(kafka, "standby"), Reports()
    options = source_options(kafka, topic, session_timeout=6.0)
    async with AsyncExitStack() as later:
        async with reading(options) as (first, _):
            await until(first.listening, seconds=60)  # to a topic in which nothing is
            second, _ = await later.enter_async_context(reading(options, reports))
            await until(lambda: reports.count("source_connected"), seconds=60)
            await until(lambda: first.listening() and not second.listening(), seconds=60)
        await until(second.listening, seconds=60)


async def test_a_rebalance_drains_and_commits_before_it_gives_away(kafka: Broker) -> None:
    """Two members: what was in flight at the first is settled within `drain`, so the second does not get it again."""
    topic = make_topic(kafka, "drained", partitions=2)
    for partition in (0, 1):
        produce(kafka, topic, payloads(6), partition=partition)
    reports = Reports()
    options = source_options(kafka, topic, drain=15.0, session_timeout=4.0)
    async with reading(options, reports) as (_, first):
        out = await take(first, 12)
        async with reading(options) as (_, second):
            await anyio.sleep(2.5)
            for delivery in out:  # while the listener waits
                delivery.settle()
            await until(lambda: reports.count("partitions_revoked"))
            taken = reports.facts("partitions_revoked")[0]["partitions"]
            partition = int(taken[0].rpartition("/")[2])
            await until(lambda: committed(kafka, options.group_id, topic, partition) == 6)
            produce(kafka, topic, [b"new"], partition=partition)
            (delivery,) = await take(second, 1, settle=True)
            assert (delivery.message.position, delivery.message.payload) == (f"{partition}-6", b"new")
    assert len(taken) == 1
    assert reports.count("unsettled_at_revoke") == 0


async def test_what_is_not_drained_comes_again_and_a_late_settle_commits_nothing(kafka: Broker) -> None:
    topic = make_topic(kafka, "late", partitions=2)
    for partition in (0, 1):
        produce(kafka, topic, payloads(6), partition=partition)
    reports = Reports()
    options = source_options(kafka, topic, drain=0.5, session_timeout=4.0)
    async with reading(options, reports) as (_, first):
        out = await take(first, 12)
        for delivery in out:
            if delivery.message.position.endswith(("-0", "-1")):
                delivery.settle()
        async with reading(options) as (_, second):
            again = await take(second, 4)
            partition = int(again[0].message.position.partition("-")[0])
            assert [delivery.message.position for delivery in again] == [f"{partition}-{offset}" for offset in (2, 3, 4, 5)]
            for delivery in out:
                if delivery.message.position.startswith(f"{partition}-") and not delivery.message.position.endswith(("-0", "-1")):
                    delivery.settle()  # late: it is the second's now
            await anyio.sleep(1)
            assert committed(kafka, options.group_id, topic, partition) == 2
    assert reports.count("unsettled_at_revoke") == 1
    assert reports.facts("unsettled_at_revoke")[0]["unsettled"] == 4


async def test_a_member_that_was_thrown_out_loses_its_partitions(kafka_with: Callable[[str], Broker]) -> None:
    """As after a freeze: the group forgot it. Everything unsettled comes again; a late settle commits nothing."""
    kafka = kafka_with("limits")
    topic = make_topic(kafka, "lost")
    produce(kafka, topic, payloads(5))
    reports = Reports()
    options = source_options(kafka, topic)
    async with reading(options, reports) as (_, deliveries):
        out = await take(deliveries, 5)
        out[0].settle()
        await until(lambda: committed(kafka, options.group_id, topic) == 1)
        with admin(kafka) as client:
            (described,) = client.describe_groups([options.group_id]).values()
            members = [MemberToRemove(member_id=member["member_id"]) for member in described["members"]]
            client.remove_group_members(options.group_id, members)
        await until(lambda: reports.count("partitions_lost"))
        again = await take(deliveries, 4)
        assert [delivery.message.position for delivery in again] == ["0-1", "0-2", "0-3", "0-4"]
        for delivery in out[1:]:
            delivery.settle()
        await anyio.sleep(1)
        assert committed(kafka, options.group_id, topic) == 1
        for delivery in again:
            delivery.settle()
    assert committed(kafka, options.group_id, topic) == 5


async def test_a_gap_by_retention_is_counted(kafka_with: Callable[[str], Broker]) -> None:
    kafka = kafka_with("limits")
    topic = make_topic(kafka, "gap")
    produce(kafka, topic, payloads(10))
    options = source_options(kafka, topic)
    async with reading(options) as (_, deliveries):
        for delivery in (await take(deliveries, 10))[:3]:
            delivery.settle()
    assert committed(kafka, options.group_id, topic) == 3
    with admin(kafka) as client:
        client.delete_records({TopicPartition(topic, 0): 8})
    reports = Reports()
    async with reading(options, reports) as (_, deliveries):
        left = await take(deliveries, 2, settle=True)
    assert [delivery.message.position for delivery in left] == ["0-8", "0-9"]
    assert [facts["missing"] for facts in reports.facts("offsets_gone")] == [5]
    assert committed(kafka, options.group_id, topic) == 10


async def test_a_sender_puts_messages_where_the_source_reads(kafka: Broker) -> None:
    topic = make_topic(kafka, "sent")
    options = source_options(kafka, topic)
    message = Message(source="", topic="", position="", payload=b"x" * 2_000_000, received=0.0, key=b"cam", headers=(("stream", b"cam"),))
    async with KafkaSender(options) as sender, reading(options) as (_, deliveries):
        assert list(await sender.send([message, message])) == [(topic, "0-0"), (topic, "0-1")]
        got = await take(deliveries, 2, settle=True)
    assert [(d.message.payload, d.message.key, d.message.headers) for d in got] == 2 * [(message.payload, message.key, message.headers)]


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_a_broker_that_goes_and_comes_back(own_kafka: Broker, how: str) -> None:
    """Said once with its cause, nothing lost, the order kept, and the iteration never raises."""
    topic = make_topic(own_kafka, how)
    produce(own_kafka, topic, payloads(100))
    reports = Reports()
    options = source_options(own_kafka, topic, max_in_flight=20)
    async with reading(options, reports) as (source, deliveries):
        seen = [delivery.message.position for delivery in await take(deliveries, 50, settle=True)]
        held = await take(deliveries, 10)
        await until(lambda: reports.count("source_connected") == 1 and source.listening())
        await anyio.to_thread.run_sync(getattr(own_kafka, how))
        await until(lambda: reports.count("source_disconnected", "refused"))
        assert not source.listening()
        for delivery in held:
            delivery.settle()
        seen += [delivery.message.position for delivery in held]
        await anyio.sleep(2)
        await anyio.to_thread.run_sync(own_kafka.start)
        produce(own_kafka, topic, payloads(20, start=100))
        with anyio.fail_after(60):
            while len(set(seen)) < 120:
                delivery = await anext(deliveries)
                seen.append(delivery.message.position)
                delivery.settle()
        await until(lambda: reports.count("source_connected") >= 2 and source.listening())
    first_time = list(dict.fromkeys(seen))
    assert first_time == [f"0-{offset}" for offset in range(120)]
    assert reports.count("source_disconnected", "refused") == 1
    assert committed(own_kafka, options.group_id, topic) == 120


async def test_it_may_start_before_its_broker(own_kafka: Broker) -> None:
    topic = make_topic(own_kafka, "early")
    produce(own_kafka, topic, payloads(3))
    await anyio.to_thread.run_sync(own_kafka.stop)
    reports = Reports()
    async with reading(source_options(own_kafka, topic), reports) as (_, deliveries):
        await until(lambda: reports.count("source_disconnected", "refused"))
        starting = threading.Thread(target=partial(own_kafka.start))
        starting.start()
        await take(deliveries, 3, settle=True, seconds=60)
        starting.join()
    assert reports.count("source_connected") == 1


async def test_closing_is_quick_while_the_broker_is_away(own_kafka: Broker) -> None:
    topic = make_topic(own_kafka, "away")
    produce(own_kafka, topic, payloads(3))
    reports = Reports()
    try:
        async with reading(source_options(own_kafka, topic), reports) as (_, deliveries):
            out = await take(deliveries, 3)
            await anyio.to_thread.run_sync(own_kafka.kill)
            await until(lambda: reports.count("source_disconnected"))
            for delivery in out:
                delivery.settle()
            began = time.monotonic()
        assert time.monotonic() - began < 5
    finally:
        await anyio.to_thread.run_sync(own_kafka.start)


async def test_groups_of_their_own(kafka: Broker) -> None:
    """Two groups get everything each."""
    topic = make_topic(kafka, "groups")
    produce(kafka, topic, payloads(4))
    for group in (fresh("a"), fresh("b")):
        async with reading(source_options(kafka, topic, group)) as (_, deliveries):
            assert len(await take(deliveries, 4, settle=True)) == 4
