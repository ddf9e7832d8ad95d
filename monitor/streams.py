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
FROZEN = 3
"""Samples of one stream in a row with the same content, at different positions, that make it frozen. A redelivery is no such sample."""
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
        return sum(stream.silent for stream in self._known.values()) + self._source_silent

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
                self._known.popitem(last=False)
            return
        if stream.silent:
            self._report("stream_speaks", source=self._source, stream=name, silent_for=round(arrived - stream.spoke, 3))
        stream.spoke, stream.silent, stream.expected = arrived, False, True
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
            self._say_silent(heard_until - self._listening)
        for name, stream in self._known.items():
            if stream.spoke >= overdue:
                break
            if stream.expected and not stream.silent:
                stream.silent = True
                self._say_silent(heard_until - stream.spoke, stream=name)

    def _expect_again(self) -> None:
        """Which streams are still ours shows only when they speak."""
        for name, stream in self._known.items():
            if stream.silent:
                self._report("stream_moved", source=self._source, stream=name)
            stream.expected = stream.silent = False

    def _say_silent(self, seconds: float, **which: Any) -> None:
        self._report("stream_silent", source=self._source, **which, silent_for=round(seconds, 3), expect_every=self._expect_every)

    def _of_old(self) -> dict[str, Any]:
        facts = {"count": self._old, "streams": sorted(self._old_streams)}
        self._old, self._old_streams = 0, set()
        return facts
