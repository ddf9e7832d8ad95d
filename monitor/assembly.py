"""assemble: the chunks of one source's recordings become segments, and those items that wait for their detectors."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Protocol

import anyio
import anyio.to_thread

from monitor.finished import FinishedSegments
from monitor.pending import Bad, Bury, Part, finish
from monitor.ports import Positions, Report, SourceOptions
from monitor.preparation import WORKERS, prepare
from monitor.probation import Probation
from monitor.recordings import Recordings
from monitor.segments import Chunk, Segment
from monitor.serving import Model, ModelSlot
from monitor.types import Sample, Segmentation

SEGMENTS_KEPT = 64
"""For each of max_in_flight: finished segments that are remembered. Beyond it a broker would have to give again what is long settled."""


class Offer(Protocol):
    """Puts a sample before its detector; gives it back where that can never be."""

    async def __call__(self, part: Part, model: Model, sample: Sample, prepared: Any | Exception, *, at_once: bool) -> list[Bad]: ...


class Assembly:
    """Of one source. One caller at a time."""

    def __init__(
        self,
        source: str,
        options: SourceOptions,
        detectors: Iterable[str],
        *,
        slots: Mapping[str, ModelSlot],
        workers: anyio.CapacityLimiter,
        probation: Probation,
        offer: Offer,
        bury: Bury,
        positions: Positions,
        report: Report,
    ) -> None:
        self._source = source
        self._slots = slots
        self._workers = workers
        self._probation = probation
        self._offer = offer
        self._bury = bury
        self._report = report
        kept = SEGMENTS_KEPT * options.max_in_flight
        self._finished = {reader: FinishedSegments(positions, source=source, detector=reader, most=kept, report=report) for reader in detectors}
        self._recordings = Recordings(self._finished, options.recording_timeout, on_repeated=self._repeated)
        self._needed = options.max_in_flight  # or the largest that was said to be needed

    @property
    def open(self) -> int:
        """Segments that wait for further chunks of their recordings."""
        return self._recordings.open

    async def load(self) -> None:
        """What former runs finished."""
        for finished in self._finished.values():
            await finished.load()

    def look(self, heard_until: float, *, listening: bool) -> None:
        """See Recordings.look."""
        self._recordings.look(heard_until, listening=listening)

    async def add(self, chunk: Chunk, segmentations: Mapping[str, Segmentation], *, singly: bool) -> None:
        """Raises BadSample for a chunk that cannot belong to its recording."""
        await self._work_on(self._recordings.add(chunk, segmentations), singly=singly)

    async def close_ended(self, *, singly: bool) -> None:
        """Work on the segments of recordings that ended."""
        await self._work_on(self._recordings.ended(), singly=singly)

    async def make_room(self, *, in_order: bool, singly: bool) -> None:
        """Close the oldest segment that waits, as all places are held by such; say how many would do. `in_order`: see Recordings.needed."""
        needed = self._recordings.needed(in_order=in_order)
        await self._work_on(self._recordings.make_room(), singly=singly, max_in_flight=needed, quiet=needed <= self._needed)
        self._needed = max(needed, self._needed)

    async def _work_on(self, closed: Iterator[Segment], *, singly: bool, quiet: bool = False, **facts: Any) -> None:
        """Have segments scored that were just closed, by the models that serve now; count those that are too short."""
        while group := list(islice(closed, 1 if singly else WORKERS)):
            for segment in group:
                self._report_missing(segment, quiet=quiet, **facts)
            await finish(segment for segment in group if segment.sample is None)
            scored = [segment for segment in group if segment.sample is not None]
            for segment in scored if singly else ():
                with self._probation.segment([pending.delivery.message.id for pending in segment.pendings]):
                    await self._put([segment], at_once=True)
                    await segment.finished.wait()
            if not singly:
                await self._put(scored)

    async def _put(self, segments: list[Segment], *, at_once: bool = False) -> None:
        """Prepare in the worker pool, then put before their detectors, in order."""
        prepared: dict[Segment, tuple[Model, Sample, Any]] = {}

        async def work(segment: Segment) -> None:
            model, sample = self._slots[segment.detector].model, segment.sample
            assert model is not None  # its chunks were dealt out by one
            assert sample is not None
            prepared[segment] = model, sample, await anyio.to_thread.run_sync(prepare, model, sample, limiter=self._workers)

        async with anyio.create_task_group() as workers:
            for segment in segments:
                workers.start_soon(work, segment)
        bad: list[Bad] = []
        for segment in segments:
            bad += await self._offer(segment, *prepared[segment], at_once=at_once)
        await self._bury(bad)

    def _repeated(self) -> None:
        self._report("chunk_repeated", quiet=True, source=self._source)

    def _report_missing(self, segment: Segment, *, quiet: bool, **facts: Any) -> None:
        """That a recording ends within its last segment is no news."""
        if segment.missing is None:
            return
        what = "segment_unscored" if segment.sample is None else "segment_partial"
        quiet = quiet or segment.missing == "ended"
        self._report(what, quiet=quiet, source=self._source, detector=segment.detector, cause=segment.missing, **segment.facts, **facts)
