"""What is said of the streams of a source: once when it begins, once when it is over."""

from typing import Any

import numpy as np
import pytest

from monitor import streams as module
from monitor.ports import SourceOptions
from monitor.signals import Signal
from monitor.streams import FROZEN, MOST_NAMED_SILENT, QUIET, Streams
from monitor.telemetry import Telemetry
from monitor.types import Sample


class Watched:
    """A source whose streams are watched; what was said, in order."""

    def __init__(self, **options: Any) -> None:
        self.said: list[tuple[str, dict[str, Any]]] = []
        self.telemetry = Telemetry()
        heard = self.telemetry.heard_by(lambda what, facts: self.said.append((what, dict(facts))))
        self.streams = Streams("cameras", SourceOptions(**options), heard)
        self.streams.listening(0.0)

    def look(self, now: float, *, listening: bool = True) -> None:
        self.streams.look(now, heard_until=now, listening=listening)

    def sample(self, number: int, *, content: int | None = None, flaw: Any = None, now: float = 0.0, stream: str = "press/7") -> None:
        """Another content for every number, unless it is given."""
        image = np.zeros((1, 1, 1), np.uint8)
        sample = Sample(source="cameras", topic="press", position=str(number), stream=stream, captured=1.0, received=1.0, image=image)
        self.streams.spoke(stream, now)
        self.streams.signal(sample, Signal(content=(number if content is None else content,), flaw=flaw), now)

    def what(self) -> list[tuple[str, str | None]]:
        """And of which stream; said since the last look."""
        what = [(what, facts.get("stream")) for what, facts in self.said]
        self.said.clear()
        return what


def test_a_silent_stream_is_said_once_until_it_speaks_again():
    watched = Watched(expect_every=5.0)
    watched.streams.spoke("a", 1.0)
    watched.streams.spoke("b", 2.0)
    watched.look(6.0)
    assert watched.what() == []
    assert watched.streams.silent == 0
    watched.look(6.5)
    assert watched.said == [("stream_silent", {"source": "cameras", "stream": "a", "silent_for": 5.5, "expect_every": 5.0})]
    watched.look(6.9)
    watched.look(60.0)
    assert watched.what() == [("stream_silent", "a"), ("stream_silent", "b")]
    assert watched.streams.silent == 2
    watched.streams.spoke("a", 61.0)
    assert watched.said == [("stream_speaks", {"source": "cameras", "stream": "a", "silent_for": 60.0})]
    assert watched.streams.silent == 1
    watched.look(67.0)
    assert watched.what() == [("stream_speaks", "a"), ("stream_silent", "a")]


def test_a_source_from_which_nothing_ever_came_is_said_itself():
    watched = Watched(expect_every=5.0)
    watched.look(4.0)
    watched.look(6.0)
    watched.look(60.0)
    assert watched.said == [("stream_silent", {"source": "cameras", "silent_for": 6.0, "expect_every": 5.0})]
    assert watched.streams.silent == 1
    watched.streams.spoke("a", 61.0)
    assert watched.what() == [("stream_silent", None), ("stream_speaks", None)]
    assert watched.streams.silent == 0
    watched.look(67.0)
    assert watched.what() == [("stream_silent", "a")]


def test_without_expect_every_nobody_is_silent():
    watched = Watched()
    watched.streams.spoke("a", 1.0)
    watched.look(1e6)
    assert watched.what() == []
    assert watched.streams.silent == 0


def test_while_nothing_can_reach_its_source_no_stream_is_silent():
    watched = Watched(expect_every=5.0)
    watched.streams.spoke("a", 1.0)
    for now in (10.0, 20.0, 30.0):
        watched.look(now, listening=False)
    watched.look(34.0)
    assert watched.what() == [], "it has not had its time since the source is back"
    watched.look(35.5)
    assert watched.what() == [("stream_silent", "a")]


def test_what_was_not_told_yet_is_no_silence():
    watched = Watched(expect_every=5.0)
    watched.streams.spoke("a", 1.0)
    watched.streams.look(90.0, heard_until=5.5, listening=True)  # what came after 5.5 still waits to be decoded
    assert watched.what() == []
    watched.look(91.0)
    assert watched.what() == [("stream_silent", "a")]


def test_after_a_rebalance_a_stream_must_speak_here_again_to_be_expected():
    watched = Watched(expect_every=5.0)
    watched.streams.spoke("a", 1.0)
    watched.streams.spoke("b", 5.0)
    watched.look(8.0)
    watched.streams.hear("partitions_revoked", {"source": "cameras"})
    watched.look(60.0)
    assert watched.what() == [("stream_silent", "a"), ("stream_moved", "a")]
    assert watched.streams.silent == 0
    watched.streams.spoke("a", 61.0)
    watched.look(70.0)
    assert watched.what() == [("stream_silent", "a")]


def test_names_from_outside_take_no_more_than_so_much_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MOST_STREAMS", 3)
    watched = Watched(expect_every=5.0)
    for number in range(10):
        watched.sample(number, stream=f"s{number}", now=float(number))
    watched.sample(10, stream="s7", now=10.0)
    watched.sample(11, stream="new", now=11.0)
    watched.look(100.0)
    assert watched.what() == [("stream_silent", "s9"), ("stream_silent", "s7"), ("stream_silent", "new")]
    watched.sample(12, stream="newer", now=101.0)
    assert watched.what() == [("stream_forgotten", "s9")]
    assert watched.streams.silent == 2


