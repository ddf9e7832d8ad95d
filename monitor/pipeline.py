"""read -> decode -> prepare -> batch -> score -> judge -> publish -> settle, for sources and detectors that hang together.

    source --Intake--> Batcher per detector --stack--> --score--> --publish--> settle

Every arrow is bounded, so that a slow or absent sink holds the source. While one batch is scored on its device's thread,
the next is stacked (and copied there), the one before is published, and a worker pool decodes.
"""

import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
from anyio.abc import TaskStatus
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from monitor.batching import Batcher
from monitor.errors import DeviceLost
from monitor.health import Health
from monitor.intake import Intake
from monitor.pending import Bad, Item, finish
from monitor.probation import Probation
from monitor.publishing import Outlet, burial
from monitor.receiving import Inlet
from monitor.serving import Devices, Model, ModelSlot, Outcome, score
from monitor.state import State
from monitor.store import ModelStore
from monitor.streams import Streams
from monitor.telemetry import Reading, Telemetry
from monitor.topology import PipelineSettings
from monitor.types import Batch, DeadLetter, Event

if TYPE_CHECKING:
    from monitor.tracing import Tracing


@dataclass(frozen=True, slots=True, eq=False)
class Staged:
    """A batch on its way to the device; the error where it could not even be stacked."""

    items: list[Item]
    batch: Batch | Exception


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """A batch with what came of it."""

    items: list[Item]
    outcome: Outcome


