"""What is known of the streams of one source: whether they speak, whether their signals are sound, whether they are too old.

Nothing here holds or changes a sample: it is said once when something begins and once when it is over.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from monitor.ports import SourceOptions
from monitor.signals import Flaw, Signal
from monitor.telemetry import Telemetry
from monitor.types import Sample

MOST_STREAMS = 10_000
"""Known streams of one source at most, since their names come from outside; the one that has been silent longest is forgotten."""
MOST_NAMED_SILENT = 20
"""Streams of one source whose silence is told by name at a time; that of the others is told as their number."""
FROZEN = 3
"""Samples of one stream in a row with the same content, at different positions, that make it frozen. A redelivery is no such sample.

Nor is a message over MQTT with the bytes of the one before, unless it says an `id` or when it was captured: the two have one position.
"""
QUIET = 60.0
"""Seconds without another flawed (or too old) sample after which it is over; and seconds between two reports of samples that are too old."""
_MOST_NAMED = 10


@dataclass(slots=True, eq=False)
class _Stream:
    spoke: float
    """When something arrived last."""
    expected: bool = True
    """False when a rebalance may have given it to another member; until it speaks here again."""
    silent: bool = False
    named: bool = False
    """Whether its silence was told by its name."""
    content: tuple[Any, ...] | None = None
    alike: set[str] = field(default_factory=set)
    """Positions of the last samples in a row with that content, FROZEN at most."""
    flaws: set[Flaw] = field(default_factory=set)
    """Reported, and not over."""
    flawed: float = 0.0
    """When the last sample with a flaw was seen."""


class Streams:
    """Of one source. From the event loop's thread, but for `hear`.

    `now` is the loop's clock. Arrivals are by a clock that stands still while the daemon itself can read nothing: no time
    passes for a stream in which it could not have been heard.
    """

    def __init__(self, source: str, options: SourceOptions, telemetry: Telemetry) -> None:
        self._source = source
        self._expect_every = options.expect_every
        self._max_age = options.max_age
        self._report = telemetry.report
        self._count_old = telemetry.counter("monitor_too_old_total", source).inc
        self._known: OrderedDict[str, _Stream] = OrderedDict()  # that has been silent longest first
        self._rebalanced = False
        self._listening = 0.0
        """Since when whatever is sent arrives here without delay."""
        self._ever_spoke = False
        self._source_silent = False
        self._named = self._others = 0
        """Streams whose silence was told by name, and those that are silent besides."""
        self._others_told = False
        """That there are others was told, and is not over."""
        self._old = 0
        """Samples that were too old since the last report of some."""
        self._old_streams: set[str] = set()
        self._old_seen = self._old_reported = 0.0
        self._aged = False
        """That samples are too old was reported, and is not over."""

    def hear(self, what: str, _: Mapping[str, Any]) -> None:
        """What the source reports. Thread-safe."""
        if what in ("partitions_revoked", "partitions_lost"):
            self._rebalanced = True

    @property
    def silent(self) -> int:
        """Streams that are silent for longer than `expect_every`; 1 for a source from which nothing has ever come."""
        return self._named + self._others + self._source_silent

    def listening(self, since: float) -> None:
        """Before, nothing could arrive; by the clock of arrivals."""
        self._listening = since

    def spoke(self, name: str, arrived: float) -> None:
        """A message of that stream arrived, whatever became of it. In the order of arrival."""
        self._ever_spoke = True
        if self._source_silent:
            self._source_silent = False
            self._report("stream_speaks", source=self._source)
        stream = self._known.get(name)
        if stream is None:
            self._known[name] = _Stream(arrived)
            if len(self._known) > MOST_STREAMS:
                self._forget(*self._known.popitem(last=False))
            return
        if stream.silent:
            self._end_silence("stream_speaks", name, stream, silent_for=round(arrived - stream.spoke, 3))
        stream.spoke, stream.expected = arrived, True
        self._known.move_to_end(name)

    def signal(self, sample: Sample, signal: Signal, now: float) -> None:
        """What a decoded sample says of its sensor. In the order of the stream, after `spoke`."""
        stream = self._known[sample.stream]
        position = f"{sample.topic}/{sample.position}"
        if signal.content != stream.content:
            stream.content, stream.alike = signal.content, {position}
        elif len(stream.alike) < FROZEN:
            stream.alike.add(position)
        flaw: Flaw | None = signal.flaw or ("signal_frozen" if len(stream.alike) >= FROZEN else None)
        if flaw is not None:
            stream.flawed = now
            if flaw not in stream.flaws:
                stream.flaws.add(flaw)
                self._report(flaw, source=self._source, stream=sample.stream, sample=sample.id)
        elif stream.flaws and now - stream.flawed >= QUIET:
            stream.flaws.clear()
            self._report("signal_restored", source=self._source, stream=sample.stream, sample=sample.id)

    def too_old(self, name: str, age: float, now: float) -> None:
        """A sample of that stream, captured `age` seconds ago, is not scored."""
        self._old += 1
        self._count_old()
        self._old_seen = now
        if len(self._old_streams) < _MOST_NAMED:
            self._old_streams.add(name)
        if self._aged and now - self._old_reported < QUIET:
            self._report("sample_too_old", quiet=True, source=self._source)
            return
        facts = self._of_old()
        self._aged, self._old_reported = True, now
        self._report("sample_too_old", source=self._source, age=round(age, 3), max_age=self._max_age, **facts)

    def look(self, now: float, *, heard_until: float, listening: bool) -> None:
        """To be called from time to time. All that arrived until `heard_until` was told to `spoke`. `listening`: what is sent can arrive."""
        if self._aged and now - self._old_seen >= QUIET:
            self._aged = False
            self._report("samples_in_time", source=self._source, **self._of_old())
        if self._expect_every is None:
            return
        if self._rebalanced:
            self._rebalanced = False
            self._expect_again()
        if not listening:
            self._listening = heard_until
            return
        overdue = heard_until - self._expect_every
        if self._listening >= overdue:
            return
        if not self._ever_spoke and not self._source_silent:
            self._source_silent = True
            self._say_silent(silent_for=round(heard_until - self._listening, 3))
        others = []
        for name, stream in self._known.items():
            if stream.spoke >= overdue:
                break
            if stream.expected and not stream.silent:
                stream.silent, stream.named = True, self._named < MOST_NAMED_SILENT
                if stream.named:
                    self._named += 1
                else:
                    self._others += 1
                    others.append(name)
                self._say_silent(quiet=not stream.named, stream=name, silent_for=round(heard_until - stream.spoke, 3))
        if others and not self._others_told:
            self._others_told = True
            self._say_silent(count=len(others), streams=others[:_MOST_NAMED])

    def end(self) -> None:
        """Nobody looks here any more: what was told is over, since nobody would tell that it is."""
        while self._known:
            self._forget(*self._known.popitem())
        if self._source_silent or self._aged:
            self._report("stream_forgotten", source=self._source)

    def _expect_again(self) -> None:
        """Which streams are still ours shows only when they speak."""
        for name, stream in self._known.items():
            if stream.silent:
                self._end_silence("stream_moved", name, stream)
            stream.expected = False

    def _forget(self, name: str, stream: _Stream) -> None:
        if stream.silent:
            self._end_silence("stream_forgotten", name, stream)
        elif stream.flaws:
            self._report("stream_forgotten", source=self._source, stream=name)

    def _end_silence(self, why: str, name: str, stream: _Stream, **facts: Any) -> None:
        """`why` is the happening that ends it."""
        self._report(why, quiet=not (stream.named or stream.flaws), source=self._source, stream=name, **facts)
        if stream.named:
            self._named -= 1
        else:
            self._others -= 1
        stream.silent = stream.named = False
        if self._others_told and not self._others:
            self._others_told = False
            self._report(why, source=self._source)

    def _say_silent(self, **facts: Any) -> None:
        self._report("stream_silent", source=self._source, **facts, expect_every=self._expect_every)

    def _of_old(self) -> dict[str, Any]:
        facts = {"count": self._old, "streams": sorted(self._old_streams)}
        self._old, self._old_streams = 0, set()
        return facts
