"""Settings -> running pipelines; signals; drain; grace.

SIGTERM or SIGINT drains within `grace` and exits 0; a second one, or the end of the grace, stops hard: exit 3 when messages
are left unsettled, which come again. SIGHUP reloads monitor.toml and looks in the store at once.
"""

import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import structlog
from anyio.abc import TaskGroup

from monitor.config import load_settings
from monitor.errors import ConfigError, DeviceLost, ModelBroken, leaves
from monitor.notify import Notifier
from monitor.pipeline import Pipeline
from monitor.preparation import WORKERS
from monitor.probation import Probation
from monitor.registry import resolve
from monitor.serving import Devices
from monitor.settings import Settings
from monitor.state import State
from monitor.store import ModelStore
from monitor.telemetry import Telemetry
from monitor.topology import PipelineSettings, pipelines
from monitor.watching import Watch

if TYPE_CHECKING:
    from monitor.tracing import Tracing

DONE, FAILED, STOPPED_HARD = 0, 1, 3
ENDING = (signal.SIGTERM, signal.SIGINT)
_FIXED = ("daemon", "store", "api", "tracing")
"""The tables that a reload leaves as they are."""
_ENDING = 15.0
"""Seconds that closing sources, sinks and devices may take after the grace, as the service manager is told."""


