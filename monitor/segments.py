"""Stretches of one recording -> samples of the length that the model was trained on.

Segment k of a recording covers [k hop, k hop + length), whatever the chunks are in which it comes; everything is counted in samples
at the recording's own rate. Only what an open segment needs of a chunk is kept.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import gcd, inf
from typing import Any, Literal

import anyio
import numpy as np

from monitor import types
from monitor.errors import BadSample
from monitor.finished import FinishedSegments
from monitor.pending import Pending
from monitor.types import FloatArray, Sample, Segmentation

Missing = Literal["ended", "gap", "max_in_flight"]
"""Why samples of a segment are missing: its recording ended within it, chunks of it never came, or it was closed to make room."""


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """A decoded chunk of a recording: `offset` is the index of its first sample in it."""

    pending: Pending
    sample: Sample
    recording: str
    offset: int
    last: bool

    @property
    def end(self) -> int:
        return self.offset + int(self.waveform.shape[1])

    @property
    def waveform(self) -> FloatArray:
        assert self.sample.waveform is not None
        return self.sample.waveform

    @property
    def rate(self) -> int:
        assert self.sample.rate is not None
        return self.sample.rate


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    """What a segment has of a chunk."""

    pending: Pending
    sample: Sample
    """The chunk's facts; its waveform is only the part that lies in the segment."""
    offset: int
    begin: int
    end: int
    """Of that part, in the recording."""

    @property
    def waveform(self) -> FloatArray:
        assert self.sample.waveform is not None
        return self.sample.waveform


class Segment:
    """One segment of a recording for one detector, from its first chunk until it is finished."""

    def __init__(self, recording: "Recording", detector: str, index: int, begin: int, end: int, *, lasting: tuple[FinishedSegments, str]) -> None:
        self.recording = recording
        self.detector = detector
        self.sample: Sample | None = None
        """Once closed: what is to be scored; None where that is too short."""
        self.missing: Missing | None = None
        """Once closed: why it is not whole."""
        self.finished = anyio.Event()
        self._index = index
        self._begin = begin
        self._end = end
        self._lasting = lasting
        self._alone = False
        self._samples = 0  # of all pieces, at least
        self._pieces: dict[tuple[int, int], _Piece] = {}  # by offset and end of the chunk; until closed
        self._in_work: list[Pending] | None = None  # once closed

    @property
    def pendings(self) -> Sequence[Pending]:
        return [piece.pending for piece in self._pieces.values()] if self._in_work is None else self._in_work

    @property
    def lasting(self) -> tuple[FinishedSegments, str] | None:
        """Nothing to record where it is one whole chunk, which holds nothing else: that comes again as a whole or not at all."""
        return None if self._alone else self._lasting

    @property
    def open(self) -> bool:
        """Whether it waits for further chunks."""
        return self._in_work is None

    @property
    def patience(self) -> int:
        """Where in the recording a chunk may begin until this segment is waited for no more: its length beyond it."""
        return 2 * self._end - self._begin

    @property
    def complete(self) -> bool:
        length = self._end - self._begin
        if self._samples < length:  # by far the most often
            return False
        begin, end = self._longest()
        return end - begin == length

    def add(self, chunk: Chunk, *, sole: bool) -> None:
        """`sole`: the chunk lies in no other segment. One that is there already comes again, and its newest delivery takes its place."""
        if self._in_work is not None:
            chunk.pending.deal()
            self._in_work.append(chunk.pending)
            self._alone = False  # it lies in others too, or comes again with a part of this one
            return
        chunk.pending.wait()
        begin, end = max(self._begin, chunk.offset), min(self._end, chunk.end)
        part = chunk.waveform[:, begin - chunk.offset : end - chunk.offset].copy()
        older = self._pieces.get((chunk.offset, chunk.end))
        piece = _Piece(chunk.pending, dataclasses.replace(chunk.sample, waveform=part), chunk.offset, begin, end)
        self._pieces[chunk.offset, chunk.end] = piece
        self._alone = sole and len(self._pieces) == 1
        self._samples += end - begin
        if older is not None:
            older.pending.resume()
            older.pending.finish()

    def give_up_moved(self) -> None:
        """Chunks that somebody else is given now are his to score."""
        for place, piece in list(self._pieces.items()):
            if piece.pending.delivery.moved():
                del self._pieces[place]
                piece.pending.resume()
                piece.pending.finish()
        if not self._pieces:
            self.recording.drop(self)

    def close(self, shortest: int, *, to_make_room: bool = False) -> None:
        """It is in work from now on. At least `shortest` samples in one stretch are scored."""
        begin, end = self._longest()
        if end - begin < self._end - self._begin:
            self._alone = False
            tail_only = begin == self._begin and end == max(piece.end for piece in self._pieces.values())
            self.missing = "max_in_flight" if to_make_room else "ended" if tail_only else "gap"
        if end - begin >= shortest or self.missing is None:
            self.sample = self._cut(begin, end)
        self._in_work = list(self.pendings)
        self._pieces.clear()
        for pending in self._in_work:
            pending.resume()

    def finish(self) -> None:
        assert self._in_work is not None
        self.recording.drop(self)
        for pending in self._in_work:
            pending.finish()
        self.finished.set()

    @property
    def facts(self) -> dict[str, Any]:
        """Which one it is, for the log."""
        seconds = self._begin / self.recording.rate, self._end / self.recording.rate
        return {"stream": self.recording.stream, "recording": self.recording.name, "segment": self._index, "start": seconds[0], "end": seconds[1]}

    @property
    def key(self) -> tuple[str, int]:
        return self.detector, self._index

    def _longest(self) -> tuple[int, int]:
        """The longest stretch without a gap, in samples of the recording."""
        stretches: list[tuple[int, int]] = []
        for begin, end in sorted((piece.begin, piece.end) for piece in self._pieces.values()):
            if stretches and begin <= stretches[-1][1]:
                stretches[-1] = (stretches[-1][0], max(end, stretches[-1][1]))
            else:
                stretches.append((begin, end))
        return max(stretches, key=lambda stretch: stretch[1] - stretch[0])

    def _cut(self, begin: int, end: int) -> Sample:
        pieces = [piece for piece in self._pieces.values() if begin <= piece.begin < end]
        waveform = np.empty((pieces[0].waveform.shape[0], end - begin), np.float32)
        for piece in pieces:
            waveform[:, piece.begin - begin : piece.end - begin] = piece.waveform
        first, rate = min(pieces, key=lambda piece: piece.offset), self.recording.rate
        return dataclasses.replace(
            first.sample,
            captured=first.sample.captured + (begin - first.offset) / rate,
            waveform=waveform,
            segment=types.Segment(
                recording=self.recording.name, index=self._index, start=begin / rate, end=end / rate, partial=self.missing is not None
            ),
        )


