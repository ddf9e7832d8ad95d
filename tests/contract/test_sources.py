"""What every source promises, for every registered kind."""

import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from contract.bindings import Record, SourceBinding
from contract.registered import SOURCES, names
from monitor.ports import Context, Delivery, Listening, Source
from monitor.registry import kinds, resolve
from monitor.telemetry import Telemetry
from monitor.types import Message

PATIENCE = 30.0  # a group of a real broker takes seconds to form
QUIET = 0.4


@pytest.fixture(params=names(kinds("sources"), SOURCES))
def place(request: pytest.FixtureRequest, tmp_path: Path) -> SourceBinding:
    if request.param not in SOURCES:
        pytest.fail(f"source kind {request.param} has no binding in tests/contract: what is not in the suite does not exist")
    return SOURCES[request.param](request, tmp_path)  # type: ignore[call-arg]


@pytest.fixture
def record() -> Record:
    return Record()


class Reading:
    """A source that is being read in a task, as the pipeline does."""

    def __init__(self, source: Source, telemetry: Telemetry) -> None:
        self.source = source
        self.telemetry = telemetry
        self.deliveries: list[Delivery] = []
        self.ended = anyio.Event()

    async def run(self) -> None:
        async for delivery in self.source:
            self.deliveries.append(delivery)
        self.ended.set()

    async def until(self, count: int) -> list[Delivery]:
        with anyio.fail_after(PATIENCE):
            while len(self.deliveries) < count:  # noqa: ASYNC110 (an event per count would be more than it is worth)
                await anyio.sleep(0.005)
        return self.deliveries

    @property
    def payloads(self) -> list[bytes]:
        return [delivery.message.payload for delivery in self.deliveries]


@asynccontextmanager
async def reading(place: SourceBinding, record: Record, **options: Any) -> AsyncIterator[Reading]:
    chosen = place.options(**options)
    telemetry = Telemetry()
    source = resolve(chosen.implementation)(chosen, Context(name="cameras", report=telemetry.report, positions=record))
    async with source, anyio.create_task_group() as tasks:
        read = Reading(source, telemetry)
        tasks.start_soon(read.run)
        yield read
        await source.stop()
        with anyio.fail_after(PATIENCE):
            await read.ended.wait()


async def put(place: SourceBinding, payloads: Sequence[bytes], **facts: Any) -> list[tuple[str, str]]:
    options = place.options()
    async with resolve(options.sender)(options) as sender:
        messages = [
            Message(source="", topic="", position=f"{time.monotonic_ns()}-{number:04}", payload=payload, received=0.0, **facts)
            for number, payload in enumerate(payloads)
        ]
        return list(await sender.send(messages))


def numbered(count: int, begin: int = 0) -> list[bytes]:
    return [f"payload {number}".encode() for number in range(begin, begin + count)]


@pytest.mark.anyio
async def test_hands_out_what_was_sent_in_order(place: SourceBinding, record: Record) -> None:
    sent = await put(place, numbered(20))
    async with reading(place, record) as read:
        deliveries = await read.until(20)
        assert read.payloads == numbered(20)
        assert [(delivery.message.topic, delivery.message.position) for delivery in deliveries] == sent
        assert {delivery.message.source for delivery in deliveries} == {"cameras"}
        assert len({delivery.message.id for delivery in deliveries}) == 20
        assert all(abs(delivery.message.received - time.time()) < 60 for delivery in deliveries)


@pytest.mark.anyio
async def test_it_says_when_it_has_its_other_side_but_logs_only_losses(place: SourceBinding, record: Record, capfd: Any) -> None:
    async with reading(place, record) as read:
        with anyio.fail_after(PATIENCE):
            while not read.telemetry.count("source_connected"):  # noqa: ASYNC110
                await anyio.sleep(0.005)
            while isinstance(read.source, Listening) and not read.source.listening():  # noqa: ASYNC110
                await anyio.sleep(0.005)
    assert read.telemetry.count("source_connected") == 1
    assert "source_connected" not in "".join(capfd.readouterr())


@pytest.mark.anyio
async def test_messages_that_come_while_it_reads(place: SourceBinding, record: Record) -> None:
    async with reading(place, record) as read:
        await put(place, numbered(2))
        await read.until(2)
        await put(place, numbered(3, 2))
        await read.until(5)
        assert read.payloads == numbered(5)


@pytest.mark.anyio
async def test_at_most_max_in_flight_are_out_and_it_goes_on_after_settling(place: SourceBinding, record: Record) -> None:
    await put(place, numbered(10))
    async with reading(place, record, max_in_flight=4) as read:
        await read.until(4)
        await anyio.sleep(QUIET)
        assert len(read.deliveries) == 4
        first = 0 if place.in_order else 2
        read.deliveries[first].settle()
        await read.until(5)
        await anyio.sleep(QUIET)
        assert len(read.deliveries) == 5
        for index in range(10):
            if index != first:
                await read.until(index + 1)
                read.deliveries[index].settle()
        await read.until(10)
        assert read.payloads == numbered(10)


