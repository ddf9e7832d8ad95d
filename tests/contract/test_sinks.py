"""What every sink, every dead letter and every receiver promises, for every registered kind."""

import base64
import dataclasses
import threading
from pathlib import Path
from typing import Any

import anyio
import cv2
import numpy as np
import pytest

from contract.bindings import DeadLetterBinding, SinkBinding
from contract.registered import DEAD_LETTERS, SINKS, names
from monitor.errors import Rejected
from monitor.ports import Context, Sink, SinkOptions
from monitor.publishing import Outlet
from monitor.registry import kinds, resolve
from monitor.telemetry import Telemetry
from monitor.types import DeadLetter, Event, Message

PATIENCE = 30.0


@pytest.fixture(params=names(kinds("sinks"), SINKS))
def place(request: pytest.FixtureRequest, tmp_path: Path) -> SinkBinding:
    if request.param not in SINKS:
        pytest.fail(f"sink kind {request.param} has no binding in tests/contract: what is not in the suite does not exist")
    return SINKS[request.param](request, tmp_path)  # type: ignore[call-arg]


@pytest.fixture(params=kinds("dead_letters"))
def grave(request: pytest.FixtureRequest, tmp_path: Path) -> DeadLetterBinding:
    if request.param not in DEAD_LETTERS:
        pytest.fail(f"dead letter kind {request.param} has no binding in tests/contract: what is not in the suite does not exist")
    return DEAD_LETTERS[request.param](request, tmp_path)  # type: ignore[call-arg]


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


def opened(options: SinkOptions, telemetry: Telemetry) -> Sink:
    sink: Sink = resolve(options.implementation)(options, Context(name="alerts", report=telemetry.report))
    return sink


def alert(number: int, stream: str = "press/7/cam", *, side: int = 0, **data: Any) -> Event:
    noise = np.random.default_rng(number).random((side, side), np.float32) if side else None
    return Event(
        id=f"bottle:cameras/press/0-{number}",
        type="monitor.alert.v1",
        source="/press_shop/bottle",
        key=stream,
        time=1_790_000_000.25,
        data={"stream": stream, "score": 0.5 + number, **data},
        map=noise,
    )


def score(number: int) -> Event:
    return dataclasses.replace(alert(number), type="monitor.score.v1")


def letter(payload: bytes, position: str = "0-1", headers: tuple[tuple[str, bytes], ...] = (), key: bytes | None = None) -> Event:
    message = Message(source="cameras", topic="press", position=position, payload=payload, received=5.0, key=key, headers=headers, timestamp=4.0)
    return Event(
        id=f"dead_letter:{message.id}",
        type="monitor.dead_letter.v1",
        source="/press_shop",
        key="press",
        time=5.0,
        data={},
        dead_letter=DeadLetter(message=message, reason="undecodable", error="broken, and \N{LATIN SMALL LETTER U WITH DIAERESIS}ber"),
    )


@pytest.mark.anyio
async def test_after_send_the_events_can_be_read(place: SinkBinding, telemetry: Telemetry) -> None:
    async with opened(place.options(), telemetry) as sink:
        await sink.send([alert(number) for number in range(5)])
        events = {event["id"]: event for event in place.events()}
    assert sorted(events) == sorted(alert(number).id for number in range(5))
    event = events[alert(3).id]
    assert event == {
        "specversion": "1.0",
        "id": "bottle:cameras/press/0-3",
        "source": "/press_shop/bottle",
        "type": "monitor.alert.v1",
        "subject": "press/7/cam",
        "time": "2026-09-21T14:13:20.250000Z",
        "datacontenttype": "application/json",
        "data": {"stream": "press/7/cam", "score": 3.5},
    }


@pytest.mark.anyio
async def test_a_look_before_and_beside_what_is_sent(place: SinkBinding, telemetry: Telemetry) -> None:
    async with opened(place.options(), telemetry) as sink:
        await sink.look()
        assert place.events() == []
        async with anyio.create_task_group() as tasks:
            for number in range(3):
                tasks.start_soon(sink.send, [alert(number)])
                tasks.start_soon(sink.look)
    assert {event["id"] for event in place.events()} == {alert(number).id for number in range(3)}


@pytest.mark.anyio
async def test_nothing_to_send(place: SinkBinding, telemetry: Telemetry) -> None:
    async with opened(place.options(), telemetry) as sink:
        await sink.send([])


@pytest.mark.anyio
async def test_the_same_id_twice_is_harmless(place: SinkBinding, telemetry: Telemetry) -> None:
    async with opened(place.options(), telemetry) as sink:
        await sink.send([alert(1), alert(2)])
        await sink.send([alert(1), alert(2)])
    async with opened(place.options(), telemetry) as sink:
        await sink.send([alert(2), alert(3)])
    assert {event["id"] for event in place.events()} == {alert(number).id for number in (1, 2, 3)}


