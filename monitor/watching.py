"""How the daemon stands: for /live and /ready, for Prometheus, and for the service manager."""

import time
from collections.abc import Iterator, Sequence
from typing import Literal

import anyio

from monitor.notify import Notifier
from monitor.pipeline import Pipeline
from monitor.serving import Devices
from monitor.telemetry import Reading, Telemetry

_EVERY = 1.0
"""Seconds between looks, where the watchdog does not want them more often."""


class Watch:
    """Asks the pipelines and the devices; from the event loop's thread."""

    def __init__(self, pipelines: Sequence[Pipeline], devices: Devices, *, stall: float, telemetry: Telemetry, notifier: Notifier) -> None:
        self.phase: Literal["starting", "serving", "draining"] = "starting"
        self._pipelines = pipelines
        self._devices = devices
        self._stall = stall
        self._telemetry = telemetry
        self._notifier = notifier
        telemetry.read = self._readings

    def stalls(self) -> list[str]:
        """Why the daemon does not live; empty while it does. That the event loop turns is shown by the answer itself."""
        running = [(time.monotonic() - begun, what) for what, begun in self._devices.running.copy().items()]
        return [f"{what}: one batch runs for {seconds:.0f} s (stall = {self._stall:g})" for seconds, what in sorted(running) if seconds > self._stall]

    def troubles(self) -> list[str]:
        """Why the daemon is not ready; empty when it is."""
        if self.phase == "starting":
            return ["starting: models are being loaded"]
        phase = ["draining"] if self.phase == "draining" else []
        parts = dict.fromkeys(trouble for pipeline in self._pipelines for trouble in pipeline.troubles())  # parts may share a sink
        return [*phase, *parts]

    async def run(self) -> None:
        """Look again and again: say once when a batch stalls; tell the service manager that we live, and how."""
        every = _EVERY if self._notifier.watchdog is None else min(_EVERY, self._notifier.watchdog / 2)
        stalled, told = False, ""
        while True:
            self._notifier.again()
            stalls = self.stalls()
            if stalls and not stalled:
                self._telemetry.report("stalled", error="; ".join(stalls))
            stalled = bool(stalls)
            if not stalled:
                self._notifier.alive()
            status = "; ".join([*stalls, *self.troubles()]) or "ready"
            if status != told:
                told = status
                self._notifier.status(status)
            await anyio.sleep(every)

    def _readings(self) -> Iterator[Reading]:
        yield "monitor_ready", (), float(not self.troubles())
        yield "monitor_running_batch_seconds", (), max((time.monotonic() - begun for begun in self._devices.running.copy().values()), default=0.0)
        stands: dict[tuple[str, tuple[str, ...]], float] = {}
        for pipeline in self._pipelines:
            for name, labels, value in pipeline.readings():  # of a sink that parts share, the worst
                stands[name, labels] = min(value, stands.get((name, labels), value))
        for (name, labels), value in stands.items():
            yield name, labels, value
