"""What is the folder kind's own: names, unfinished files, headers beside a file, folders that go away, spills."""

import json
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from connectors.files import safe_name, write_durably
from connectors.folder.dead_letter import FolderDeadLetter
from connectors.folder.options import FolderDeadLetterOptions, FolderSinkOptions, FolderSourceOptions
from connectors.folder.receiver import FolderReceiver
from connectors.folder.sender import FolderSender
from connectors.folder.sink import FolderSink
from connectors.folder.source import FolderSource
from connectors.spill import spill
from contract.bindings import Record
from monitor.decoding import decode
from monitor.errors import BadSample, ConfigError, Disconnected, Rejected
from monitor.ports import Context, Delivery
from monitor.telemetry import Telemetry
from monitor.types import DeadLetter, Event, Message


class Reading:
    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []
        self.telemetry = Telemetry()

    @property
    def positions(self) -> list[str]:
        return [delivery.message.position for delivery in self.deliveries]

    async def until(self, count: int) -> list[Delivery]:
        with anyio.fail_after(10):
            while len(self.deliveries) < count:  # noqa: ASYNC110
                await anyio.sleep(0.005)
        return self.deliveries

    async def happened(self, what: str) -> None:
        with anyio.fail_after(10):
            while not self.telemetry.count(what):  # noqa: ASYNC110
                await anyio.sleep(0.005)


@asynccontextmanager
async def reading(path: Path, record: Record | None = None, **options: Any) -> AsyncIterator[Reading]:
    read = Reading()
    context = Context(name="inbox", report=read.telemetry.report, positions=record or Record())
    source = FolderSource(FolderSourceOptions(path=path, poll=0.01, **options), context)

    async def run() -> None:
        async for delivery in source:
            read.deliveries.append(delivery)

    async with source, anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        yield read
        await source.stop()


@pytest.mark.anyio
async def test_names_order_and_what_is_not_read(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "press/7/cam.png", ".hidden.png", "half.png.part", "half.tmp", ".git/x.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    async with reading(tmp_path) as read:
        await read.until(3)
        await anyio.sleep(0.1)
        assert read.positions == ["a.png", "b.png", "press/7/cam.png"]
        first, _, third = (delivery.message for delivery in read.deliveries)
        assert (first.topic, first.headers, first.key) == (tmp_path.name, (), None)
        assert third.headers == (("stream", b"press/7"),)
        assert first.timestamp == pytest.approx(time.time(), abs=60)
        (tmp_path / "half.png.part").rename(tmp_path / "half.png")
        await read.until(4)
        assert read.positions[3] == "half.png"


@pytest.mark.anyio
async def test_settled_names_are_recorded_while_it_runs(tmp_path: Path) -> None:
    record = Record()
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(b"x")
    async with reading(tmp_path, record) as read:
        for delivery in (await read.until(3))[:2]:
            delivery.settle()
        with anyio.fail_after(5):
            while record.settled(f"inbox:{tmp_path}") != {"0.png", "1.png"}:  # noqa: ASYNC110
                await anyio.sleep(0.01)


@pytest.mark.anyio
async def test_another_folder_holds_other_files(tmp_path: Path) -> None:
    record = Record()
    for folder in ("monday", "tuesday"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.png").write_bytes(folder.encode())
        async with reading(tmp_path / folder, record) as read:
            (delivery,) = await read.until(1)
            assert delivery.message.payload == folder.encode()
            delivery.settle()


@pytest.mark.anyio
async def test_deleted_files_are_forgotten_but_not_by_an_empty_folder(tmp_path: Path) -> None:
    record, place = Record(), f"inbox:{tmp_path}"
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(b"x")
    async with reading(tmp_path, record) as read:
        for delivery in await read.until(3):
            delivery.settle()
    for number in range(3):
        (tmp_path / f"{number}.png").unlink()
    async with reading(tmp_path, record):
        await anyio.sleep(0.1)
    assert record.settled(place) == {"0.png", "1.png", "2.png"}
    (tmp_path / "2.png").write_bytes(b"x")
    async with reading(tmp_path, record) as read:
        await anyio.sleep(0.1)
        assert read.positions == []
    assert record.settled(place) == {"2.png"}


class Failing(Record):
    """A record that cannot be written for a while."""

    failing = True

    def settle(self, place: str, positions: Sequence[str]) -> None:
        if self.failing:
            raise Disconnected("disk full", "lost")
        super().settle(place, positions)


@pytest.mark.anyio
async def test_a_record_that_cannot_be_written_is_said_once_and_tried_again(tmp_path: Path) -> None:
    record = Failing()
    (tmp_path / "1.png").write_bytes(b"x")
    async with reading(tmp_path, record) as read:
        (delivery,) = await read.until(1)
        delivery.settle()
        await read.happened("commit_failed")
        (tmp_path / "2.png").write_bytes(b"x")
        await read.until(2)
        assert read.telemetry.count("commit_failed", "lost") == 1
        record.failing = False
    assert record.settled(f"inbox:{tmp_path}") == {"1.png"}


@pytest.mark.anyio
async def test_a_pipe_is_said_once_and_holds_up_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    os.mkfifo(tmp_path / ".b.png.headers.json")
    (tmp_path / "b.png").write_bytes(b"x")
    (tmp_path / "c.png").write_bytes(b"x")
    async with reading(tmp_path) as read:
        await read.until(1)
        await anyio.sleep(0.1)
        assert read.positions == ["c.png"]
        assert read.telemetry.count("file_unreadable") == 2


@pytest.mark.anyio
async def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"x")
    async with reading(tmp_path) as read:
        await read.until(1)
        assert read.positions == ["caf\\xe9.png"]


@pytest.mark.anyio
async def test_a_folder_that_goes_away_and_comes_back(tmp_path: Path) -> None:
    inbox = tmp_path / "inbox"
    async with reading(inbox) as read:
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "1.png").write_bytes(b"x")
        await read.happened("source_connected")
        inbox.rmdir()  # made by the source
        await read.happened("source_disconnected")
        assert read.telemetry.count("source_connected") == 1
        (tmp_path / "new").rename(inbox)
        await read.until(1)
        assert read.telemetry.count("source_disconnected", "lost") == 1
        assert read.telemetry.count("source_connected") == 2