class Daemon:
    """One run of the service. Raises ConfigError when it must not start."""

    def __init__(self, path: Path, environ: Mapping[str, str], telemetry: Telemetry) -> None:
        self._path = path
        self._environ = environ
        self._telemetry = telemetry
        self._running: list[Pipeline] = []
        self._rebuilding = anyio.Lock()
        self._draining = False
        self._hard = False

    async def run(self) -> int:
        """Until a signal ends it; the exit code."""
        with anyio.open_signal_receiver(*ENDING, signal.SIGHUP) as signals:
            code = await self._serve(signals)
            signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # all is told and done: one more may not change how the process ends
        return code

    async def _serve(self, signals: AsyncIterator[signal.Signals]) -> int:
        self._settings = load_settings(self._path, self._environ)
        self._notifier = Notifier(self._environ, self._telemetry.report)
        self._devices = Devices()
        self._watch = Watch(self._running, self._devices, stall=self._settings.daemon.stall, telemetry=self._telemetry, notifier=self._notifier)
        async with AsyncExitStack() as stack:
            address = await self._be_watched(stack)
            self._state = stack.enter_context(State(self._settings.daemon.state))
            stack.enter_context(self._devices)
            self._probation = Probation(self._state, self._telemetry.report)
            self._store = ModelStore(self._settings.store.path)
            self._workers = anyio.CapacityLimiter(WORKERS)
            with _blame(self._state, self._telemetry) as outcome:
                async with anyio.create_task_group() as self._tasks:
                    self._tasks.start_soon(self._watch.run)
                    await self._start(self._tasks, pipelines(self._settings))
                    self._say_ready(address)
                    async for signum in signals:
                        if signum == signal.SIGHUP and not self._draining:
                            self._reload()
                        elif signum != signal.SIGHUP:
                            self._end()
            unsettled = sum(pipeline.unsettled for pipeline in self._running)
            self._telemetry.report("stopped", unsettled=unsettled, hard=self._hard or outcome.failed)
        if outcome.failed:
            return FAILED
        return STOPPED_HARD if self._hard and unsettled else DONE

    async def _be_watched(self, stack: AsyncExitStack) -> str | None:
        """Serve [api] and send traces as they are configured; the URL of the former. Before anything else, and to the very end."""
        settings = self._settings
        self._tracing: Tracing | None = None
        if settings.tracing is not None:  # imported only where it is wanted, as the API below
            tracing = resolve("monitor.tracing:Tracing")(settings.tracing, site=settings.daemon.site, report=self._telemetry.report)
            self._tracing = await stack.enter_async_context(tracing)
        if settings.api is None:
            return None
        address: str = await stack.enter_async_context(resolve("monitor.api.server:serving")(settings.api, self._watch, self._telemetry))
        return address

    def _say_ready(self, api: str | None) -> None:
        self._watch.phase = "serving"
        self._notifier.ready()
        holding = [name for pipeline in self._running for name in pipeline.holding]
        self._telemetry.report("ready", config=str(self._path), detectors=list(self._settings.detectors), holding=holding, api=api)

    async def _start(self, tasks: TaskGroup, settings: list[PipelineSettings]) -> None:
        daemon, store = self._settings.daemon, self._settings.store
        for part in settings:
            pipeline = Pipeline(
                part,
                site=daemon.site,
                poll=store.poll,
                store=self._store,
                state=self._state,
                probation=self._probation,
                devices=self._devices,
                workers=self._workers,
                telemetry=self._telemetry,
                tracing=self._tracing,
            )
            self._running.append(pipeline)
            await tasks.start(pipeline.run)

    def _end(self) -> None:
        """The first signal drains, the second stops."""
        if self._draining:
            self._hard = True
            self._tasks.cancel_scope.cancel()
        else:
            self._draining = True
            self._watch.phase = "draining"
            self._notifier.stopping(self._settings.daemon.grace + _ENDING)
            self._tasks.start_soon(self._drain)

    async def _drain(self) -> None:
        self._telemetry.report("draining", grace=self._settings.daemon.grace)
        with anyio.move_on_after(self._settings.daemon.grace) as grace:
            async with self._rebuilding:
                await self._finish(list(self._running))
        self._hard |= grace.cancelled_caught
        self._tasks.cancel_scope.cancel()  # ends the wait for signals

    async def _finish(self, ending: list[Pipeline]) -> None:
        async with anyio.create_task_group() as stopping:
            for pipeline in ending:
                stopping.start_soon(pipeline.stop)
        for pipeline in ending:
            await pipeline.ended.wait()

    def _reload(self) -> None:
        """A bad file changes nothing."""
        self._notifier.reloading()
        try:
            settings = load_settings(self._path, self._environ)
        except ConfigError as error:
            self._telemetry.report("reload_refused", mistakes=list(error.mistakes), serving="the configuration from before")
            self._notifier.ready()
        else:
            self._tasks.start_soon(self._rebuild, settings)

    async def _rebuild(self, settings: Settings) -> None:
        """Drain and start anew what changed; the rest looks in the store at once."""
        async with self._rebuilding:
            for name in _FIXED:
                if getattr(settings, name) != getattr(self._settings, name):
                    self._telemetry.report("restart_needed", table=name)
            self._settings = settings.model_copy(update={name: getattr(self._settings, name) for name in _FIXED})
            wanted = pipelines(self._settings)
            changed = [pipeline for pipeline in self._running if pipeline.settings not in wanted]
            kept = [pipeline.settings for pipeline in self._running if pipeline.settings in wanted]
            new = [part for part in wanted if part not in kept]
            for pipeline in self._running:
                pipeline.look()
            with anyio.move_on_after(self._settings.daemon.grace):
                await self._finish(changed)
            for pipeline in changed:
                await pipeline.cancel()
                self._running.remove(pipeline)
            if self._draining:
                return
            await self._start(self._tasks, new)
            self._notifier.ready()
            self._telemetry.report("reloaded", ended=[pipeline.settings.name for pipeline in changed], started=[part.name for part in new])


class _Outcome:
    failed = False


@contextmanager
def _blame(state: State, telemetry: Telemetry) -> Iterator[_Outcome]:
    """A broken model or a lost device is no message's fault: the next run need not process singly. Anything else may be."""
    outcome = _Outcome()
    try:
        yield outcome
    except BaseExceptionGroup as group:
        errors = list(leaves(group))
        mistakes = [mistake for error in errors if isinstance(error, ConfigError) for mistake in error.mistakes]
        faults = {ModelBroken: "model_broken", DeviceLost: "device_lost"}
        blamed = [error for error in errors if type(error) in faults]
        if mistakes or blamed:
            state.end_clean()
        if mistakes:
            raise ConfigError(*mistakes) from group
        for error in blamed:
            telemetry.report(faults[type(error)], error=str(error))  # type: ignore[index]
        if not blamed:
            structlog.get_logger("monitor").error("failed", exc_info=group)
        outcome.failed = True
    else:
        state.end_clean()
