"""read -> decode -> assemble -> prepare: one source's messages become items that wait for its detectors."""

import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from monitor.arrivals import Arrivals
from monitor.assembly import Assembly
from monitor.batching import Batcher
from monitor.errors import BadSample
from monitor.pending import Bad, Bury, Item, Part, Pending
from monitor.ports import Positions, Report, SourceOptions
from monitor.preparation import WORKERS, Decoded, Preparation
from monitor.probation import MOST_DEATHS, Probation
from monitor.receiving import Inlet
from monitor.serving import Devices, Model, ModelSlot, check_model
from monitor.settings import DetectorSettings
from monitor.streams import Streams
from monitor.types import Sample

if TYPE_CHECKING:
    from monitor.tracing import Tracing

_WATCH_EVERY = 1.0
"""Seconds between looks for silent streams and ended recordings at most; a quarter of `expect_every` where that is less."""


class Intake:
    """Reads one source, decodes each message once for all its detectors, and deals the samples out in order."""

    def __init__(
        self,
        source: Inlet,
        *,
        name: str,
        options: SourceOptions,
        detectors: Mapping[str, DetectorSettings],
        slots: Mapping[str, ModelSlot],
        batchers: Mapping[str, Batcher[Item]],
        workers: anyio.CapacityLimiter,
        probation: Probation,
        devices: Devices,
        bury: Bury,
        streams: Streams,
        positions: Positions,
        report: Report,
        tracing: "Tracing | None",
    ) -> None:
        self.source = source
        self._name = name
        self._options = options
        self._slots = slots
        self._batchers = batchers
        self._workers = workers
        self._probation = probation
        self._devices = devices
        self._bury = bury
        self._streams = streams
        self._report = report
        self._most = max(detector.max_batch_size for detector in detectors.values())
        self._preparation = Preparation(name, options, detectors, report=report, tracing=tracing)
        self._arrivals = Arrivals(options.max_in_flight, options.expect_every, lambda: source.taken)
        self._assembly = Assembly(
            name,
            options,
            detectors,
            slots=slots,
            workers=workers,
            probation=probation,
            offer=self._offer,
            bury=bury,
            positions=positions,
            report=report,
        )
        self._dealing = anyio.Lock()
        self._stirred = anyio.Event()  # segments may have to be closed
        self._waiting: anyio.CancelScope | None = None  # around the wait for a first model
        self._draining = False

    @property
    def unsettled(self) -> int:
        """Deliveries that were handed out and not settled."""
        return self._arrivals.unsettled

    @property
    def waiting(self) -> int:
        """Deliveries that were read and are not dealt out yet."""
        return len(self._arrivals.undealt)

    @property
    def open_segments(self) -> int:
        """Segments that wait for further chunks of their recordings."""
        return self._assembly.open

    @property
    def silent_streams(self) -> int:
        """Streams that are silent for longer than `expect_every`."""
        return self._streams.silent

    async def run(self) -> None:
        """Until the source ends."""
        await self._assembly.load()
        send, receive = anyio.create_memory_object_stream[Pending](self._options.max_in_flight)
        async with anyio.create_task_group() as watch:
            watch.start_soon(self._watch)
            watch.start_soon(self._close)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._read, send)
                tasks.start_soon(self._decode, receive)
            watch.cancel_scope.cancel()
        self._streams.end()

    async def stop(self) -> None:
        """Read no more. What waits for a first model, or for further chunks, is left unsettled, and comes again."""
        self._draining = True
        if self._waiting is not None:
            self._waiting.cancel()
        await self.source.stop()

    async def _watch(self) -> None:
        """Look for silent streams and ended recordings, as far as what arrived was dealt: what waits here, or behind what waits here, is no silence.

        While nothing can be handed out, and while this process stands still, no time passes for them.
        """
        expect_every = self._options.expect_every or math.inf
        every = min(_WATCH_EVERY, expect_every / 4)
        arrivals = self._arrivals
        listened = arrivals.listened(anyio.current_time())
        self._streams.listening(listened)
        while not self._draining:
            await anyio.sleep(every)
            now = anyio.current_time()
            arrivals.stood_still(max(0.0, arrivals.listened(now) - listened - every))  # woken late
            listened = arrivals.listened(now)
            self._streams.look(now, heard_until=arrivals.heard_until(now), listening=self.source.listening)
            self._assembly.look(arrivals.heard_until(now), listening=self.source.listening)
            self._stir()

    async def _read(self, send: MemoryObjectSendStream[Pending]) -> None:
        with send:
            async for delivery in self.source:
                arrived = self._arrivals.came(anyio.current_time())
                settled = partial(self._settled, delivery.message.id)
                try:
                    await send.send(Pending(delivery, arrived, on_settled=settled, on_rest=self._rests))
                except anyio.BrokenResourceError:  # the decoder has left: draining, and no model ever came
                    return

    async def _decode(self, receive: MemoryObjectReceiveStream[Pending]) -> None:
        with receive:
            async for first in receive:
                group = [first]
                while len(group) < self._most and not self._singly:
                    try:
                        group.append(receive.receive_nowait())
                    except (anyio.WouldBlock, anyio.EndOfStream):
                        break
                models = await self._models()
                if models is None:
                    return
                async with self._turn():
                    if self._singly:
                        await self._alone(first, models)
                    else:
                        await self._deal(group, models)
                for _ in group:
                    self._arrivals.undealt.popleft()
                self._stir()

    @property
    def _singly(self) -> bool:
        return self._probation.singly(self._name, self._options.max_in_flight)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Around whatever deals out: one at a time here, and singly in the whole daemon where that must be."""
        if self._singly:
            async with self._probation.turn, self._dealing:
                yield
        else:
            async with self._dealing:
                yield

    async def _models(self) -> dict[str, Model] | None:
        """The current models; waits for the first of each, which holds the source. None when draining meanwhile."""
        models = {}
        for name, slot in self._slots.items():
            if slot.model is None:
                with anyio.CancelScope() as self._waiting:
                    if not self._draining:
                        await slot.ready()
            if slot.model is None:
                return None
            models[name] = slot.model
        return models

    async def _alone(self, pending: Pending, models: Mapping[str, Model]) -> None:
        """One delivery alone in the whole daemon, its id on record, so that it is known if it kills the process."""
        with self._probation.delivery(self._name, pending.delivery.message.id) as deaths:
            if deaths >= MOST_DEATHS:
                await self._bury([Bad(pending, "failed", f"the process died {deaths} times while this was in work")])
            else:
                await self._deal([pending], models, singly=True)
            await pending.at_rest()

    async def _deal(self, group: list[Pending], models: Mapping[str, Model], *, singly: bool = False) -> None:
        """Decode and prepare a group in the worker pool, then put each sample before the detectors that take it, in order."""
        share = -(-len(group) // WORKERS)
        parts = [group[start : start + share] for start in range(0, len(group), share)]
        decoded: list[list[Decoded]] = [[]] * len(parts)

        async def work(part: int) -> None:
            decoded[part] = await anyio.to_thread.run_sync(self._preparation.decode, parts[part], models, limiter=self._workers)

        async with anyio.create_task_group() as workers:
            for part in range(len(parts)):
                workers.start_soon(work, part)
        bad: list[Bad] = []
        for one in (one for part in decoded for one in part):
            self._note(one)
            if one.chunk is not None:
                try:
                    await self._assembly.add(one.chunk, one.segmentations or {}, singly=singly)
                except BadSample as error:
                    one.error = error
            if one.error is not None:
                bad.append(Bad.of(one.pending, one.error))
                continue
            for name, prepared in (one.prepared or {}).items():
                assert one.sample is not None
                one.pending.deal()
                bad += await self._offer(one.pending, models[name], one.sample, prepared, at_once=singly)
            one.pending.finish()
        await self._bury(bad)

    async def _offer(self, part: Part, model: Model, sample: Sample, prepared: Any | Exception, *, at_once: bool) -> list[Bad]:
        """Put a sample before its detector; gives it back where that can never be."""
        name = model.version.name
        if not isinstance(prepared, Exception):
            await self._batchers[name].put((self._name, sample.stream), Item(part, sample, prepared, model), at_once=at_once)
            return []
        if not isinstance(prepared, BadSample):
            await self._devices.run(model.detector.device, check_model, model)
        return [Bad.of(part, prepared)]

    async def _close(self) -> None:
        """Work on segments for which nothing more will come: their recordings ended, or they hold all places of the source."""
        while True:
            await self._stirred.wait()
            self._stirred = anyio.Event()
            async with self._turn():
                if self._draining:
                    return
                await self._assembly.close_ended(singly=self._singly)
                if self._arrivals.stuck:
                    await self._assembly.make_room(in_order=self.unsettled < self._options.max_in_flight, singly=self._singly)

    def _note(self, one: Decoded) -> None:
        """What is known of its stream by now."""
        now = anyio.current_time()
        if one.stream is not None:
            self._streams.spoke(one.stream, one.pending.arrived)
            if one.too_old is not None:
                self._streams.too_old(one.stream, one.too_old, now)
        if one.sample is not None and one.signal is not None:
            self._streams.signal(one.sample, one.signal, now)

    def _settled(self, message_id: str) -> None:
        self._arrivals.settled(anyio.current_time())
        self._probation.settled(self._name, message_id)

    def _rests(self, resting: bool) -> None:
        self._arrivals.rests(anyio.current_time(), resting)
        self._stir()

    def _stir(self) -> None:
        self._stirred.set()
