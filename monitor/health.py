"""Health events: what an operator must hear of although no sample is strange.

    report --> counted and logged; where HEALTH names it --> an event --> a bounded queue per sink --> Outlet

They never hold the flow: each sink that asks for them has a queue, and while its other side is away the oldest are dropped
and counted. So health events may be lost, by a crash too; the log and the metrics have what they say.
"""

import asyncio
import socket
import threading
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio

from monitor.events import HealthData
from monitor.publishing import Outlet
from monitor.telemetry import HAPPENINGS, HEALTH, Telemetry
from monitor.types import Event, rfc_3339

MOST_WAITING = 1000
"""Health events that wait for one sink at most."""
LAST_SECONDS = 1.0
"""What the end waits for the last of them at most."""
_MOST_OPEN = 10_000
_ENDED = frozenset().union(*HEALTH.values())
_SUBJECTS = ("stream", "detector", "sink", "source")
"""The facts that a health event may be about, the narrowest first."""
_WORDS = ("cause", "error")


class Health:
    """Of one pipeline: its sources, detectors and sinks report here, and its sinks are told."""

    def __init__(self, *, site: str, telemetry: Telemetry) -> None:
        self._site = site
        self._host = socket.gethostname()
        self._telemetry = telemetry
        self._queues: list[HealthQueue] = []
        self._open: OrderedDict[tuple[str, ...], float] = OrderedDict()  # what has begun and is not over -> since when
        self._lock = threading.Lock()

    def tell(self, outlet: Outlet, *, open_it: bool) -> None:
        """Before `running`. `open_it`: nothing else opens this outlet, since it takes nothing but health events."""
        self._queues.append(HealthQueue(outlet, self._telemetry, open_it=open_it))

    def hear(self, what: str, facts: Mapping[str, Any]) -> None:
        """What was reported: where it is a health event, queue it. Thread-safe, and never waits."""
        event = self._event(what, facts, time.time()) if what in HEALTH else None
        if event is not None:
            for queue in self._queues:
                queue.put(event)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Sends meanwhile. At the end what waits is sent too, if that takes no longer than LAST_SECONDS."""
        try:
            async with anyio.create_task_group() as sending:
                for queue in self._queues:
                    sending.start_soon(queue.run)
                yield
                for queue in self._queues:
                    queue.close()
                waiting = any(len(queue) for queue in self._queues)
                sending.cancel_scope.deadline = anyio.current_time() + (LAST_SECONDS if waiting else 0.0)
        finally:
            for queue in self._queues:
                queue.end()

    def _event(self, what: str, facts: Mapping[str, Any], now: float) -> Event | None:
        """None where something is over that never began: a model that is loaded, and none was missing."""
        about = tuple(str(facts.get(name, "")) for name in _SUBJECTS)
        since, ended = None, []
        with self._lock:
            for name in HEALTH[what]:
                begun = self._open.pop((name, *about), None)
                if begun is not None:
                    ended.append(name)
                    since = begun if since is None else min(since, begun)
            if what in _ENDED:
                since = self._open.setdefault((what, *about), now)
                if len(self._open) > _MOST_OPEN:
                    self._open.popitem(last=False)
        if HEALTH[what] and not ended:
            return None
        subject = next((str(facts[name]) for name in _SUBJECTS if facts.get(name)), self._site)
        more = {name: _plain(value) for name, value in facts.items() if name not in (*_SUBJECTS, *_WORDS) and value is not None}
        said = {name: str(facts[name]) for name in (*_SUBJECTS, *_WORDS) if facts.get(name)}
        data = HealthData(
            what=what,
            level=HAPPENINGS[what],  # type: ignore[arg-type]
            host=self._host,
            ends=tuple(ended),
            since=None if since is None else rfc_3339(since),
            facts=more,
            **said,
        )
        return Event(
            id=f"health:{self._site}:{subject}:{what}:{rfc_3339(now)}",
            type="monitor.health.v1",
            source=f"/{self._site}",
            key=subject,
            time=now,
            data=data.model_dump(mode="json", exclude_none=True),
        )


class HealthQueue:
    """What waits for one sink, oldest first; the oldest makes room. `put` from any thread."""

    def __init__(self, outlet: Outlet, telemetry: Telemetry, *, open_it: bool) -> None:
        self._outlet = outlet
        self._report = telemetry.report
        self._count_dropped = telemetry.counter("monitor_health_events_dropped_total").inc
        self._open_it = open_it
        self._events: deque[Event] = deque()
        self._sending = 0
        self._said = False  # that events are lost, since the queue was empty last
        self._closed = False
        self._ended = False
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._events) + self._sending

    def put(self, event: Event) -> None:
        with self._lock:
            cause = "ended" if self._ended else "full" if len(self._events) >= MOST_WAITING else None
            if cause == "full":
                self._events.popleft()
            if cause != "ended":
                self._events.append(event)
            said, self._said = self._said, self._said or cause is not None
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._wake.set)
        if cause is not None:
            self._drop(cause, quiet=said)

    def close(self) -> None:
        """`run` ends when nothing waits. From the event loop's thread."""
        self._closed = True
        self._wake.set()

    def end(self) -> None:
        """When `run` has ended: what still waits is lost, and so is what comes later."""
        with self._lock:
            lost = len(self)
            self._ended = True
            self._events.clear()
            self._said |= lost > 0
        for number in range(lost):
            self._drop("ended", quiet=number > 0, count=lost)

    async def run(self) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            if self._open_it:
                await self._outlet.open()
            await self._outlet.opened.wait()
            try:
                async with anyio.create_task_group() as watching:
                    if self._open_it:
                        watching.start_soon(self._outlet.watch)
                    while not self._closed or self._events:
                        self._wake.clear()
                        if self._events:
                            await self._send(self._take())
                        elif not self._closed:
                            await self._wake.wait()
                    watching.cancel_scope.cancel()
            finally:
                if self._open_it:
                    await self._outlet.sink.__aexit__(None, None, None)
        finally:
            with self._lock:
                self._loop = None

    def _take(self) -> Event:
        with self._lock:
            self._sending = 1
            return self._events.popleft()

    async def _send(self, event: Event) -> None:
        """One at a time: they are few, and so the oldest that waits can always make room."""
        error = await self._outlet.offer(event)
        if error is not None:
            self._drop("rejected", id=event.id, error=error)
        self._sending = 0
        if not self._events:
            self._said = False

    def _drop(self, cause: str, *, quiet: bool = False, **facts: Any) -> None:
        self._count_dropped()
        self._report("health_event_dropped", quiet=quiet, sink=self._outlet.name, cause=cause, **facts)


def _plain(value: Any) -> Any:
    """As JSON can say it."""
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(one) for one in value]
    return value if isinstance(value, str | bool | int | float) else str(value)