@pytest.mark.anyio
async def test_a_score_and_an_alert_of_one_sample_share_an_id_and_both_are_there(place: SinkBinding, telemetry: Telemetry) -> None:
    both = [one for number in range(5) for one in (score(number), alert(number))]
    async with opened(place.options(), telemetry) as sink:
        await sink.send(both)
    found = [(event["type"], event["id"]) for event in place.events()]
    sent = [(event.type, event.id) for event in both]
    assert found == sent if place.ordered else sorted(found) == sorted(sent)


@pytest.mark.anyio
async def test_of_one_sample_the_alert_alone_may_be_refused(place: SinkBinding, telemetry: Telemetry) -> None:
    outlet = Outlet("alerts", place.options(max_bytes=4096), ["alert", "score"], telemetry)
    async with outlet.sink:
        refused = await outlet.send([score(1), alert(1, note="x" * 5000), score(2)])
    assert [(letter.message.topic, letter.message.position) for letter in refused] == [("monitor.alert.v1", alert(1).id)]
    assert {(event["type"], event["id"]) for event in place.events()} == {(score(number).type, score(number).id) for number in (1, 2)}


@pytest.mark.anyio
async def test_the_order_per_key_is_kept(place: SinkBinding, telemetry: Telemetry) -> None:
    async with opened(place.options(), telemetry) as sink:
        for begin in (0, 20):
            await sink.send([alert(number, stream=f"cam{number % 3}") for number in range(begin, begin + 20)])
    if not place.ordered:
        assert len(place.events()) == 40
        return
    for stream in ("cam0", "cam1", "cam2"):
        scores = [event["data"]["score"] for event in place.events() if event["subject"] == stream]
        assert scores == sorted(scores)


@pytest.mark.anyio
async def test_many_sends_at_once(place: SinkBinding, telemetry: Telemetry) -> None:
    async with opened(place.options(), telemetry) as sink, anyio.create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(sink.send, [alert(number)])
    assert {event["id"] for event in place.events()} == {alert(number).id for number in range(10)}


@pytest.mark.anyio
async def test_ids_and_streams_of_any_text(place: SinkBinding, telemetry: Telemetry) -> None:
    names = ("../../etc/passwd", "a b\n", "\N{SNOWMAN}" * 200, ".hidden", "x" * 400)
    events = [Event(id=name, type="monitor.alert.v1", source="/s/d", key=name, time=1.0, data={}) for name in names]
    async with opened(place.options(), telemetry) as sink:
        await sink.send(events)
    assert {event["id"] for event in place.events()} == set(names)
    assert {event["subject"] for event in place.events()} == set(names)


@pytest.mark.anyio
async def test_a_map_travels_and_is_the_map(place: SinkBinding, telemetry: Telemetry) -> None:
    event = alert(1, side=40)
    async with opened(place.options(), telemetry) as sink:
        await sink.send([event])
    (found,) = place.events()
    facts = found["data"]["map"]
    grey = cv2.imdecode(np.frombuffer(base64.b64decode(facts["base64"]), np.uint8), cv2.IMREAD_UNCHANGED)
    assert grey is not None
    assert (facts["media_type"], facts["width"], facts["height"]) == ("image/png", 40, 40)
    scores = facts["black"] + grey.astype(np.float32) / 255 * (facts["white"] - facts["black"])
    assert event.map is not None
    assert np.abs(scores - event.map).max() < 0.003


@pytest.mark.anyio
async def test_a_large_map_is_halved_until_it_fits(place: SinkBinding, telemetry: Telemetry) -> None:
    async with opened(place.options(), telemetry) as sink:
        await sink.send([alert(1, side=700)])
    (found,) = place.events()
    assert found["data"]["map"]["width"] == 175
    assert len(found["data"]["map"]["base64"]) <= 64 * 1024


@pytest.mark.anyio
async def test_an_alert_that_is_too_large_goes_without_its_map(place: SinkBinding, telemetry: Telemetry) -> None:
    async with opened(place.options(max_bytes=4096), telemetry) as sink:
        await sink.send([alert(1, side=100), alert(2)])
    events = {event["id"]: event for event in place.events()}
    assert "map" not in events[alert(1).id]["data"]
    assert events[alert(1).id]["data"]["score"] == 1.5
    assert alert(2).id in events
    assert telemetry.count("map_dropped") == 1


@pytest.mark.anyio
async def test_what_is_never_taken_is_named_and_the_others_are_there(place: SinkBinding, telemetry: Telemetry) -> None:
    async with opened(place.options(max_bytes=4096), telemetry) as sink:
        with pytest.raises(Rejected) as caught:
            await sink.send([alert(1), alert(2, note="x" * 5000), alert(3, side=100, note="x" * 5000), alert(4)])
        assert set(caught.value.events) == {(alert(number).type, alert(number).id) for number in (2, 3)}
        assert {event["id"] for event in place.events()} == {alert(1).id, alert(4).id}


