"""read -> decode -> prepare: one source's messages become items that wait for its detectors."""

import math
import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from monitor.batching import Batcher
from monitor.decoding import decode_payload, unwrap
from monitor.errors import BadSample
from monitor.pending import Bad, Bury, Item, Pending
from monitor.ports import Report, SourceOptions
from monitor.probation import MOST_DEATHS, Probation
from monitor.receiving import Inlet
from monitor.serving import Devices, Model, ModelSlot, check_model
from monitor.settings import DetectorSettings
from monitor.signals import Signal, look
from monitor.streams import Streams
from monitor.types import SENSORS, Sample

if TYPE_CHECKING:
    from monitor.tracing import Tracing

WORKERS = os.cpu_count() or 1
MOST_STREAMS_LOGGED = 1000  # names of streams come from outside
_WATCH_EVERY = 1.0
"""Seconds between looks for silent streams at most; a quarter of `expect_every` where that is less."""


@dataclass(slots=True, eq=False)
class _Decoded:
    """What a worker made of a delivery: a sample prepared for each detector that takes it, or what is wrong with it."""

    pending: Pending
    stream: str | None = None
    """Unless the headers cannot be read."""
    too_old: float | None = None
    """The seconds since it was captured, if beyond `max_age`: then it is not even decoded."""
    sample: Sample | None = None
    signal: Signal | None = None
    error: Exception | None = None
    prepared: dict[str, Any | Exception] | None = None  # by detector


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
        report: Report,
        tracing: "Tracing | None",
    ) -> None:
        self.source = source
        self.unsettled = 0
        """Deliveries that were handed out and not settled."""
        self._name = name
        self._options = options
        self._detectors = detectors
        self._slots = slots
        self._batchers = batchers
        self._workers = workers
        self._probation = probation
        self._devices = devices
        self._bury = bury
        self._streams = streams
        self._report = report
        self._tracing = tracing
        self._unwatched: set[str] = set()
        self._undealt: deque[float] = deque()  # when the deliveries arrived that have not been dealt out, oldest first
        self._held: float | None = None  # since when all of max_in_flight are out, so that the source hands out nothing
        self._moved = 0.0  # when a delivery was settled last, or came after none was out
        self._deaf = 0.0  # seconds in which nothing could be handed out: held, or the process stood still
        self._waiting: anyio.CancelScope | None = None  # around the wait for a first model
        self._draining = False

    @property
    def waiting(self) -> int:
        """Deliveries that were read and are not dealt out yet."""
        return len(self._undealt)

    @property
    def silent_streams(self) -> int:
        """Streams that are silent for longer than `expect_every`."""
        return self._streams.silent

    async def run(self) -> None:
        """Until the source ends."""
        send, receive = anyio.create_memory_object_stream[Pending](self._options.max_in_flight)
        async with anyio.create_task_group() as watch:
            watch.start_soon(self._watch)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._read, send)
                tasks.start_soon(self._decode, receive)
            watch.cancel_scope.cancel()
        self._streams.end()

    async def stop(self) -> None:
        """Read no more. What waits for a first model is left unsettled, and comes again."""
        self._draining = True
        if self._waiting is not None:
            self._waiting.cancel()
        await self.source.stop()

    async def _watch(self) -> None:
        """Look for silent streams, as far as what arrived was told: what waits here, or behind what waits here, is no silence.

        While nothing can be handed out, and while this process stands still, no time passes for them.
        """
        expect_every = self._options.expect_every or math.inf
        every = min(_WATCH_EVERY, expect_every / 4)
        listened = self._listened(anyio.current_time())
        self._streams.listening(listened)
        while not self._draining:
            await anyio.sleep(every)
            now = anyio.current_time()
            self._deaf += max(0.0, self._listened(now) - listened - every)  # woken late: what came meanwhile is not read yet
            listened = self._listened(now)
            heard_until = min(listened, self._undealt[0]) if self._undealt else listened
            self._streams.look(now, heard_until=heard_until, listening=self.source.listening)

    def _listened(self, now: float) -> float:
        """The clock of arrivals: the loop's, which stands still while nothing can be handed out."""
        held = self._held_since(now)
        return (now if held is None else held) - self._deaf

    def _held_since(self, now: float) -> float | None:
        """None while something can be handed out.

        Where nothing is settled for so long, a broker may hold back by a limit of its own: MQTT 3.1.1 knows no other.
        """
        if self._held is not None:
            return self._held
        return self._moved if self.unsettled and now - self._moved > (self._options.expect_every or math.inf) else None

    async def _read(self, send: MemoryObjectSendStream[Pending]) -> None:
        with send:
            async for delivery in self.source:
                now = anyio.current_time()
                if not self.unsettled:
                    self._moved = now
                self.unsettled += 1
                if self.unsettled >= self._options.max_in_flight:
                    self._held = now
                pending = Pending(delivery, now - self._deaf, self._settled)
                self._undealt.append(pending.arrived)
                try:
                    await send.send(pending)
                except anyio.BrokenResourceError:  # the decoder has left: draining, and no model ever came
                    return

    async def _decode(self, receive: MemoryObjectReceiveStream[Pending]) -> None:
        most = max(detector.max_batch_size for detector in self._detectors.values())
        with receive:
            async for first in receive:
                singly = self._probation.singly(self._name, self._options.max_in_flight)
                group = [first]
                while len(group) < most and not singly:
                    try:
                        group.append(receive.receive_nowait())
                    except (anyio.WouldBlock, anyio.EndOfStream):
                        break
                models = await self._models()
                if models is None:
                    return
                if singly:
                    await self._alone(first, models)
                else:
                    await self._deal(group, models)
                for _ in group:
                    self._undealt.popleft()

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
        settled = anyio.Event()

        def on_settled() -> None:
            self._settled()
            settled.set()

        pending.on_settled = on_settled
        async with self._probation.alone(self._name, pending.delivery.message.id) as deaths:
            if deaths >= MOST_DEATHS:
                await self._bury([Bad(pending, "failed", f"the process died {deaths} times while this was in work")])
            else:
                await self._deal([pending], models, at_once=True)
            await settled.wait()

    async def _deal(self, group: list[Pending], models: Mapping[str, Model], *, at_once: bool = False) -> None:
        """Decode and prepare a group in the worker pool, then put each sample before the detectors that take it, in order."""
        share = -(-len(group) // WORKERS)
        parts = [group[start : start + share] for start in range(0, len(group), share)]
        decoded: list[list[_Decoded]] = [[]] * len(parts)

        async def work(part: int) -> None:
            decoded[part] = await anyio.to_thread.run_sync(self._prepare, parts[part], models, limiter=self._workers)

        async with anyio.create_task_group() as workers:
            for part in range(len(parts)):
                workers.start_soon(work, part)
        bad: list[Bad] = []
        for one in (one for part in decoded for one in part):
            self._note(one)
            if one.error is not None:
                bad.append(_bad(one.pending, one.error))
                continue
            for name, prepared in (one.prepared or {}).items():
                one.pending.deal()
                if isinstance(prepared, Exception):
                    if not isinstance(prepared, BadSample):
                        await self._devices.run(models[name].detector.device, check_model, models[name])
                    bad.append(_bad(one.pending, prepared))
                else:
                    assert one.sample is not None
                    item = Item(one.pending, one.sample, prepared, models[name])
                    await self._batchers[name].put((self._name, one.sample.stream), item, at_once=at_once)
            one.pending.finish()
        await self._bury(bad)

    def _note(self, one: _Decoded) -> None:
        """What is known of its stream by now."""
        now = anyio.current_time()
        if one.stream is not None:
            self._streams.spoke(one.stream, one.pending.arrived)
            if one.too_old is not None:
                self._streams.too_old(one.stream, one.too_old, now)
        if one.sample is not None and one.signal is not None:
            self._streams.signal(one.sample, one.signal, now)

    def _prepare(self, part: Sequence[Pending], models: Mapping[str, Model]) -> list[_Decoded]:
        """In a worker thread."""
        if self._tracing is None:
            return [self._prepared(pending, models) for pending in part]
        done = []
        for pending in part:
            begun = time.perf_counter()
            done.append(self._prepared(pending, models))
            self._tracing.step("decode", [pending.delivery.message.id], time.perf_counter() - begun)
        return done

    def _prepared(self, pending: Pending, models: Mapping[str, Model]) -> _Decoded:
        """Any exception is one of this message or of its model, never of the flow."""
        one, message = _Decoded(pending), pending.delivery.message
        try:
            envelope = unwrap(message, self._options)
            one.stream = envelope.stream
            age = time.time() - envelope.captured
            if self._options.max_age is not None and age > self._options.max_age:
                one.too_old = age
                return one
            sample = one.sample = decode_payload(message, envelope, self._options)
            takers = self._takers(sample, models)
            one.signal = look(sample)
        except MemoryError:
            raise  # the machine's fault, not the message's
        except Exception as error:
            one.error = error
            return one
        one.prepared = {}
        for name, model in takers.items():
            try:
                one.prepared[name] = model.detector.prepare(sample)
            except MemoryError:
                raise
            except Exception as error:
                one.prepared[name] = error
        return one

    def _takers(self, sample: Sample, models: Mapping[str, Model]) -> dict[str, Model]:
        """The detectors that watch this stream. Raises BadSample when none of them is made for such samples."""
        watching = {name: model for name, model in models.items() if any(fnmatchcase(sample.stream, glob) for glob in self._detectors[name].streams)}
        takers = {name: model for name, model in watching.items() if sample.has(model.detector.modality)}
        if watching and not takers:
            wanted = " or ".join(sorted({SENSORS[model.detector.modality] for model in watching.values()}))
            error = f"{sample.sensors} from stream {sample.stream}, whose detectors ({', '.join(watching)}) do not take it: expected {wanted}"
            raise BadSample("unsupported", error)
        if not watching:
            known = sample.stream in self._unwatched or len(self._unwatched) >= MOST_STREAMS_LOGGED
            self._report("stream_unwatched", quiet=known, source=self._name, stream=sample.stream)
            if not known:
                self._unwatched.add(sample.stream)
        return takers

    def _settled(self) -> None:
        now = anyio.current_time()
        held = self._held_since(now)
        if held is not None:
            self._deaf += now - held
        self._held, self._moved = None, now
        self.unsettled -= 1


def _bad(pending: Pending, error: Exception) -> Bad:
    if isinstance(error, BadSample):
        return Bad(pending, error.reason, str(error))
    return Bad(pending, "failed", f"{type(error).__name__}: {error}")