class Pipeline:
    """Runs one connected part of the topology until `stop` has drained it or its task is cancelled."""

    def __init__(
        self,
        settings: PipelineSettings,
        *,
        site: str,
        poll: float,
        store: ModelStore,
        state: State,
        probation: Probation,
        devices: Devices,
        workers: anyio.CapacityLimiter,
        telemetry: Telemetry,
        tracing: "Tracing | None" = None,
    ) -> None:
        self._health = Health(site=site, telemetry=telemetry)
        telemetry = telemetry.heard_by(self._health.hear)
        report = telemetry.report
        self.settings = settings
        self.ended = anyio.Event()
        self._site = site
        self._poll = poll
        self._devices = devices
        self._telemetry = telemetry
        self._tracing = tracing
        detectors = settings.detectors
        self._slots = {name: ModelSlot(name, detector, site=site, store=store, report=report) for name, detector in detectors.items()}
        self._batchers: dict[str, Batcher[Item]] = {
            name: Batcher(max_batch_size=detector.max_batch_size, max_wait=detector.max_wait, capacity=2 * detector.max_batch_size)
            for name, detector in detectors.items()
        }
        self._inlets: list[Inlet] = []
        self._intakes: list[Intake] = []
        for name, options in settings.sources.items():
            readers = {reader for reader, detector in detectors.items() if name in detector.inputs}
            streams = Streams(name, options, telemetry)
            self._inlets.append(Inlet(name, options, positions=state, telemetry=telemetry.heard_by(streams.hear), tracing=tracing))
            self._intakes.append(
                Intake(
                    self._inlets[-1],
                    name=name,
                    options=options,
                    detectors={reader: detectors[reader] for reader in readers},
                    slots={reader: self._slots[reader] for reader in readers},
                    batchers={reader: self._batchers[reader] for reader in readers},
                    workers=workers,
                    probation=probation,
                    devices=devices,
                    bury=self._bury,
                    streams=streams,
                    positions=state,
                    report=report,
                    tracing=tracing,
                )
            )
        self._outlets = {name: Outlet(name, sink.options, sink.events, telemetry) for name, sink in settings.sinks.items()}
        self._dead_letter = Outlet("dead_letter", settings.dead_letter, ["dead_letter"], telemetry)
        self._needed = [*(outlet for name, outlet in self._outlets.items() if settings.sinks[name].takes_from(detectors)), self._dead_letter]
        for outlet in self._outlets.values():
            if "monitor.health.v1" in outlet.types:
                self._health.tell(outlet, open_it=outlet not in self._needed)
        self._opening = anyio.CancelScope()
        self._running = anyio.CancelScope()

    @property
    def unsettled(self) -> int:
        """Deliveries that were handed out and not settled."""
        return sum(intake.unsettled for intake in self._intakes)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Reports started when the models that exist are loaded, brokers or not."""
        try:
            with self._running:
                for slot in self._slots.values():
                    await slot.refresh()
                task_status.started()
                async with AsyncExitStack() as stack, self._health.running(), anyio.create_task_group() as watching:
                    with self._opening:
                        for outlet in self._needed:
                            await outlet.open()
                            stack.push_async_exit(outlet.sink.__aexit__)
                            watching.start_soon(outlet.watch)
                        for intake in self._intakes:
                            await stack.enter_async_context(intake.source)
                    if not self._opening.cancelled_caught:
                        await self._flow()
                    watching.cancel_scope.cancel()
        finally:
            self.ended.set()

    async def stop(self) -> None:
        """Read no more; what was begun is finished, and then `run` returns."""
        self._opening.cancel()
        for intake in self._intakes:
            await intake.stop()

    async def cancel(self) -> None:
        """End at once; what is unsettled comes again."""
        self._running.cancel()
        await self.ended.wait()

    @property
    def holding(self) -> list[str]:
        """Detectors without a model: their sources hold."""
        return [name for name, slot in self._slots.items() if slot.model is None]

    def troubles(self) -> Iterator[str]:
        """Why it is not ready: whose other side is away, and who has no model; in words."""
        for inlet in self._inlets:
            if inlet.away is not None:
                yield f"source {inlet.name}: {inlet.away}"
        for outlet in self._needed:
            if outlet.away is not None:
                yield f"{'' if outlet is self._dead_letter else 'sink '}{outlet.name}: {outlet.away}"
        for name, slot in self._slots.items():
            if slot.trouble is not None:
                yield f"detector {name} holds its sources: {slot.trouble}"

    def readings(self) -> Iterator[Reading]:
        """How it stands, for Prometheus."""
        for inlet, intake in zip(self._inlets, self._intakes, strict=True):
            yield from inlet.readings()
            yield "monitor_queue_depth", (f"sources.{inlet.name}",), intake.waiting
            yield "monitor_silent_streams", (inlet.name,), intake.silent_streams
            yield "monitor_open_segments", (inlet.name,), intake.open_segments
        for outlet in (*self._outlets.values(), self._dead_letter):
            name = "monitor_sink_connected" if outlet in self._needed else "monitor_health_sink_connected"
            yield name, (outlet.name,), float(outlet.away is None)
        for name, slot in self._slots.items():
            yield "monitor_queue_depth", (f"detectors.{name}",), len(self._batchers[name])
            if slot.model is not None:
                version = slot.model.version
                yield "monitor_model_info", (name, version.id), 1
                yield "monitor_model_age_seconds", (name,), time.time() - version.trained

    def look(self) -> None:
        """Look in the store at once."""
        for slot in self._slots.values():
            slot.wake()

    async def _flow(self) -> None:
        async with anyio.create_task_group() as watch:
            for slot in self._slots.values():
                watch.start_soon(slot.watch, self._poll)
            async with anyio.create_task_group() as flow:
                for name in self.settings.detectors:
                    to_score, staged = anyio.create_memory_object_stream[Staged](0)
                    to_publish, scored = anyio.create_memory_object_stream[Scored](0)
                    flow.start_soon(self._stack, name, to_score)
                    flow.start_soon(self._score, name, staged, to_publish)
                    flow.start_soon(self._publish, name, scored)
                async with anyio.create_task_group() as intakes:
                    for intake in self._intakes:
                        intakes.start_soon(intake.run)
                for batcher in self._batchers.values():
                    batcher.close()
            watch.cancel_scope.cancel()

    async def _stack(self, name: str, send: MemoryObjectSendStream[Staged]) -> None:
        with send:
            while items := await self._batchers[name].next_batch():
                for model, group in itertools.groupby(items, key=lambda item: item.model):  # a swap may lie within
                    part = list(group)
                    batch = await anyio.to_thread.run_sync(self._devices.timed, f"stacking for {name}", _stacked, model, part)
                    await send.send(Staged(part, batch))

    async def _score(self, name: str, receive: MemoryObjectReceiveStream[Staged], send: MemoryObjectSendStream[Scored]) -> None:
        size, seconds = self._telemetry.histogram("monitor_batch_size", name), self._telemetry.histogram("monitor_batch_seconds", name)
        with receive, send:
            async for staged in receive:
                items, model = staged.items, staged.items[0].model
                samples, prepared = [item.sample for item in items], [item.prepared for item in items]
                outcome = await self._devices.run(model.detector.device, score, model, samples, prepared, staged.batch, self._telemetry.report)
                size.observe(len(items))
                seconds.observe(outcome.seconds)
                if self._tracing is not None:
                    ids = [pending.delivery.message.id for item in items for pending in item.part.pendings]
                    self._tracing.step("score", ids, outcome.seconds, detector=name, model_version=model.version.id, batch_size=len(items))
                await send.send(Scored(items, outcome))

    async def _publish(self, name: str, receive: MemoryObjectReceiveStream[Scored]) -> None:
        takes = [self._outlets[sink] for sink, settings in self.settings.sinks.items() if settings.takes_from([name])]
        types: frozenset[str] = frozenset().union(*(outlet.types for outlet in takes))
        judged, anomalous = self._telemetry.counter("monitor_scored_total", name), self._telemetry.counter("monitor_anomalous_total", name)
        latency = self._telemetry.histogram("monitor_latency_seconds", name)
        with receive:
            async for scored in receive:
                events = await anyio.to_thread.run_sync(_events, scored, types)
                if self._tracing is None:
                    await self._letters(await self._send(takes, events))
                else:
                    with self._tracing.publishing(name, events) as traced:
                        await self._letters(await self._send(takes, traced))
                verdicts, now = scored.outcome.verdicts, time.time()
                judged.inc(len(verdicts))
                anomalous.inc(sum(verdict.anomalous for verdict in verdicts.values()))
                for verdict in verdicts.values():
                    latency.observe(max(0.0, now - verdict.sample.captured))  # a camera's clock may be ahead
                await self._bury([Bad(scored.items[index].part, "failed", error) for index, error in scored.outcome.failures.items()])
                await finish(scored.items[index].part for index in verdicts)

    async def _send(self, outlets: Sequence[Outlet], events: Sequence[Event]) -> list[DeadLetter]:
        """To all outlets at once; returns what they refuse for ever."""
        refused: list[DeadLetter] = []

        async def send(outlet: Outlet) -> None:
            wanted = [event for event in events if event.type in outlet.types]
            if wanted:
                refused.extend(await outlet.send(wanted))

        async with anyio.create_task_group() as sending:
            for outlet in outlets:
                sending.start_soon(send, outlet)
        return refused

    async def _bury(self, bad: Sequence[Bad]) -> None:
        """Dead letters, one per message whatever its detectors, confirmed; only then finished."""
        letters = []
        for one in bad:
            for pending in one.part.pendings:
                if not pending.buried:
                    pending.buried = True  # no other part settles before this one is finished
                    letters.append(DeadLetter(message=pending.delivery.message, reason=one.reason, error=one.error))
        await self._letters(letters)
        await finish(one.part for one in bad)

    async def _letters(self, letters: Sequence[DeadLetter]) -> None:
        """Returns when the dead letter has confirmed them all."""
        if letters and await self._dead_letter.send([burial(letter, self._site) for letter in letters]):
            raise RuntimeError("the dead letter refuses a message for ever, which would be lost")
        for letter in letters:
            self._telemetry.counter("monitor_dead_letters_total", letter.reason).inc()
            if self._tracing is not None:
                self._tracing.failed(letter)
            self._telemetry.report("dead_lettered", cause=letter.reason, message=letter.message.id, error=letter.error)


def _stacked(model: Model, items: Sequence[Item]) -> Batch | Exception:
    """In a worker thread. An error comes back: then each sample is tried alone (rule 9)."""
    try:
        return model.detector.stack([item.sample for item in items], [item.prepared for item in items])
    except (DeviceLost, MemoryError):
        raise
    except Exception as error:
        return error


def _events(scored: Scored, types: frozenset[str]) -> list[Event]:
    """In a worker thread: every event that some sink wants, in the order of the samples."""
    judge = scored.items[0].model.judge
    events = []
    for _, verdict in sorted(scored.outcome.verdicts.items()):
        if "monitor.score.v1" in types:
            events.append(judge.score(verdict))
        if "monitor.alert.v1" in types and verdict.anomalous:
            events.append(judge.alert(verdict))
    return events