def test_the_constructor_does_nothing(place: SinkBinding, telemetry: Telemetry, tmp_path: Path) -> None:
    _constructs(place.options(), telemetry, tmp_path)


def test_the_constructor_of_a_dead_letter_does_nothing(grave: DeadLetterBinding, telemetry: Telemetry, tmp_path: Path) -> None:
    _constructs(grave.options(), telemetry, tmp_path)


def _constructs(options: SinkOptions, telemetry: Telemetry, tmp_path: Path) -> None:
    implementation, receiver = resolve(options.implementation), resolve(options.receiver)
    threads, files = set(threading.enumerate()), sorted(tmp_path.rglob("*"))
    implementation(options, Context(name="alerts", report=telemetry.report))
    receiver(options)
    assert set(threading.enumerate()) <= threads  # those of an earlier test may end meanwhile
    assert sorted(tmp_path.rglob("*")) == files


@pytest.mark.anyio
async def test_a_receiver_hears_what_is_sent_from_now_on_with_its_map(place: SinkBinding, telemetry: Telemetry) -> None:
    options = place.options()
    heard: dict[str, bytes | None] = {}
    both = anyio.Event()
    async with opened(options, telemetry) as sink:
        await sink.send([alert(1)])
        async with resolve(options.receiver)(options) as receiver, anyio.create_task_group() as tasks:

            async def listen() -> None:
                async for event in receiver:
                    heard[event["id"]] = await receiver.map(event)
                    if len(heard) == 2:
                        both.set()

            tasks.start_soon(listen)
            await sink.send([alert(2, side=20), alert(3)])
            with anyio.fail_after(PATIENCE):
                await both.wait()
            tasks.cancel_scope.cancel()
    assert set(heard) == {alert(2).id, alert(3).id}
    png = heard[alert(2).id]
    assert png is not None
    assert cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED).shape == (20, 20)  # type: ignore[union-attr]
    assert heard[alert(3).id] is None


@pytest.mark.anyio
async def test_a_dead_letter_keeps_the_message_byte_for_byte(grave: DeadLetterBinding, telemetry: Telemetry) -> None:
    every_byte = bytes(range(256))
    headers = (("content-type", b"image/png"), ("x", b"\xff\x00"), ("x", b"second"), ("empty", b""))
    async with opened(grave.options(), telemetry) as sink:
        await sink.send([letter(every_byte, "0-1", headers, b"\xfekey"), letter(b"", "0-2")])
        await sink.send([letter(every_byte, "0-1", headers, b"\xfekey")])
    found = {one.position: one for one in grave.letters()}
    assert set(found) == {"0-1", "0-2"}
    assert found["0-1"].payload == every_byte
    assert found["0-1"].headers == headers
    assert found["0-1"].key == b"\xfekey"
    assert (found["0-1"].source, found["0-1"].topic) == ("cameras", "press")
    assert (found["0-1"].reason, found["0-1"].error) == ("undecodable", "broken, and über")
    assert (found["0-2"].payload, found["0-2"].key) == (b"", None)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "name", ["monitor-spilled", "monitor-key", "monitor-headers", "monitor-source", "monitor-\n", "monitor-\ufeff", "\ud800"], ids=ascii
)
async def test_a_dead_letter_keeps_headers_of_any_name_apart_from_its_own(grave: DeadLetterBinding, telemetry: Telemetry, name: str) -> None:
    headers = (("x", b"1"), (name, b"true"), (name, b"\xff"))
    async with opened(grave.options(), telemetry) as sink:
        await sink.send([letter(b'{"path": "/etc/hostname"}', "0-1", headers, b"key")])
    (found,) = grave.letters()
    assert (found.headers, found.key, found.source) == (headers, b"key", "cameras")
    assert (found.payload, found.spilled) == (b'{"path": "/etc/hostname"}', False)


@pytest.mark.anyio
async def test_a_dead_letter_beyond_its_limit_is_spilled(grave: DeadLetterBinding, telemetry: Telemetry) -> None:
    large = bytes(range(256)) * 400
    async with opened(grave.options(max_bytes=4096), telemetry) as sink:
        await sink.send([letter(b"small", "0-1"), letter(large, "0-2"), letter(large, "0-3")])
    found = {one.position: one for one in grave.letters()}
    assert found["0-1"].payload == b"small"
    assert not found["0-1"].spilled
    for position in ("0-2", "0-3"):
        assert found[position].payload == large
        assert found[position].spilled == grave.spills
    assert telemetry.count("payload_spilled") == (2 if grave.spills else 0)
