"""Recordings in pieces: the same segments however they are cut, what is missing, what comes again, and how many places it takes."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import pytest

from monitor.errors import BadSample, Disconnected
from monitor.finished import FinishedSegments
from monitor.pending import Pending
from monitor.ports import Delivery
from monitor.recordings import Recordings
from monitor.segments import Chunk, Segment
from monitor.telemetry import Telemetry
from monitor.types import FloatArray, Message, Sample, Segmentation
from recordings import RATE, cuts, noise

TEN = Segmentation(length=10.0, hop=10.0, shortest=4.0)
OVERLAPPING = Segmentation(length=10.0, hop=3.0, shortest=4.0)
SPARSE = Segmentation(length=2.0, hop=5.0, shortest=1.0)


class Memory:
    """Positions, which may be away."""

    def __init__(self) -> None:
        self.rows: dict[str, list[str]] = {}
        self.failures = 0

    def settled(self, place: str) -> set[str]:
        return set(self.rows.get(place, []))

    def settle(self, place: str, positions: Sequence[str]) -> None:
        if self.failures:
            self.failures -= 1
            raise Disconnected("the disk is full", "lost")
        self.rows.setdefault(place, []).extend(positions)

    def forget(self, place: str, positions: Sequence[str]) -> None:
        self.rows[place] = [position for position in self.rows[place] if position not in positions]


class Line:
    """One source of one stream, cut for detectors by name; everything that is closed is finished at once unless it is held."""

    def __init__(self, *, timeout: float | None = None, memory: Memory | None = None, **segmentations: Segmentation) -> None:
        self.segmentations = segmentations or {"fan": TEN}
        self.memory = memory or Memory()
        self.finished = {
            name: FinishedSegments(self.memory, source="mics", detector=name, most=1000, report=Telemetry().report) for name in self.segmentations
        }
        self.repeated = 0
        self.recordings = Recordings(self.finished, timeout, on_repeated=self.repeat)
        self.settled: list[int] = []
        self.resting: set[int] = set()
        self.pendings: list[Pending] = []
        self.closed: list[Segment] = []
        self.moved: set[int] = set()

    async def add(self, waveform: FloatArray, offset: int, *, last: bool = False, recording: str = "r", rate: int = RATE, hold: bool = False) -> int:
        """The number of the chunk."""
        number = len(self.pendings)
        message = Message(source="mics", topic="plant", position=str(number), payload=b"", received=1.0)
        pending = Pending(
            Delivery(message, lambda: self.settled.append(number), lambda: number in self.moved),
            float(number),
            on_settled=lambda: None,
            on_rest=lambda rests: (self.resting.add if rests else self.resting.remove)(number),
        )
        self.pendings.append(pending)
        captured = 1000 + offset / rate
        sample = Sample(
            source="mics", topic="plant", position=str(number), stream="mic", captured=captured, received=1.0, waveform=waveform, rate=rate
        )
        chunk = Chunk(pending=pending, sample=sample, recording=recording, offset=offset, last=last)
        await self.take(self.recordings.add(chunk, self.segmentations), hold=hold)
        pending.finish()  # the intake's own part
        return number

    def repeat(self) -> None:
        self.repeated += 1

    async def take(self, closed: Iterable[Segment], *, hold: bool = False) -> None:
        for segment in closed:
            self.closed.append(segment)
            if not hold:
                await self.finish(segment)

    async def finish(self, segment: Segment) -> None:
        await segment.lasting[0].add([segment.lasting[1]])
        segment.finish()

    @property
    def samples(self) -> list[Sample]:
        return [segment.sample for segment in self.closed if segment.sample is not None]


async def line_of(waveform: FloatArray, where: Iterable[tuple[int, int]], *, end: bool = True, **segmentations: Segmentation) -> Line:
    line, places = Line(**segmentations), list(where)
    for begin, stop in places:
        await line.add(waveform[:, begin:stop], begin, last=end and stop == places[-1][1])
    return line


def facts(line: Line) -> list[tuple[object, ...]]:
    """What must not depend on the cut."""
    return sorted((sample.id, sample.segment, sample.captured, sample.waveform.tobytes()) for sample in line.samples)


@pytest.mark.anyio
@pytest.mark.parametrize("segmentation", [TEN, OVERLAPPING, SPARSE])
@pytest.mark.parametrize("chunk", [100, 70, 7, 333, 1000, 1500])
async def test_every_cut_gives_the_segments_of_the_whole(segmentation: Segmentation, chunk: int) -> None:
    waveform = noise(1, 34.5, channels=2)
    whole = await line_of(waveform, [(0, 3450)], fan=segmentation)
    pieces = await line_of(waveform, cuts(3450, chunk), fan=segmentation)

    length, hop = round(segmentation.length * RATE), round(segmentation.hop * RATE)
    assert facts(pieces) == facts(whole)
    for sample in whole.samples:
        begin = sample.segment.index * hop
        assert sample.id == f"mics/mic/r/{sample.segment.index}"
        assert (sample.segment.start, sample.captured) == (begin / RATE, 1000 + begin / RATE)
        np.testing.assert_array_equal(sample.waveform, waveform[:, begin : begin + length])
        assert sample.segment.partial == (begin + length > 3450)
    assert len(whole.closed) == len(range(0, 3450, hop))
    assert len(pieces.settled) == len(pieces.pendings)
    assert len(pieces.recordings) == 0


@pytest.mark.anyio
async def test_a_chunk_is_settled_when_the_last_segment_that_contains_it_is_finished() -> None:
    line, waveform = Line(fan=TEN, pump=OVERLAPPING), noise(1, 30)
    for begin, end in cuts(3000, 250)[:4]:
        await line.add(waveform[:, begin:end], begin)
    assert [segment.detector for segment in line.closed] == ["fan", "pump"]
    assert line.settled == [0]  # up to 2.5 s; pump's second segment begins at 3 s
    assert line.resting == {1, 2, 3}
    await line.add(waveform[:, 1000:1300], 1000, hold=True)
    assert [segment.detector for segment in line.closed] == ["fan", "pump", "pump"]
    assert line.resting == set()  # part of each is in work
    await line.finish(line.closed[-1])
    assert line.settled == [0, 1]
    assert line.resting == {2, 3, 4}


@pytest.mark.anyio
async def test_a_chunk_between_two_segments_is_settled_at_once() -> None:
    line = Line(fan=SPARSE)
    await line.add(noise(1, 2.5), 250)
    assert line.settled == [0]
    assert line.repeated == 0
    assert len(line.recordings) == 0


@pytest.mark.anyio
@pytest.mark.parametrize(("lost", "stretch"), [((3, 4), (4.0, 10.0)), ((6, 7), (0.0, 6.0)), ((0, 2), (2.0, 10.0)), ((2, 8), None)])
async def test_a_gap_leaves_the_longest_stretch(lost: tuple[int, int], stretch: tuple[float, float] | None) -> None:
    waveform = noise(1, 10)
    kept = [(begin, end) for begin, end in cuts(1000, 100) if not lost[0] * 100 <= begin < lost[1] * 100]
    line = await line_of(waveform, kept)
    [segment] = line.closed
    assert segment.missing == "gap"
    assert len(line.settled) == len(kept)
    if stretch is None:
        assert segment.sample is None
        return
    assert segment.sample is not None
    assert (segment.sample.segment.start, segment.sample.segment.end, segment.sample.segment.partial) == (*stretch, True)
    np.testing.assert_array_equal(segment.sample.waveform, waveform[:, round(stretch[0] * RATE) : round(stretch[1] * RATE)])


@pytest.mark.anyio
async def test_the_end_of_a_recording_is_no_gap() -> None:
    line = await line_of(noise(1, 15), cuts(1500, 100))
    assert [segment.missing for segment in line.closed] == [None, "ended"]
    short = await line_of(noise(1, 13), cuts(1300, 100))
    assert [segment.sample is None for segment in short.closed] == [False, True]
    assert len(short.settled) == 13


@pytest.mark.anyio
async def test_what_is_missing_at_the_end_of_a_segment_is_a_gap_where_the_recording_goes_on() -> None:
    waveform = noise(1, 30)
    line = await line_of(waveform, [where for where in cuts(3000, 100) if where != (900, 1000)])
    assert [(segment.sample.segment.index, segment.missing) for segment in line.closed] == [(1, None), (0, "gap"), (2, None)]
    assert line.closed[1].sample.segment.end == 9.0
    at_its_end = await line_of(waveform, [(0, 900), (1000, 1500)])
    assert [segment.missing for segment in at_its_end.closed] == ["gap", "ended"]


@pytest.mark.anyio
async def test_silence_ends_a_recording_but_not_while_nothing_can_be_heard() -> None:
    line = Line()
    await line.add(noise(1, 5), 0)  # arrives at 0
    line.recordings.look(19.0, listening=True)
    await line.take(line.recordings.ended())
    assert line.closed == []
    line.recordings.look(100.0, listening=False)
    await line.take(line.recordings.ended())
    assert line.closed == []
    line.recordings.look(119.0, listening=True)
    await line.take(line.recordings.ended())
    assert line.closed == []
    line.recordings.look(120.0, listening=True)
    await line.take(line.recordings.ended())
    assert [segment.missing for segment in line.closed] == ["ended"]
    assert line.settled == [0]


@pytest.mark.anyio
async def test_a_segment_of_which_no_more_comes_ends_while_its_recording_goes_on() -> None:
    """An offset was wrong: the chunk that lies far away would hold its place, and all that is acknowledged behind it, for ever."""
    line, waveform = Line(timeout=10.0), noise(1, 60)
    await line.add(waveform[:, :100], 0)
    far = await line.add(waveform[:, 100:200], 10**9)
    for begin, end in cuts(6000, 100)[1:]:
        await line.add(waveform[:, begin:end], begin)
        line.recordings.look(line.pendings[-1].arrived, listening=True)
        await line.take(line.recordings.ended())
    assert far in line.settled
    assert len(line.settled) == len(line.pendings)


@pytest.mark.anyio
async def test_recording_timeout_is_what_the_source_says() -> None:
    line = Line(timeout=3.0)
    await line.add(noise(1, 5), 0)
    line.recordings.look(3.0, listening=True)
    await line.take(line.recordings.ended())
    assert len(line.closed) == 1


@pytest.mark.anyio
@pytest.mark.parametrize(("rate", "channels"), [(RATE + 1, 1), (RATE, 2)])
async def test_a_recording_has_one_rate_and_one_number_of_channels(rate: int, channels: int) -> None:
    line = Line()
    await line.add(noise(1, 5), 0)
    with pytest.raises(BadSample) as caught:
        await line.add(noise(2, 1, channels=channels), 500, rate=rate)
    assert caught.value.reason == "lying_header"
    await line.add(noise(3, 5), 500)
    assert [segment.missing for segment in line.closed] == [None]
    assert line.settled == [0, 2]


@pytest.mark.anyio
async def test_a_chunk_that_comes_again_takes_the_place_of_the_one_before() -> None:
    line, waveform = Line(), noise(1, 10)
    for begin, end in cuts(1000, 100)[:5]:
        await line.add(waveform[:, begin:end], begin)
    for begin, end in cuts(1000, 100):  # the connection was lost: all come again
        await line.add(waveform[:, begin:end], begin)
        assert len(line.settled) <= 5 + 10 * (end == 1000)
    assert line.settled[:5] == [0, 1, 2, 3, 4]
    assert len(line.settled) == 15
    assert facts(line) == facts(await line_of(waveform, [(0, 1000)]))


@pytest.mark.anyio
async def test_what_moved_to_another_member_is_not_scored_here() -> None:
    line, waveform = Line(), noise(1, 10)
    for begin, end in cuts(1000, 100)[:6]:
        await line.add(waveform[:, begin:end], begin)
    line.moved = set(range(6))
    await line.add(waveform[:, :100], 0)  # and came back at once: the first chunk is here again
    line.recordings.look(1.0, listening=True)
    await line.take(line.recordings.ended())
    assert sorted(line.settled) == [0, 1, 2, 3, 4, 5]
    for begin, end in cuts(1000, 100)[1:]:
        await line.add(waveform[:, begin:end], begin)
    assert facts(line) == facts(await line_of(waveform, [(0, 1000)]))

    await line.add(waveform[:, :100], 0, recording="other")
    line.moved.add(len(line.pendings) - 1)
    line.recordings.look(2.0, listening=True)
    await line.take(line.recordings.ended())
    assert len(line.closed) == 1
    assert len(line.recordings) == 0


@pytest.mark.anyio
async def test_a_chunk_of_a_segment_in_work_is_finished_with_it() -> None:
    line, waveform = Line(), noise(1, 10)
    for begin, end in cuts(1000, 200):
        await line.add(waveform[:, begin:end], begin, hold=True)
    again = await line.add(waveform[:, :200], 0)
    assert line.settled == []
    assert line.resting == set()
    await line.finish(line.closed[0])
    assert line.settled == [0, 1, 2, 3, 4, again]
    assert len(line.closed) == 1


@pytest.mark.anyio
async def test_what_is_finished_is_known_after_a_restart() -> None:
    """A chunk that two segments share comes again for the second one; the first is done."""
    memory, waveform = Memory(), noise(1, 20)
    line = Line(memory=memory)
    for begin, end in cuts(2000, 70)[:20]:
        await line.add(waveform[:, begin:end], begin)
    unsettled = [number for number in range(20) if number not in line.settled]
    assert unsettled == list(range(14, 20))  # the 14th ends at 10.5 s

    restarted = Line(memory=memory)
    await restarted.finished["fan"].load()
    for begin, end in cuts(2000, 70)[unsettled[0] :]:
        await restarted.add(waveform[:, begin:end], begin, last=end == 2000)
    assert [sample.segment.index for sample in restarted.samples] == [1]
    assert facts(line) + facts(restarted) == facts(await line_of(waveform, [(0, 2000)]))
    assert len(restarted.settled) == len(restarted.pendings)
    assert restarted.repeated == 0  # of each something was new

    await restarted.add(waveform[:, :70], 0)
    assert restarted.repeated == 1
    assert len(restarted.settled) == len(restarted.pendings)


@pytest.mark.anyio
@pytest.mark.parametrize("hold", [False, True])
async def test_chunks_may_overlap(hold: bool) -> None:
    """The second lies in the first one's segment too, which is finished or in work, and comes again without it."""
    line, waveform = Line(), noise(1, 20)
    await line.add(waveform[:, :1000], 0, hold=hold)
    await line.add(waveform[:, 500:1500], 500)
    if hold:
        await line.finish(line.closed[0])
    assert line.settled == [0]
    restarted = Line(memory=line.memory)
    await restarted.finished["fan"].load()
    for again in (line, restarted):
        await again.add(waveform[:, 500:1500], 500, last=True)
    assert [segment.sample.segment.index for segment in line.closed] == [0, 1]
    assert [segment.sample.segment.index for segment in restarted.closed] == [1]


