"""The books of the demo: what was sent, what the daemon said of it, and how both fit.

simulated sensors -- Sender --> broker (a child) --> monitor run (a child) --> broker -- Receiver --> the books
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import anyio
import cv2
import numpy as np
from numpy.typing import NDArray

from monitor.demo.children import Child, until_ready
from monitor.errors import MonitorError
from monitor.ports import Progress, Receiver, Sender
from monitor.registry import resolve
from monitor.settings import Settings
from monitor.types import FloatArray

_PATIENCE = 120.0
"""Seconds without an event, while something is under way, after which something is wrong."""


@dataclass(eq=False, kw_only=True)
class Outcome(ABC):
    """One sample that was sent, and what the daemon said of it."""

    detector: str
    name: str
    fault: str | None
    severity: float
    sent: float = 0.0
    """When the last of it was."""
    score: dict[str, Any] | None = None
    alert: dict[str, Any] | None = None
    map: bytes | None = field(default=None, repr=False)
    seconds: float | None = None
    """From the sensor to the alert."""

    @property
    def finished(self) -> bool:
        """Scored, and alerted where the score says so."""
        return self.score is not None and (self.alert is not None or self.score["score"] <= self.score["threshold"])

    @property
    def located(self) -> bool:
        """Whether the strongest region of the alert touches the planted fault."""
        return self.alert is not None and self.fault is not None and self.touched(self.alert["regions"][0])

    @property
    def planted(self) -> str:
        """In words."""
        return f"{self.fault}, severity {self.severity:.2f}" if self.fault is not None else "nothing, a false alarm"

    @abstractmethod
    def touched(self, region: Mapping[str, float]) -> bool:
        """Whether a region of the alert touches the planted fault."""

    @abstractmethod
    def where(self, region: Mapping[str, float]) -> str:
        """A region of the alert in words."""

    @abstractmethod
    def picture(self, map_threshold: float) -> bytes:
        """A PNG of what was sent, what was planted and, if it was alerted, what the map shows."""


class Feed(Protocol):
    """Simulated sensors that one detector watches."""

    detector: str
    source: str
    samples: str
    """What it sends, in words: "parts"."""
    how: str
    """How it sends them, in words."""
    good: int
    """How many good ones there are to train on."""
    expected: int
    """How many samples it sends."""
    faulty: int
    """How many of them have a fault."""

    def write_good(self, folder: Path, progress: Progress) -> None:
        """Files to train on."""
        ...

    async def publish(self, sender: Sender, outcomes: dict[str, Outcome]) -> None:
        """Sends all, in real time. Each sample is among the outcomes, by its `key`, before the daemon can speak of it."""
        ...


class Books:
    """Keeps all outcomes. `told` is called with each that is alerted."""

    def __init__(self, feeds: Sequence[Feed], *, told: Callable[[Outcome], None]) -> None:
        self._feeds = feeds
        self._told = told
        self.outcomes: dict[str, Outcome] = {}

    def of(self, detector: str) -> list[Outcome]:
        return [outcome for outcome in self.outcomes.values() if outcome.detector == detector]

    async def stream(self, settings: Settings, sink: str, daemon: Child) -> None:
        """Until each sample has its score. Raises MonitorError where the daemon ends, or says nothing any more."""
        receives = settings.sinks[sink].options
        assert settings.api is not None
        async with AsyncExitStack() as stack:
            receiver = await stack.enter_async_context(resolve(receives.receiver)(receives))
            sources = [settings.sources[feed.source] for feed in self._feeds]
            senders = [await stack.enter_async_context(resolve(source.sender)(source)) for source in sources]
            tasks = await stack.enter_async_context(anyio.create_task_group())
            tasks.start_soon(_watch, daemon)
            with anyio.move_on_after(_PATIENCE) as patience:
                await until_ready(settings.api.port)
                for feed, sender in zip(self._feeds, senders, strict=True):
                    tasks.start_soon(feed.publish, sender, self.outcomes)
                await self._receive(receiver, patience)
            if patience.cancelled_caught:
                missing = [outcome for outcome in self.outcomes.values() if not outcome.finished]
                raise MonitorError(f"for {_PATIENCE:g} s nothing has been heard of {len(missing)} of {len(self.outcomes)} samples that were sent")
            tasks.cancel_scope.cancel()

    async def _receive(self, receiver: Receiver, patience: anyio.CancelScope) -> None:
        expected = sum(feed.expected for feed in self._feeds)
        async for event in receiver:
            outcome = self.outcomes.get(key(event))
            if outcome is None:
                continue
            patience.deadline = anyio.current_time() + _PATIENCE
            if event["type"] == "monitor.score.v1":
                outcome.score = outcome.score or event["data"]
            elif event["type"] == "monitor.alert.v1" and outcome.alert is None:
                outcome.alert, outcome.map, outcome.seconds = event["data"], await receiver.map(event), time.time() - outcome.sent
                self._told(outcome)
            if len(self.outcomes) == expected and all(outcome.finished for outcome in self.outcomes.values()):
                return


def key(event: Mapping[str, Any]) -> str:
    """Of the sample that an event is about: the id that the sensor gave the message, of a segment its recording and number."""
    origin = event.get("data", {}).get("sample", {})
    return f"{origin['recording']}/{origin['segment']}" if "recording" in origin else str(origin.get("position"))


async def _watch(daemon: Child) -> None:
    while True:
        daemon.check()
        await anyio.sleep(0.5)


def png(pixels: NDArray[np.uint8]) -> bytes:
    """(H, W, 3) RGB."""
    return cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes()


def map_values(image: bytes, facts: Mapping[str, Any]) -> FloatArray:
    """The map (H, W) of an alert, from its PNG and what the alert says of it."""
    grey = np.asarray(cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_GRAYSCALE), np.float32)
    black, white = (np.float32(facts[end]) for end in ("black", "white"))
    return np.asarray(black + grey / 255 * (white - black), np.float32)