class _Cut:
    """How a recording is cut for one detector, in samples."""

    def __init__(self, segmentation: Segmentation, rate: int) -> None:
        self.length = max(1, round(segmentation.length * rate))
        self.hop = max(1, round(segmentation.hop * rate))
        self.shortest = round(segmentation.shortest * rate)

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
        self.arrived = 0.0
        """When its latest chunk did."""
        self.cuts: dict[str, _Cut] = {}
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
        self.arrived = chunk.pending.arrived
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

    def __init__(self, finished: Mapping[str, FinishedSegments], timeout: float | None) -> None:
        """`finished` by detector. `timeout` in seconds; by default twice the length of a segment."""
        self._finished = finished
        self._timeout = timeout
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
        for detector, segmentation in segmentations.items():
            cut = recording.cuts.setdefault(detector, _Cut(segmentation, recording.rate))
            indexes = cut.indexes(chunk.offset, chunk.end)
            for index in indexes:
                segment = self._segment(recording, detector, cut, index)
                if segment is None:
                    continue
                segment.add(chunk, sole=len(indexes) == 1)
                if segment.open and segment.complete:
                    segment.close(cut.shortest)
                    yield segment
        if chunk.last:
            yield from self._close(recording, recording.open)
        else:  # what is missing of a segment comes no more when its recording is far beyond it
            yield from self._close(recording, [segment for segment in recording.open if segment.patience <= chunk.offset])

    def look(self, heard_until: float, *, listening: bool) -> None:
        """To be called from time to time. All that arrived until then was added. `listening`: what is sent can arrive."""
        self._looked, self._heard_until = True, heard_until
        if not listening:
            self._listening = heard_until

    def ended(self) -> Iterator[Segment]:
        """Once after each look: closes and gives the segments of recordings of which nothing came for the timeout, though it could have been heard.

        Gives up what moved to another member of its consumer group.
        """
        if not self._looked:
            return
        self._looked = False
        for recording in list(self._recordings.values()):
            for segment in recording.open:
                segment.give_up_moved()
            silent = self._heard_until - max(recording.arrived, self._listening)
            over = {detector for detector, cut in recording.cuts.items() if silent >= (self._timeout or 2 * cut.length / recording.rate)}
            yield from self._close(recording, [segment for segment in recording.open if segment.detector in over])

    def make_room(self) -> Iterator[Segment]:
        """Closes and gives the oldest segment that waits for chunks."""
        waiting = [segment for recording in self._recordings.values() for segment in recording.open]
        if waiting:
            oldest = min(waiting, key=lambda segment: min(pending.arrived for pending in segment.pendings))
            yield from self._close(oldest.recording, [oldest], to_make_room=True)

    def needed(self, *, in_order: bool) -> int:
        """The `max_in_flight` with which these recordings can all come at a time: each holds its most, and one chunk more completes a segment.

        `in_order`: what is settled keeps its place until all before it is. Then all that comes while a segment is open takes one.
        """
        held = [recording.held for recording in self._recordings.values()]
        return sum(held) + (len(held) if in_order else 1)

    def drop(self, recording: Recording) -> None:
        """Nothing of it is open or in work."""
        del self._recordings[recording.stream, recording.name]

    def _segment(self, recording: Recording, detector: str, cut: _Cut, index: int) -> Segment | None:
        """The segment that is open or in work, or else a new one; None for one that is finished."""
        segment = recording.segments.get((detector, index))
        if segment is not None:
            return segment
        begin = index * cut.hop
        finished = self._finished[detector]
        key = finished.key(recording.stream, recording.name, begin, cut.length)
        if key in finished:
            return None
        segment = Segment(recording, detector, index, begin, begin + cut.length, lasting=(finished, key))
        recording.segments[segment.key] = segment
        self._recordings[recording.stream, recording.name] = recording
        return segment

    def _close(self, recording: Recording, segments: Sequence[Segment], *, to_make_room: bool = False) -> Iterator[Segment]:
        for segment in segments:
            if segment.open:  # still: whoever is given one may wait
                segment.close(recording.cuts[segment.detector].shortest, to_make_room=to_make_room)
                yield segment
