"""A segment of a recording: what has come of it in chunks, until it is whole or nothing more comes; then the sample that is scored.

Everything is counted in samples at the recording's own rate. Only what an open segment needs of a chunk is kept.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import anyio
import numpy as np

from monitor import types
from monitor.finished import FinishedSegments
from monitor.pending import Pending
from monitor.types import FloatArray, Sample

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


@dataclass(frozen=True, slots=True)
class Span:
    """Which segment of which recording for which detector: from `begin` to `end`."""

    stream: str
    recording: str
    rate: int
    detector: str
    index: int
    begin: int
    end: int


class Segment:
    """From its first chunk until it is finished."""

    def __init__(self, span: Span, *, shortest: int, lasting: tuple[FinishedSegments, str], on_finished: Callable[["Segment"], None]) -> None:
        """At least `shortest` samples in one stretch are scored. `on_finished` is told when it is, or when nothing is left of it."""
        self.sample: Sample | None = None
        """Once closed: what is to be scored; None where that is too short."""
        self.missing: Missing | None = None
        """Once closed: why it is not whole."""
        self.finished = anyio.Event()
        self.lasting = lasting
        self._span = span
        self._begin = span.begin
        self._end = span.end
        self._shortest = shortest
        self._on_finished = on_finished
        self._samples = 0  # of all pieces, at least
        self._pieces: dict[tuple[int, int], _Piece] = {}  # by offset and end of the chunk; until closed
        self._in_work: list[Pending] | None = None  # once closed

    @property
    def detector(self) -> str:
        return self._span.detector

    @property
    def pendings(self) -> Sequence[Pending]:
        return [piece.pending for piece in self._pieces.values()] if self._in_work is None else self._in_work

    @property
    def open(self) -> bool:
        """Whether it waits for further chunks."""
        return self._in_work is None

    @property
    def arrived(self) -> float:
        """While it is open: when the latest chunk of it did."""
        return max(piece.pending.arrived for piece in self._pieces.values())

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

    def add(self, chunk: Chunk) -> None:
        """One that is there already comes again, and its newest delivery takes its place."""
        if self._in_work is not None:
            chunk.pending.deal()
            self._in_work.append(chunk.pending)
            return
        chunk.pending.wait()
        begin, end = max(self._begin, chunk.offset), min(self._end, chunk.end)
        part = chunk.waveform[:, begin - chunk.offset : end - chunk.offset].copy()
        older = self._pieces.get((chunk.offset, chunk.end))
        piece = _Piece(chunk.pending, dataclasses.replace(chunk.sample, waveform=part), chunk.offset, begin, end)
        self._pieces[chunk.offset, chunk.end] = piece
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
            self._on_finished(self)

    def close(self, reached: int, *, to_make_room: bool = False) -> None:
        """It is in work from now on. `reached`: where what has come of the recording ends."""
        begin, end = self._longest()
        if end - begin < self._end - self._begin:
            self.missing = "max_in_flight" if to_make_room else "ended" if (begin, end) == (self._begin, reached) else "gap"
        if end - begin >= self._shortest or self.missing is None:
            self.sample = self._cut(begin, end)
        self._in_work = list(self.pendings)
        self._pieces.clear()
        for pending in self._in_work:
            pending.resume()

    def finish(self) -> None:
        assert self._in_work is not None
        self._on_finished(self)
        for pending in self._in_work:
            pending.finish()
        self.finished.set()

    @property
    def facts(self) -> dict[str, Any]:
        """Which one it is, for the log."""
        span = self._span
        seconds = {"start": span.begin / span.rate, "end": span.end / span.rate}
        return {"stream": span.stream, "recording": span.recording, "segment": span.index, **seconds}

    @property
    def key(self) -> tuple[str, int]:
        return self._span.detector, self._span.index

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
        first, rate = min(pieces, key=lambda piece: piece.offset), self._span.rate
        return dataclasses.replace(
            first.sample,
            captured=first.sample.captured + (begin - first.offset) / rate,
            waveform=waveform,
            segment=types.Segment(
                recording=self._span.recording, index=self._span.index, start=begin / rate, end=end / rate, partial=self.missing is not None
            ),
        )
