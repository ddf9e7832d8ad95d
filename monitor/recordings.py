"""Stretches of one recording -> segments of the length that the model was trained on.

Segment k of a recording covers [k hop, k hop + length), whatever the chunks are in which it comes, counted in samples at its own rate.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import ceil, gcd, inf

from monitor.errors import BadSample
from monitor.finished import FinishedSegments
from monitor.segments import Chunk, Segment, Span
from monitor.types import Segmentation


class Cut:
    """How a recording is cut for one detector, in samples."""

    def __init__(self, segmentation: Segmentation, rate: int) -> None:
        self.length = max(1, round(segmentation.length * rate))
        self.hop = max(1, round(segmentation.hop * rate))
        self.shortest = ceil(round(segmentation.shortest * rate, 6))  # never less than the detector takes

    def indexes(self, begin: int, end: int) -> range:
        """The segments that samples `begin` to `end` lie in; none between two whose hop is longer than they are."""
        return range(max(0, (begin - self.length) // self.hop + 1), (end - 1) // self.hop + 1)

    def held(self, first: int, chunk: int) -> int:
        """The most chunks of `chunk` samples, the first of which begins at `first`, that lie in segments which are not complete."""
        step = gcd(self.hop, chunk)
        furthest = chunk - step + -first % step  # from the begin of a chunk to that of a segment
        return (furthest + self.length - 1) // chunk


class Recording:
    """An open recording: its rate and channels are those of its first chunk, its cuts those of the models that served then."""

    def __init__(self, chunk: Chunk, recordings: "Recordings") -> None:
        self.stream = chunk.sample.stream
        self.name = chunk.recording
        self.rate = chunk.rate
        self.channels = chunk.waveform.shape[0]
        self.reached = 0
        """Where what has come of it ends."""
        self.cuts: dict[str, Cut] = {}
        self.segments: dict[tuple[str, int], Segment] = {}  # open or in work; that began first comes first
        self._recordings = recordings
        self._first = chunk.offset
        self._chunk = chunk.end - chunk.offset

    def note(self, chunk: Chunk) -> None:
        """Raises BadSample for one that cannot belong here."""
        if (chunk.rate, chunk.waveform.shape[0]) != (self.rate, self.channels):
            raise BadSample(
                "lying_header",
                f"a chunk of recording {self.name!r:.80} with {chunk.waveform.shape[0]} channels at {chunk.rate} Hz, "
                f"which began with {self.channels} at {self.rate} Hz",
            )
        self.reached = max(self.reached, chunk.end)
        if not chunk.last:
            self._chunk = min(self._chunk, chunk.end - chunk.offset)

    @property
    def open(self) -> list[Segment]:
        return [segment for segment in self.segments.values() if segment.open]

    @property
    def held(self) -> int:
        """The most of its chunks that are out and wait for others."""
        return max(cut.held(self._first, self._chunk) for cut in self.cuts.values())

    def drop(self, segment: Segment) -> None:
        """It is finished."""
        del self.segments[segment.key]
        if not self.segments:
            self._recordings.drop(self)


class Recordings:
    """The recordings of one source that have segments open or in work, and only those: their names come from outside.

    From the event loop's thread, one caller at a time, but for what `Segment.finish` does.
    """

    def __init__(self, finished: Mapping[str, FinishedSegments], timeout: float | None, *, on_repeated: Callable[[], None]) -> None:
        """`finished` by detector. `timeout` in seconds; by default twice the length of a segment. `on_repeated` is told of each chunk of
        which nothing is scored, since all its segments are finished."""
        self._finished = finished
        self._timeout = timeout
        self._on_repeated = on_repeated
        self._recordings: dict[tuple[str, str], Recording] = {}
        self._heard_until = self._listening = -inf
        self._looked = False

    def __len__(self) -> int:
        return len(self._recordings)

    @property
    def open(self) -> int:
        """Segments that wait for further chunks."""
        return sum(len(recording.open) for recording in self._recordings.values())

    def add(self, chunk: Chunk, segmentations: Mapping[str, Segmentation]) -> Iterator[Segment]:
        """Put a chunk into its segments for these detectors, as far as is asked for; gives each that it closes, to be worked on.

        Raises BadSample at once for a chunk that cannot belong to its recording.
        """
        recording = self._recordings.get((chunk.sample.stream, chunk.recording)) or Recording(chunk, self)
        recording.note(chunk)
        return self._add(recording, chunk, segmentations)

    def _add(self, recording: Recording, chunk: Chunk, segmentations: Mapping[str, Segmentation]) -> Iterator[Segment]:
        taken = known = 0
        for detector, segmentation in segmentations.items():
            cut = recording.cuts.setdefault(detector, Cut(segmentation, recording.rate))
            for index in cut.indexes(chunk.offset, chunk.end):
                segment = self._segment(recording, detector, cut, index)
                if segment is None:
                    known += 1
                    continue
                taken += 1
                segment.add(chunk)
                if segment.open and segment.complete:
                    segment.close(recording.reached)
                    yield segment
        if known and not taken:
            self._on_repeated()
        if chunk.last:
            yield from _close(recording, recording.open)
        else:  # what is missing of a segment comes no more when its recording is far beyond it
            yield from _close(recording, [segment for segment in recording.open if segment.patience <= chunk.offset])

    def look(self, heard_until: float, *, listening: bool) -> None:
        """To be called from time to time. All that arrived until then was added. `listening`: what is sent can arrive."""
        self._looked, self._heard_until = True, heard_until
        if not listening:
            self._listening = heard_until

    def ended(self) -> Iterator[Segment]:
        """Once after each look: closes and gives the segments of which nothing came for the timeout, though it could have been heard.

        Each by itself: while its recording goes on elsewhere (an offset was wrong, or began anew), one would wait for ever. Gives up what moved
        to another member of its consumer group.
        """
        if not self._looked:
            return
        self._looked = False
        for recording in list(self._recordings.values()):
            for segment in recording.open:
                segment.give_up_moved()
            yield from _close(recording, [segment for segment in recording.open if self._silent(segment) >= self._timeout_of(recording, segment)])

    def make_room(self) -> Iterator[Segment]:
        """Closes and gives the oldest segment that waits for chunks."""
        waiting = [(recording, segment) for recording in self._recordings.values() for segment in recording.open]
        if waiting:
            recording, oldest = min(waiting, key=lambda one: min(pending.arrived for pending in one[1].pendings))
            yield from _close(recording, [oldest], to_make_room=True)

    def needed(self, *, in_order: bool) -> int:
        """The `max_in_flight` with which these recordings can all come at a time: each holds its most, and one chunk more completes a segment.

        `in_order`: what is settled keeps its place until all before it is. Then all that comes while a segment is open takes one.
        """
        held = [recording.held for recording in self._recordings.values()]
        return sum(held) + (len(held) if in_order else 1)

    def _silent(self, segment: Segment) -> float:
        return self._heard_until - max(segment.arrived, self._listening)

    def _timeout_of(self, recording: Recording, segment: Segment) -> float:
        return self._timeout or 2 * recording.cuts[segment.detector].length / recording.rate

    def drop(self, recording: Recording) -> None:
        """Nothing of it is open or in work."""
        del self._recordings[recording.stream, recording.name]

    def _segment(self, recording: Recording, detector: str, cut: Cut, index: int) -> Segment | None:
        """The segment that is open or in work, or else a new one; None for one that is finished."""
        segment = recording.segments.get((detector, index))
        if segment is not None:
            return segment
        begin = index * cut.hop
        finished = self._finished[detector]
        key = finished.key(recording.stream, recording.name, begin, cut.length)
        if key in finished:
            return None
        span = Span(recording.stream, recording.name, recording.rate, detector, index, begin, begin + cut.length)
        segment = Segment(span, shortest=cut.shortest, lasting=(finished, key), on_finished=recording.drop)
        recording.segments[segment.key] = segment
        self._recordings[recording.stream, recording.name] = recording
        return segment


def _close(recording: Recording, segments: Sequence[Segment], *, to_make_room: bool = False) -> Iterator[Segment]:
    for segment in segments:
        if segment.open:  # still: whoever is given one may wait
            segment.close(recording.reached, to_make_room=to_make_room)
            yield segment