def test_of_many_silent_streams_only_some_are_told_by_name():
    watched = Watched(expect_every=5.0)
    names = [f"part {number}" for number in range(100)]
    for now, name in enumerate(names):  # a key per part
        watched.streams.spoke(name, now / 100)
    for now in (5.5, 6.0, 7.0):
        watched.look(now)
    assert watched.streams.silent == 100
    assert watched.telemetry.count("stream_silent") == 101
    *named, others = watched.said
    assert [facts["stream"] for _, facts in named] == names[:MOST_NAMED_SILENT]
    assert others == ("stream_silent", {"source": "cameras", "count": 30, "streams": names[20:30], "expect_every": 5.0})
    watched.said.clear()
    for name in names[:99]:
        watched.streams.spoke(name, 8.0)
    assert watched.what() == [("stream_speaks", name) for name in names[:MOST_NAMED_SILENT]]
    watched.streams.spoke(names[99], 8.0)
    assert watched.what() == [("stream_speaks", None)]
    assert watched.streams.silent == 0


def test_at_its_end_what_was_told_is_over():
    watched = Watched(expect_every=5.0, max_age=10.0)
    watched.sample(1, stream="silent")
    watched.sample(2, stream="blank", flaw="signal_blank", now=6.0)
    watched.sample(3, stream="sound", now=6.0)
    watched.streams.too_old("sound", 11.0, 6.0)
    watched.look(6.0)
    assert watched.what() == [("signal_blank", "blank"), ("sample_too_old", None), ("stream_silent", "silent")]
    watched.streams.end()
    assert sorted(watched.what(), key=str) == [("stream_forgotten", "blank"), ("stream_forgotten", "silent"), ("stream_forgotten", None)]
    assert watched.streams.silent == 0


def test_the_third_alike_makes_a_stream_frozen():
    watched = Watched()
    for number in range(10):
        watched.sample(number, content=1 if number >= 4 else None)
        assert (watched.what() == [("signal_frozen", "press/7")]) == (number == 4 + FROZEN - 1)


def test_a_redelivery_freezes_nothing():
    watched = Watched()
    for _ in range(3):
        for number in range(1, FROZEN):  # as often as one likes: there are only two
            watched.sample(number, content=1)
    assert watched.what() == []


def test_another_stream_in_between_changes_nothing():
    watched = Watched()
    for number in range(2 * FROZEN):
        watched.sample(number, content=1, stream=f"s{number % 2}")
    assert watched.what() == [("signal_frozen", "s0"), ("signal_frozen", "s1")]


def test_a_flaw_is_over_when_a_minute_has_passed_without_one():
    watched = Watched()
    watched.sample(1, flaw="signal_blank", now=0.0)
    assert watched.said == [("signal_blank", {"source": "cameras", "stream": "press/7", "sample": "cameras/press/1"})]
    watched.sample(2, now=1.0)
    watched.sample(3, flaw="signal_blank", now=2.0)  # it flickers: no flood
    watched.sample(4, flaw="signal_clipped", now=3.0)
    watched.sample(5, now=2.0 + QUIET)
    assert watched.what() == [("signal_blank", "press/7"), ("signal_clipped", "press/7")]
    watched.sample(6, now=3.0 + QUIET)
    watched.sample(7, now=4.0 + QUIET)
    assert watched.what() == [("signal_restored", "press/7")]
    watched.sample(8, flaw="signal_blank", now=5.0 + QUIET)
    assert watched.what() == [("signal_blank", "press/7")]


def test_a_blank_stream_is_not_frozen_as_well():
    watched = Watched()
    for number in range(5):
        watched.sample(number, content=1, flaw="signal_blank")
    assert watched.what() == [("signal_blank", "press/7")]


def test_samples_that_are_too_old_are_summed_up():
    watched = Watched(max_age=10.0)
    for number in range(100):
        watched.streams.too_old(f"s{number % 3}", 11.0 + number, number / 10)
    assert watched.said == [("sample_too_old", {"source": "cameras", "age": 11.0, "max_age": 10.0, "count": 1, "streams": ["s0"]})]
    assert watched.telemetry.count("sample_too_old") == 100
    assert b'monitor_too_old_total{source="cameras"} 100.0\n' in watched.telemetry.exposition()
    watched.said.clear()
    watched.streams.too_old("s1", 12.0, QUIET)
    assert watched.said == [("sample_too_old", {"source": "cameras", "age": 12.0, "max_age": 10.0, "count": 100, "streams": ["s0", "s1", "s2"]})]
    watched.said.clear()
    watched.streams.too_old("s2", 12.0, QUIET + 1)
    watched.look(2 * QUIET)
    assert watched.what() == []
    watched.look(2 * QUIET + 1)
    watched.look(2 * QUIET + 2)
    assert watched.said == [("samples_in_time", {"source": "cameras", "count": 1, "streams": ["s2"]})]
