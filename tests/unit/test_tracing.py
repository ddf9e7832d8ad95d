"""One trace per message, by a collector that takes OTLP over HTTP as a real one does."""

import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from collector import Collector
from connectors.cloudevents import structured, trace_headers
from monitor.ports import Delivery
from monitor.settings import TracingSettings
from monitor.telemetry import Telemetry
from monitor.tracing import Tracing
from monitor.types import DeadLetter, Event, Message

pytestmark = pytest.mark.anyio

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine may be slow; nobody waits so long."""
    monkeypatch.setattr("monitor.tracing._PATIENCE", 60.0)


def message(position: str = "0-0", **headers: bytes) -> Message:
    return Message(
        source="cameras", topic="press", position=position, payload=b"1234", received=1.7e9, headers=tuple((n, v) for n, v in headers.items())
    )


def event(position: str = "0-0") -> Event:
    data = {"score": 1.0, "sample": {"source": "cameras", "topic": "press", "position": position}}
    return Event(id=f"bottle:cameras/press/{position}", type="monitor.alert.v1", source="/test/bottle", key="press/7", time=1.7e9, data=data)


@asynccontextmanager
async def tracing(endpoint: str, telemetry: Telemetry | None = None, **settings: Any) -> AsyncIterator[Tracing]:
    async with Tracing(TracingSettings(endpoint=endpoint, **settings), site="test", report=(telemetry or Telemetry()).report) as tracing:
        yield tracing


async def follow(tracing: Tracing, message: Message, settled: list[str] | None = None) -> str | None:
    """What the pipeline does with one message; the alert's traceparent."""
    settle = tracing.received(Delivery(message, lambda: (settled if settled is not None else []).append(message.id)))
    tracing.step("decode", [message.id], 0.25)
    tracing.step("score", [message.id], 0.5, detector="bottle", batch_size=1)
    with tracing.publishing("bottle", [event(message.position)]) as (sent,):
        pass
    settle()
    return sent.traceparent


async def test_a_trace_goes_on_from_the_source_to_the_alert() -> None:
    with Collector() as collector:
        settled: list[str] = []
        async with tracing(collector.endpoint) as following:
            traceparent = await follow(following, message(traceparent=PARENT.encode(), tracestate=b"plant=7"), settled)
        spans = {span.name: span for span in collector.spans}

    assert settled == ["cameras/press/0-0"]
    assert spans.keys() == {"receive", "decode", "score", "publish"}
    assert {span.trace_id.hex() for span in spans.values()} == {PARENT.split("-")[1]}
    receive = spans.pop("receive")
    assert receive.parent_span_id.hex() == PARENT.split("-")[2]
    assert receive.trace_state == "plant=7"
    assert receive.start_time_unix_nano == 1_700_000_000 * 10**9
    assert {span.parent_span_id for span in spans.values()} == {receive.span_id}
    assert spans["score"].end_time_unix_nano - spans["score"].start_time_unix_nano == 500_000_000
    assert {attribute.key: attribute.value.string_value for attribute in spans["score"].attributes}["monitor.detector"] == "bottle"
    assert traceparent == f"00-{receive.trace_id.hex()}-{spans['publish'].span_id.hex()}-01"
    assert collector.resource == {"service.name": "monitor", "service.namespace": "test"}


@pytest.mark.parametrize(
    "said", [None, b"\xff" * 20, b"x" * 10_000, b"00-" + b"0" * 32 + b"-b7ad6b7169203331-01"], ids=["none", "noise", "long", "zero"]
)
async def test_without_a_usable_context_a_trace_begins_here(said: bytes | None) -> None:
    with Collector() as collector:
        async with tracing(collector.endpoint) as following:
            await follow(following, message() if said is None else message(traceparent=said, tracestate=said))
        (receive,) = (span for span in collector.spans if span.name == "receive")

    assert receive.parent_span_id == b""


async def test_a_cloud_event_in_binary_mode_brings_its_context_too() -> None:
    with Collector() as collector:
        async with tracing(collector.endpoint) as following:
            await follow(following, message(ce_traceparent=PARENT.encode()))

    assert {span.trace_id.hex() for span in collector.spans} == {PARENT.split("-")[1]}


async def test_sampling_follows_who_began_the_trace() -> None:
    with Collector() as collector:
        async with tracing(collector.endpoint, sample=0.0) as following:
            ours = await follow(following, message("0-0"))
            theirs = await follow(following, message("0-1", traceparent=PARENT.encode()))

    assert {span.trace_id.hex() for span in collector.spans} == {PARENT.split("-")[1]}
    assert not int(ours[-2:], 16) & 1  # the context goes on, so that nobody behind us samples half a trace
    assert int(theirs[-2:], 16) & 1


async def test_what_goes_to_the_dead_letter_is_an_error_of_its_trace() -> None:
    with Collector() as collector:
        async with tracing(collector.endpoint) as following:
            settle = following.received(Delivery(message(), lambda: None))
            following.failed(DeadLetter(message=message(), reason="undecodable", error="no image"))
            settle()
    (span,) = collector.spans

    assert span.status.message == "no image"
    assert {attribute.key: attribute.value.string_value for attribute in span.attributes}["error.type"] == "undecodable"


async def test_a_message_that_is_out_twice_ends_both_traces() -> None:
    with Collector() as collector:
        async with tracing(collector.endpoint) as following:
            first, second = (following.received(Delivery(message(), lambda: None)) for _ in range(2))
            first()
            with following.publishing("bottle", [event()]) as (sent,):
                assert sent.traceparent is not None
            second()
            with following.publishing("bottle", [event()]) as (sent,):
                assert sent.traceparent is None

    assert [span.name for span in collector.spans].count("receive") == 2


async def test_a_collector_that_refuses_is_named_once_and_holds_nothing() -> None:
    telemetry, said = Telemetry(), list[str]()
    with Collector(status=400) as collector:
        async with tracing(collector.endpoint, telemetry.heard_by(lambda what, _: said.append(what))) as following:
            for number in range(1000):
                await follow(following, message(f"0-{number}"))

    assert collector.spans == []
    assert telemetry.count("traces_lost", "collector") > 1
    assert said == ["traces_lost"], "the rest is counted only"


async def test_the_end_does_not_wait_for_a_collector_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monitor.tracing._PATIENCE", 0.2)
    telemetry = Telemetry()
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        async with tracing(f"http://127.0.0.1:{nobody.getsockname()[1]}/v1/traces", telemetry) as following:
            await follow(following, message())
        with anyio.fail_after(60):
            while not telemetry.count("traces_lost", "collector"):  # noqa: ASYNC110 (its thread tells nobody)
                await anyio.sleep(0.01)


async def test_what_is_too_much_for_the_collector_is_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monitor.tracing._MOST", 600)
    telemetry, answer = Telemetry(), threading.Event()
    with Collector(hold=answer) as collector:
        async with tracing(collector.endpoint, telemetry) as following:
            for number in range(700):
                following.received(Delivery(message(f"0-{number}"), lambda: None))()
            assert telemetry.count("traces_lost", "queue_full") == 100
            answer.set()
        assert len(collector.spans) == 600


async def test_an_event_says_its_traceparent_where_it_has_one() -> None:
    traced = Event(id="a:b", type="monitor.alert.v1", source="/s", key="k", time=1.0, data={}, traceparent=PARENT)

    assert f'"traceparent":"{PARENT}"'.encode() in structured(traced)
    assert trace_headers(traced) == (("traceparent", PARENT),)
    assert b"traceparent" not in structured(event())
    assert trace_headers(event()) == ()