@pytest.mark.anyio
async def test_settled_in_any_order_none_comes_again(place: SourceBinding, record: Record) -> None:
    await put(place, numbered(9))
    async with reading(place, record) as read:
        await read.until(9)
        for index in (8, 0, 4, 3, 1, 7, 2, 6, 5):
            read.deliveries[index].settle()
    await put(place, [b"after"])
    async with reading(place, record) as again:
        await again.until(1)
        await anyio.sleep(QUIET)
        assert again.payloads == [b"after"]


@pytest.mark.anyio
async def test_unsettled_comes_again_under_the_same_id(place: SourceBinding, record: Record) -> None:
    await put(place, numbered(6))
    async with reading(place, record) as read:
        first = {delivery.message.payload: delivery.message.id for delivery in await read.until(6)}
        read.deliveries[0].settle()
        read.deliveries[1].settle()
        read.deliveries[4].settle()
    async with reading(place, record) as again:
        # a broker that keeps one number per partition gives what lies behind the first gap again, settled or not
        await again.until(3)
        await anyio.sleep(QUIET)
        seen = {delivery.message.payload: delivery.message.id for delivery in again.deliveries}
        assert set(numbered(6)) - set(numbered(2)) - {b"payload 4"} <= set(seen)
        assert not set(seen) & set(numbered(2))
        assert all(first[payload] == id_ for payload, id_ in seen.items())


@pytest.mark.anyio
async def test_what_is_settled_after_stop_is_committed(place: SourceBinding, record: Record) -> None:
    await put(place, numbered(3))
    async with reading(place, record) as read:
        await read.until(3)
        await read.source.stop()
        with anyio.fail_after(PATIENCE):
            await read.ended.wait()
        for delivery in read.deliveries:
            delivery.settle()
    await put(place, [b"after"])
    async with reading(place, record) as again:
        await again.until(1)
        await anyio.sleep(QUIET)
        assert again.payloads == [b"after"]


@pytest.mark.anyio
async def test_stop_ends_the_iteration_while_all_places_are_taken(place: SourceBinding, record: Record) -> None:
    await put(place, numbered(5))
    async with reading(place, record, max_in_flight=2) as read:
        await read.until(2)
        await read.source.stop()
        with anyio.fail_after(PATIENCE):
            await read.ended.wait()
        assert len(read.deliveries) == 2


@pytest.mark.anyio
async def test_stop_before_it_is_entered(place: SourceBinding, record: Record) -> None:
    await put(place, numbered(3))
    options = place.options()
    source = resolve(options.implementation)(options, Context(name="cameras", report=Telemetry().report, positions=record))
    await source.stop()
    async with source:
        with anyio.fail_after(PATIENCE):
            assert [delivery async for delivery in source] == []


@pytest.mark.anyio
async def test_settling_twice_is_refused(place: SourceBinding, record: Record) -> None:
    await put(place, numbered(1))
    async with reading(place, record) as read:
        (delivery,) = await read.until(1)
        delivery.settle()
        with pytest.raises(ValueError):  # noqa: PT011
            delivery.settle()


@pytest.mark.anyio
async def test_payloads_pass_byte_for_byte(place: SourceBinding, record: Record) -> None:
    every_byte = bytes(range(256))
    payloads = [b"", every_byte, every_byte * 2000]
    await put(place, payloads)
    async with reading(place, record) as read:
        await read.until(3)
        assert read.payloads == payloads


@pytest.mark.anyio
async def test_a_payload_beyond_max_bytes_is_handed_out_whole(place: SourceBinding, record: Record) -> None:
    """It is for the dead letter, byte for byte; and what comes behind it is not held up."""
    large = bytes(range(256)) * 1000
    await put(place, [b"before", large, b"after"])
    async with reading(place, record, max_bytes=1000) as read:
        while len(read.deliveries) < 3:
            await read.until(len(read.deliveries) + 1)
            read.deliveries[-1].settle()
        assert read.payloads == [b"before", large, b"after"]


@pytest.mark.anyio
async def test_key_and_headers_keep_their_bytes_and_order(place: SourceBinding, record: Record) -> None:
    await put(place, [b"one"], key=place.key, headers=place.headers)
    async with reading(place, record) as read:
        (delivery,) = await read.until(1)
        assert delivery.message.key == place.key
        assert delivery.message.headers == place.headers


def test_the_constructor_does_nothing(place: SourceBinding, record: Record, tmp_path: Path) -> None:
    options = place.options()
    implementation = resolve(options.implementation)
    threads, files = set(threading.enumerate()), sorted(tmp_path.rglob("*"))
    implementation(options, Context(name="cameras", report=Telemetry().report, positions=record))
    resolve(options.sender)(options)
    assert set(threading.enumerate()) <= threads  # those of an earlier test may end meanwhile
    assert sorted(tmp_path.rglob("*")) == files
