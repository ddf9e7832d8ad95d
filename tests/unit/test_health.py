"""Health events: made of what is reported, sent beside the flow, lost rather than in its way."""

import itertools
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import anyio
import pytest

from connectors.memory.channel import channel
from connectors.memory.options import MemorySinkOptions
from connectors.memory.sink import MemorySink
from connectors.memory.source import MemorySource
from flow import until
from monitor import health as module
from monitor.commands.listen import line_of
from monitor.errors import Disconnected
from monitor.health import Health
from monitor.publishing import Outlet
from monitor.settings import SinkSettings
from monitor.streams import Streams
from monitor.telemetry import HAPPENINGS, HEALTH, Telemetry
from monitor.types import Event
from unit.test_pipeline import Line, picture, positions
from unit.test_schema import validator

pytestmark = pytest.mark.anyio
numbers = itertools.count()


class Site:
    """A few sinks for health events only."""

    def __init__(self, sinks: int = 1) -> None:
        self.telemetry = Telemetry()
        self.health = Health(site="plant", telemetry=self.telemetry)
        self.heard = self.telemetry.heard_by(self.health.hear)
        self.channels = [channel(f"health {next(numbers)}") for _ in range(sinks)]
        self.outlets = [
            Outlet(f"sink{number}", MemorySinkOptions(channel=channel.name), ["health"], self.heard) for number, channel in enumerate(self.channels)
        ]
        for outlet in self.outlets:
            self.health.tell(outlet, open_it=True)

    @property
    def events(self):
        return self.channels[0].events

    def what(self, sink: int = 0) -> list[str]:
        return [event["data"]["what"] for event in self.channels[sink].events]


@asynccontextmanager
async def running(site: Site):
    with anyio.fail_after(60):
        async with site.health.running():
            yield


def test_every_health_event_is_a_happening_and_so_is_what_it_ends():
    assert HEALTH.keys() <= HAPPENINGS.keys()
    assert {name for ends in HEALTH.values() for name in ends} <= HEALTH.keys()


async def test_an_event_says_what_happened_to_whom_and_satisfies_its_schema():
    site = Site()
    async with running(site):
        site.heard.report("source_disconnected", source="cameras", cause="refused", error="127.0.0.1:9092: refused")
        site.heard.report("stream_silent", source="cameras", stream="press/7", silent_for=6.5, expect_every=5.0)
        site.heard.report("offsets_gone", source="cameras", topic="press", partition=3, missing=17, going_on_from=99)
        site.heard.report("draining", grace=1.0)  # no health event
        await until(lambda: len(site.events) == 3)
    for event in site.events:
        validator("monitor.health.v1.json").validate(event)
    lost, silent, gone = site.events
    assert (lost["source"], lost["subject"], lost["type"]) == ("/plant", "cameras", "monitor.health.v1")
    assert lost["id"] == f"health:plant:cameras:source_disconnected:{lost['time']}"
    assert lost["data"] == {
        "what": "source_disconnected",
        "level": "warning",
        "host": socket.gethostname(),
        "source": "cameras",
        "cause": "refused",
        "error": "127.0.0.1:9092: refused",
        "since": lost["time"],
        "ends": [],
        "facts": {},
    }
    assert (silent["subject"], silent["data"]["source"], silent["data"]["facts"]) == ("press/7", "cameras", {"silent_for": 6.5, "expect_every": 5.0})
    assert "since" not in gone["data"], "it happened in a moment"
    assert gone["data"]["facts"] == {"topic": "press", "partition": 3, "missing": 17, "going_on_from": 99}


async def test_what_is_over_says_since_when_it_was_and_what_never_began_is_not_over():
    site = Site()
    async with running(site):
        site.heard.report("model_loaded", detector="bottle", model_version="1")  # as at every start
        site.heard.report("model_refused", detector="bottle", error="it does not repeat its scores")
        site.heard.report("model_missing", detector="bottle", serving=None)
        site.heard.report("model_loaded", detector="lid", model_version="2")
        site.heard.report("model_loaded", detector="bottle", model_version="3")
        site.heard.report("signal_frozen", source="cameras", stream="press/7", sample="1")
        site.heard.report("signal_frozen", source="scanners", stream="press/7", sample="1")
        site.heard.report("signal_restored", source="scanners", stream="press/7", sample="2")
        await until(lambda: len(site.events) == 6)
    refused, missing, loaded, *_, other, restored = site.events
    assert site.what() == ["model_refused", "model_missing", "model_loaded", "signal_frozen", "signal_frozen", "signal_restored"]
    assert (loaded["data"]["ends"], loaded["data"]["since"]) == (["model_missing", "model_refused"], refused["time"])
    assert "serving" not in missing["data"]["facts"]
    assert (restored["data"]["ends"], restored["data"]["since"], restored["data"]["source"]) == (["signal_frozen"], other["time"], "scanners")