@pytest.mark.anyio
async def test_a_file_that_cannot_be_read_is_said_once_and_holds_up_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "gone")
    (tmp_path / "b.png").write_bytes(b"x")
    async with reading(tmp_path) as read:
        await read.until(1)
        await anyio.sleep(0.1)
        assert read.positions == ["b.png"]
        assert read.telemetry.count("file_unreadable") == 1
        (tmp_path / "gone").write_bytes(b"y")
        await read.until(3)  # the link, and what it leads to
        assert "a.png" in read.positions


@pytest.mark.anyio
async def test_headers_that_cannot_be_read_are_said(tmp_path: Path) -> None:
    half = b'{"key": null, "headers": [["\\ud800", ""]]}'  # of a surrogate pair
    for number, broken in enumerate(
        (b"{", b"[]", b'{"key": 5, "headers": []}', b'{"key": null, "headers": [["a"]]}', b'{"key": null, "headers": [[1, ""]]}', half)
    ):
        (tmp_path / f"{number}.png").write_bytes(b"x")
        (tmp_path / f".{number}.png.headers.json").write_bytes(broken)
    async with reading(tmp_path) as read:
        for delivery in await read.until(6):
            assert delivery.message.headers == ()
        assert read.telemetry.count("file_unreadable") == 6


@pytest.mark.anyio
async def test_large_files_come_one_at_a_time(tmp_path: Path) -> None:
    for name in ("1", "2", "3"):
        (tmp_path / name).write_bytes(bytes(2000))
    async with reading(tmp_path, max_bytes=1000) as read:
        await read.until(1)
        await anyio.sleep(0.1)
        assert read.positions == ["1"]
        with pytest.raises(BadSample, match="at most 1000"):
            decode(read.deliveries[0].message, FolderSourceOptions(path=tmp_path, max_bytes=1000))
        read.deliveries[0].settle()
        await read.until(2)


def test_a_lasting_record_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="inbox"):
        FolderSource(FolderSourceOptions(path=tmp_path), Context(name="inbox", report=Telemetry().report))


def message(position: str, payload: bytes = b"x") -> Message:
    return Message(source="inbox", topic="t", position=position, payload=payload, received=1.0)