@pytest.mark.anyio
async def test_the_record_keeps_the_newest_and_waits_for_its_disk() -> None:
    memory, telemetry = Memory(), Telemetry()
    memory.failures = 2

    def record() -> FinishedSegments:
        return FinishedSegments(memory, source="mics", detector="fan", most=10, report=telemetry.report)

    before = record()
    for number in range(25):
        await before.add([f"{number:032x}"])
    assert telemetry.count("commit_failed", "lost") == 1
    after = record()
    await after.load()
    for number in range(25):
        assert (f"{number:032x}" in before) == (f"{number:032x}" in after) == (number >= 15)
    await after.add(["f" * 32])
    assert f"{15:032x}" not in after
    assert f"{16:032x}" in after


def test_a_key_tells_names_and_cuts_apart() -> None:
    places = [("a", "b", 0, 10), ("ab", "", 0, 10), ("", "ab", 0, 10), ("a", "b", 1, 10), ("a", "b", 0, 100), ("a", "b", 10, 0), ("a\0", "b", 0, 10)]
    assert len({FinishedSegments.key(*place) for place in places}) == len(places)


@pytest.mark.anyio
async def test_a_segment_that_misses_its_begin_does_not_wait_for_the_end_of_the_recording() -> None:
    """Whoever joins a recording that never ends."""
    line, waveform = Line(), noise(1, 60)
    for begin, end in cuts(6000, 100)[5:]:
        await line.add(waveform[:, begin:end], begin)
    assert [(segment.sample.segment.index, segment.missing) for segment in line.closed] == [(1, None), (0, "gap"), *((n, None) for n in range(2, 6))]
    assert len(line.settled) == 55


@pytest.mark.anyio
@pytest.mark.parametrize("segmentation", [TEN, OVERLAPPING, dataclasses.replace(TEN, hop=4.0), SPARSE])
@pytest.mark.parametrize(("chunk", "first"), [(100, 0), (200, 0), (70, 0), (300, 0), (1500, 0), (64, 5)])
async def test_the_places_that_are_named_are_just_enough(segmentation: Segmentation, chunk: int, first: int) -> None:
    """Three recordings in step, until chunks and segments have met in every way."""
    line = Line(fan=segmentation)
    most = named = 0
    for begin in range(first, 12_000, chunk):
        for recording in range(3):
            out = len(line.pendings) - len(line.settled) + 1
            await line.add(np.zeros((1, chunk), np.float32), begin, recording=f"r{recording}")
            if begin > 2200:  # the segment whose first samples never came is closed
                most = max(most, out)
                if len(line.recordings) == 3:
                    named = line.recordings.needed(in_order=False)
    assert most == (named or 1)