async def test_a_sink_that_is_away_gets_the_newest_and_the_others_get_all(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MOST_WAITING", 5)
    site = Site(sinks=2)
    site.channels[1].away = True
    async with running(site):
        for number in range(20):
            site.heard.report("offsets_gone", source="cameras", partition=number, missing=1)
            await until(lambda number=number: site.what().count("offsets_gone") == number + 1)
        await until(lambda: "sink_disconnected" in site.what())  # it is told through the one that works
        site.channels[1].away = False
        await until(lambda: site.what(1)[-1:] == ["sink_connected"])
    dropped = site.telemetry.count("health_event_dropped", "full")
    partitions = [event["data"]["facts"].get("partition") for event in site.channels[1].events if event["data"]["what"] == "offsets_gone"]
    assert partitions[-4:] == [16, 17, 18, 19]
    assert partitions[0] == 0, "the one in hand when it went away"
    assert len(site.channels[1].events) + dropped == 20 + 2
    assert dropped > 0
    assert f"monitor_health_events_dropped_total {float(dropped)}\n".encode() in site.telemetry.exposition()


async def test_listen_prints_it_for_a_person():
    site = Site()
    async with running(site):
        site.heard.report("sample_too_old", source="cameras", age=12.5, max_age=10.0, count=3, streams=["press/7", "press/8"])
        site.heard.report("samples_in_time", source="cameras", count=0, streams=[])
        await until(lambda: len(site.events) == 2)
    old, over = site.events
    who = f"host {socket.gethostname()}, source cameras"
    said = f"since {old['time']}, age 12.5, max_age 10.0, count 3, streams press/7 press/8"
    assert line_of(old) == f"{old['time']} health cameras warning: sample_too_old {who}, {said}"
    assert line_of(over).startswith(f"{over['time']} health cameras info: samples_in_time (ends sample_too_old) {who}, since {old['time']}")


async def test_what_a_sink_never_takes_is_counted_and_the_next_is_sent():
    site = Site()
    async with running(site):
        site.heard.report("offsets_gone", source="cameras", error="x" * 2_000_000)
        site.heard.report("offsets_gone", source="cameras", partition=2)
        await until(lambda: len(site.events) == 1)
    assert site.events[0]["data"]["facts"] == {"partition": 2}
    assert site.telemetry.count("health_event_dropped", "rejected") == 1


async def test_reported_from_any_thread():
    site = Site()
    async with running(site):
        threads = [
            threading.Thread(target=lambda: [site.heard.report("offsets_gone", source="cameras", partition=number) for number in range(50)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        await until(lambda: len(site.events) == 200)
        for thread in threads:
            thread.join()


async def test_what_waits_at_the_end_is_still_sent(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "LAST_SECONDS", 60.0)
    site = Site()
    async with running(site):
        for number in range(20):
            site.heard.report("offsets_gone", source="cameras", partition=number)
    assert [event["data"]["facts"]["partition"] for event in site.events] == list(range(20))


async def test_a_sink_that_is_away_does_not_hold_the_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "LAST_SECONDS", 0.01)
    site = Site()
    site.channels[0].away = True
    async with running(site):
        site.heard.report("offsets_gone", source="cameras", missing=1)
    assert site.events == []
    lost = site.telemetry.count("health_event_dropped", "ended")
    assert lost >= 1, "and what is lost is counted"
    site.heard.report("offsets_gone", source="cameras", missing=2)
    assert site.telemetry.count("health_event_dropped", "ended") == lost + 1
    assert f"monitor_health_events_dropped_total {float(lost + 1)}\n".encode() in site.telemetry.exposition()


def with_sinks(line: Line, **sinks: SinkSettings) -> Line:
    line.settings = replace(line.settings, sinks={**line.settings.sinks, **sinks})
    return line


async def test_a_health_sink_that_is_away_holds_nothing(tmp_path):
    office = channel(f"{tmp_path} office")
    office.away = True
    line = with_sinks(Line(tmp_path), office=SinkSettings(inputs=(), events=("health",), options=MemorySinkOptions(channel=office.name)))
    line.put(*(picture(number, defect=number == 3) for number in range(10)))
    async with line.running() as pipeline:
        await until(lambda: line.source.settled == positions(line.source))
        await until(lambda: list(pipeline.troubles()) == [])
        stands = {(name, labels): value for name, labels, value in pipeline.readings() if name.endswith("sink_connected")}
    assert stands == {
        ("monitor_sink_connected", ("all",)): 1.0,
        ("monitor_sink_connected", ("dead_letter",)): 1.0,
        ("monitor_health_sink_connected", ("office",)): 0.0,
    }
    assert line.ids("alert") == ["bottle0:cameras/press/3"]


async def test_a_sink_for_alerts_that_is_away_is_told_through_the_one_that_works(tmp_path):
    office = channel(f"{tmp_path} office")
    line = with_sinks(Line(tmp_path), office=SinkSettings(events=("health",), options=MemorySinkOptions(channel=office.name)))
    line.put(*(picture(number) for number in range(4)))
    line.sink.away = True
    async with line.running():
        await until(lambda: any(event["data"]["what"] == "sink_disconnected" and event["subject"] == "all" for event in office.events))
        assert line.source.settled == set()
        line.sink.away = False
        await until(lambda: line.source.settled == positions(line.source))
        await until(lambda: office.events[-1]["data"]["what"] == "sink_connected")
    assert [event["data"]["what"] for event in office.events] == ["sink_disconnected", "sink_connected"]


async def test_a_detector_without_a_model_is_told_and_its_sink_takes_alerts_too(tmp_path):
    line = Line(tmp_path, train_now=False)
    line.settings = replace(line.settings, sinks={"all": SinkSettings(events=("alert", "health"), options=MemorySinkOptions(channel=line.sink.name))})
    line.put(picture(0, defect=True))
    async with line.running():
        await until(lambda: line.sink.events)
        line.train()
        await until(lambda: len(line.sink.events) == 3)
    health = [event["data"] for event in line.sink.events if event["type"] == "monitor.health.v1"]
    assert [data["what"] for data in health] == ["model_missing", "model_loaded"]
    assert health[0]["detector"] == "bottle0"
    assert line.ids("alert") == ["bottle0:cameras/press/0"]


@pytest.mark.parametrize("max_in_flight", [64, 2])
async def test_while_a_sink_holds_the_flow_no_stream_is_silent(tmp_path, monkeypatch, max_in_flight):
    line = Line(tmp_path, max_in_flight=max_in_flight)
    cameras = line.settings.sources["cameras"].model_copy(update={"expect_every": 0.2})
    line.settings = replace(line.settings, sources={"cameras": cameras})
    looks: list[float] = []
    look = Streams.look

    def spy(self: Streams, now: float, *, heard_until: float, listening: bool) -> None:
        look(self, now, heard_until=heard_until, listening=listening)
        looks.append(heard_until)

    line.sink.away = True
    line.put(picture(0), picture(1))
    monkeypatch.setattr(Streams, "look", spy)
    async with line.running() as pipeline:
        await until(lambda: len(looks) > 3 and len(set(looks[-3:])) == 1)  # no time passes
        before = line.telemetry.count("stream_silent")
        await until(lambda: len(looks) > 9 and len(set(looks[-9:])) == 1)
        assert line.telemetry.count("stream_silent") == before
        line.sink.away = False
        await until(lambda: line.source.settled == positions(line.source))
        await until(lambda: line.telemetry.count("stream_silent") > before)
        assert ("monitor_silent_streams", ("cameras",), 1) in list(pipeline.readings())


async def test_a_stream_that_is_dead_is_told_although_the_others_fill_max_in_flight_again_and_again(tmp_path):
    line, said = Line(tmp_path, max_in_flight=1), []
    line.telemetry = line.telemetry.heard_by(lambda what, facts: said.append((what, facts.get("stream"))))
    line.settings = replace(line.settings, sources={"cameras": line.settings.sources["cameras"].model_copy(update={"expect_every": 0.4})})
    line.put(picture(0), key=b"dead")
    async with line.running():
        while ("stream_silent", "dead") not in said:
            line.put(picture(len(line.source.messages)), key=b"alive")
            await until(lambda: line.source.settled == positions(line.source))
            await anyio.sleep(0.05)


async def test_while_nothing_that_is_sent_can_reach_a_source_no_stream_is_silent(tmp_path, monkeypatch):
    line, looks, look, reached = Line(tmp_path), [], Streams.look, []
    line.settings = replace(line.settings, sources={"cameras": line.settings.sources["cameras"].model_copy(update={"expect_every": 0.2})})

    def spy(self: Streams, now: float, *, heard_until: float, listening: bool) -> None:
        look(self, now, heard_until=heard_until, listening=listening)
        looks.append(heard_until)

    monkeypatch.setattr(Streams, "look", spy)
    monkeypatch.setattr(MemorySource, "listening", lambda _: bool(reached), raising=False)  # as Kafka's without partitions
    async with line.running() as pipeline:
        await until(lambda: looks and looks[-1] - looks[0] > 0.6)
        assert line.telemetry.count("stream_silent") == 0
        assert list(pipeline.troubles()) == [], "a member that stands by is ready"
        reached.append(True)
        await until(lambda: line.telemetry.count("stream_silent"))


async def test_while_the_process_stands_still_no_time_passes_for_a_stream(tmp_path, monkeypatch):
    line, looks, look = Line(tmp_path), [], Streams.look
    line.settings = replace(line.settings, sources={"cameras": line.settings.sources["cameras"].model_copy(update={"expect_every": 0.4})})

    def spy(self: Streams, now: float, *, heard_until: float, listening: bool) -> None:
        look(self, now, heard_until=heard_until, listening=listening)
        looks.append((now, heard_until))

    monkeypatch.setattr(Streams, "look", spy)
    async with line.running():
        await until(lambda: looks)
        time.sleep(1.0)  # noqa: ASYNC251 (it shall stand still)
        before = len(looks)
        await until(lambda: len(looks) > before)
    times, heard = zip(*looks, strict=True)
    assert max(after - before for before, after in itertools.pairwise(times)) > 0.9
    assert max(after - before for before, after in itertools.pairwise(heard)) < 0.1 + 1e-6


async def test_an_event_that_a_sink_does_not_take_is_no_trouble_of_the_flow_and_the_next_is_sent(tmp_path, monkeypatch):
    send = MemorySink.send

    async def picky(self: MemorySink, events: Sequence[Event]) -> None:
        if any(event.data.get("what") == "model_missing" for event in events):
            raise Disconnected("bottle0 is a forbidden topic", "not_authorised")
        await send(self, events)

    monkeypatch.setattr(MemorySink, "send", picky)
    line = Line(tmp_path, train_now=False)
    line.settings = replace(line.settings, sinks={"all": SinkSettings(events=("alert", "health"), options=MemorySinkOptions(channel=line.sink.name))})
    line.put(picture(0, defect=True))
    async with line.running() as pipeline:
        await until(lambda: line.telemetry.count("health_event_dropped", "rejected") == 1)
        line.train()
        await until(lambda: len(line.sink.events) == 2)
        assert list(pipeline.troubles()) == []
    assert {event["type"] for event in line.sink.events} == {"monitor.alert.v1", "monitor.health.v1"}
    assert line.telemetry.count("sink_disconnected") == 0


async def test_at_the_end_of_a_part_its_silent_streams_are_told_to_be_over(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LAST_SECONDS", 60.0)
    office = channel(f"{tmp_path} office")
    line = with_sinks(Line(tmp_path), office=SinkSettings(inputs=(), events=("health",), options=MemorySinkOptions(channel=office.name)))
    line.settings = replace(line.settings, sources={"cameras": line.settings.sources["cameras"].model_copy(update={"expect_every": 0.2})})
    line.put(picture(0), key=b"dead")
    async with line.running():
        await until(lambda: any(event["subject"] == "dead" for event in office.events))
    silent, forgotten = (event["data"] for event in office.events if event["subject"] == "dead")
    assert (silent["what"], forgotten["what"]) == ("stream_silent", "stream_forgotten")
    assert (forgotten["ends"], forgotten["since"]) == (["stream_silent"], silent["since"])