@pytest.mark.anyio
async def test_the_sender_takes_names_that_are_read_and_no_others(tmp_path: Path) -> None:
    sender = FolderSender(FolderSourceOptions(path=tmp_path / "inbox"))
    sent = await sender.send([message("a.png", b"1"), message("a.png", b"2"), message("press/a.png")])
    assert sent == [("inbox", "a.png"), ("inbox", "a~2.png"), ("inbox", "press/a.png")]
    assert (tmp_path / "inbox" / "a~2.png").read_bytes() == b"2"
    for name in ("", "/etc/x", "../x", "a/../../x", ".x", "x.part", "x.tmp"):
        with pytest.raises(Rejected):
            await sender.send([message(name)])
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Disconnected):
        await FolderSender(FolderSourceOptions(path=tmp_path / "file")).send([message("a.png")])


def event(name: str = "a:1", **facts: Any) -> Event:
    return Event(id=name, type="monitor.alert.v1", source="/s/d", key="cam", time=1.0, data={}, **facts)


@pytest.mark.anyio
async def test_a_sink_whose_folder_is_gone_is_away_and_comes_back(tmp_path: Path) -> None:
    async with FolderSink(FolderSinkOptions(path=tmp_path / "alerts"), Context(name="alerts", report=Telemetry().report)) as sink:
        (tmp_path / "alerts").rmdir()
        with pytest.raises(Disconnected) as caught:
            await sink.send([event()])
        assert caught.value.cause == "lost"
        (tmp_path / "alerts").mkdir()
        await sink.send([event()])
        assert [path.name for path in (tmp_path / "alerts").iterdir()] == ["a%3A1.alert.json"]


@pytest.mark.anyio
async def test_what_others_write_ends_no_listener(tmp_path: Path) -> None:
    async with FolderReceiver(FolderSinkOptions(path=tmp_path)) as receiver:
        for number, raw in enumerate((b"\xff", b"[1]", b'{"a": 1}')):
            (tmp_path / f"{number}.json").write_bytes(raw)
        (tmp_path / "3.json").mkdir()
        heard = []
        with anyio.fail_after(10):
            async for event in receiver:
                heard.append(event)
                if len(heard) == 4:
                    break
    errors = [event["error"] for event in heard if "error" in event]
    assert {"a": 1} in heard
    assert len(errors) == 3
    assert f"{tmp_path}/0.json is no JSON object" in errors


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["file", "file/below"])
async def test_folders_that_cannot_be_made(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    context = Context(name="x", report=Telemetry().report)
    with pytest.raises(Disconnected):
        await FolderSink(FolderSinkOptions(path=tmp_path / path), context).__aenter__()
    with pytest.raises(Disconnected):
        await FolderDeadLetter(FolderDeadLetterOptions(path=tmp_path / path), context).__aenter__()


@pytest.mark.anyio
async def test_a_spill_folder_that_is_away_holds_the_dead_letter(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    options = FolderDeadLetterOptions(path=tmp_path / "dead", spill=tmp_path / "file" / "spill", max_bytes=1024)
    async with FolderDeadLetter(options, Context(name="x", report=Telemetry().report)) as sink:
        letter = DeadLetter(message=message("1", bytes(2000)), reason="undecodable", error="broken")
        with pytest.raises(Disconnected, match="cannot be spilled"):
            await sink.send([event(dead_letter=letter)])
        assert list((tmp_path / "dead").iterdir()) == []


def test_safe_names_are_different_for_different_ids() -> None:
    ids = ["a:b", "a/b", "a%2Fb", "a_b", ".a", "%2Ea", "..", "", "x" * 500, "x" * 501, "\N{SNOWMAN}" * 100, "A", "\0"]
    names = [safe_name(id_) for id_ in ids]
    assert len(set(names)) == len(ids)
    assert not any("/" in name or name.startswith(".") or len(name.encode()) > 200 for name in names)


def test_writing_leaves_the_whole_file_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_durably(tmp_path / "a", b"one", b"two")
    assert (tmp_path / "a").read_bytes() == b"onetwo"

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_durably(tmp_path / "a", b"three")
    assert (tmp_path / "a").read_bytes() == b"onetwo"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_spilling_twice_writes_once(tmp_path: Path) -> None:
    facts = spill(tmp_path / "spill", b"payload")
    before = os.stat(facts["path"])
    assert spill(tmp_path / "spill", b"payload") == facts
    assert os.stat(facts["path"]).st_ino == before.st_ino
    assert Path(facts["path"]).read_bytes() == b"payload"
    assert facts["size"] == 7
    assert json.dumps(facts)
    Path(facts["path"]).write_bytes(b"pay")  # cut short by something else
    spill(tmp_path / "spill", b"payload")
    assert Path(facts["path"]).read_bytes() == b"payload"
