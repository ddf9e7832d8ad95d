"""Recordings in random chunks through random deaths and lost connections: every segment is that of the whole, and everything is settled once."""

import random

import pytest

from monitor.segments import Segment
from monitor.types import FloatArray, Segmentation
from recordings import RATE, noise
from unit.test_segments import OVERLAPPING, SPARSE, TEN, Line, Memory

SEGMENTATIONS = [TEN, OVERLAPPING, SPARSE, Segmentation(length=3.3, hop=2.1, shortest=1.0)]


class Broker:
    """Gives the chunks of one recording in order; what is not acknowledged comes again on a new connection."""

    def __init__(self, chance: random.Random, waveform: FloatArray, *, overlap: bool) -> None:
        self.waveform = waveform
        self.chunks: list[tuple[int, int]] = []
        end = 0
        while end < waveform.shape[1]:
            begin = max(0, end - chance.randrange(300)) if overlap else end
            end = min(waveform.shape[1], end + chance.randrange(1, 900))
            self.chunks.append((begin, end))
        self.acknowledged: set[int] = set()
        self.queue = list(range(len(self.chunks)))
        self._given: dict[int, int] = {}  # the line's number of a delivery on this connection -> of its chunk

    async def give(self, line: Line) -> None:
        chunk = self.queue.pop(0)
        begin, end = self.chunks[chunk]
        self._given[len(line.pendings)] = chunk
        await line.add(self.waveform[:, begin:end], begin, last=end == self.waveform.shape[1], hold=True)

    def lose_connection(self, line: Line, *, forget: bool) -> None:
        """`forget`: what was acknowledged behind what was not comes again too, as after an offset that is not committed."""
        self.acknowledged |= {self._given[number] for number in line.settled if number in self._given}
        self._given.clear()
        open_ones = [chunk for chunk in range(len(self.chunks)) if chunk not in self.acknowledged]
        self.queue = list(range(open_ones[0], len(self.chunks))) if forget and open_ones else open_ones


@pytest.mark.anyio
@pytest.mark.parametrize("seed", range(40))
async def test_every_segment_is_that_of_the_whole_and_everything_is_settled_once(seed: int) -> None:
    chance = random.Random(seed)
    waveform = noise(seed, chance.randrange(500, 6000) / RATE)
    cut_for = {"fan": chance.choice(SEGMENTATIONS), "pump": chance.choice(SEGMENTATIONS)}
    broker, memory = Broker(chance, waveform, overlap=seed % 2 == 0), Memory()
    line = Line(memory=memory, **cut_for)
    in_work: list[Segment] = []
    scored: dict[tuple[str, str], bytes] = {}

    async def finish(segment: Segment) -> None:
        if segment.sample is not None:
            key = segment.detector, segment.sample.id
            assert scored.setdefault(key, segment.sample.waveform.tobytes()) == segment.sample.waveform.tobytes()
        await line.finish(segment)

    while broker.queue or in_work:
        closed = len(line.closed)
        match chance.choices(("death", "connection lost", "finish", "chunk"), (2, 3, 45, 50))[0]:
            case "death":
                broker.lose_connection(line, forget=chance.random() < 0.5)
                line, in_work, closed = Line(memory=memory, **cut_for), [], 0
                for finished in line.finished.values():
                    await finished.load()
            case "connection lost":
                broker.lose_connection(line, forget=False)
            case "finish" if in_work:
                await finish(in_work.pop(chance.randrange(len(in_work))))
            case "chunk" if broker.queue:
                await broker.give(line)
        in_work += line.closed[closed:]

    assert sorted(line.settled) == list(range(len(line.pendings)))
    assert line.resting == set()
    assert len(line.recordings) == 0
    whole = Line(**cut_for)
    await whole.add(waveform, 0, last=True)
    expected = {(one.detector, one.sample.id): one.sample.waveform.tobytes() for one in whole.closed if one.sample is not None}
    assert scored == expected
