"""The memory kind plays the other side as its channel says."""

import time
from pathlib import Path

import pytest

from connectors.memory.channel import channel
from connectors.memory.options import MemoryDeadLetterOptions, MemorySinkOptions
from connectors.memory.sink import MemoryDeadLetter, MemorySink
from monitor.errors import Disconnected, Rejected
from monitor.ports import Context
from monitor.telemetry import Telemetry
from monitor.types import DeadLetter, Event, Message


def event(number: int, letter: DeadLetter | None = None) -> Event:
    return Event(id=f"a:{number}", type="monitor.alert.v1", source="/s/a", key="cam", time=1.0, data={}, dead_letter=letter)


@pytest.fixture
def name(tmp_path: Path) -> str:
    return str(tmp_path)


@pytest.mark.anyio
async def test_failures_delay_and_refusals(name: str) -> None:
    other = channel(name)
    async with MemorySink(MemorySinkOptions(channel=name), Context(name="alerts", report=Telemetry().report)) as sink:
        other.failures = 2
        for _ in range(2):
            with pytest.raises(Disconnected):
                await sink.send([event(1)])
        await sink.send([event(1)])
        other.away = True
        with pytest.raises(Disconnected):
            await sink.send([event(2)])
        other.away = False
        other.rejects.add(("monitor.alert.v1", "a:3"))
        with pytest.raises(Rejected) as caught:
            await sink.send([event(2), event(3), event(4)])
        assert caught.value.events == (("monitor.alert.v1", "a:3"),)
        other.delay = 0.05
        begin = time.monotonic()
        await sink.send([event(5)])
        assert time.monotonic() - begin >= 0.05
    assert [found["id"] for found in other.events] == ["a:1", "a:2", "a:4", "a:5"]


@pytest.mark.anyio
async def test_dead_letters_are_kept_as_they_are(name: str) -> None:
    message = Message(source="s", topic="t", position="1", payload=bytes(5000), received=1.0)
    letter = DeadLetter(message=message, reason="failed", error="it raised")
    async with MemoryDeadLetter(MemoryDeadLetterOptions(channel=name, max_bytes=1024), Context(name="d", report=Telemetry().report)) as sink:
        await sink.send([event(1, letter)])
    assert channel(name).letters == [letter]
