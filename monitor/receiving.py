"""Messages from sources: counted, timed until they are settled, and known to be away while the other side is."""

import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from monitor.ports import Context, Delivery, InOrder, Lagging, Listening, Positions, Source, SourceOptions
from monitor.registry import resolve
from monitor.telemetry import Reading, Telemetry

if TYPE_CHECKING:
    from monitor.tracing import Tracing


class Inlet:
    """A source that is watched; a Source itself. It neither holds nor changes what passes."""

    def __init__(self, name: str, options: SourceOptions, *, positions: Positions, telemetry: Telemetry, tracing: "Tracing | None") -> None:
        self.name = name
        self.away: str | None = "not opened yet: its sinks come first"
        """Why the other side is not there, in words; None while it is."""
        self._telemetry = telemetry
        self._tracing = tracing
        self._messages = telemetry.counter("monitor_messages_total", name)
        self._since: dict[int, float] = {}  # unsettled deliveries by number, oldest first: when they were handed out (monotonic)
        self._source: Source = resolve(options.implementation)(options, Context(name=name, report=self._report, positions=positions))
        self._in_order = self._source if isinstance(self._source, InOrder) else None  # once: it is asked with every message

    async def __aenter__(self) -> Self:
        self.away = "connecting"  # until the source says that it is there
        await self._source.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._source.__aexit__(*exc)

    async def stop(self) -> None:
        await self._source.stop()

    async def __aiter__(self) -> AsyncIterator[Delivery]:
        number = 0
        async for delivery in self._source:
            number += 1
            self._messages.inc()
            self._since[number] = time.monotonic()
            settle = delivery.settle if self._tracing is None else self._tracing.received(delivery)
            yield Delivery(delivery.message, partial(self._settle, number, settle), delivery.moved)

    def _settle(self, number: int, settle: Any) -> None:
        settle()
        del self._since[number]

    @property
    def listening(self) -> bool:
        """Whether what is sent now can reach us."""
        return self.away is None and not (isinstance(self._source, Listening) and not self._source.listening())

    @property
    def taken(self) -> int:
        """Places of max_in_flight that are taken, by what is unsettled or waits behind that for its commitment."""
        return max(len(self._since), self._in_order.taken() if self._in_order is not None else 0)

    def _report(self, what: str, /, **facts: Any) -> None:
        if what == "source_disconnected":
            self.away = f"{facts['error']} ({facts['cause']})"
        elif what == "source_connected":
            self.away = None
        self._telemetry.report(what, **facts)

    def readings(self) -> Iterator[Reading]:
        """How it stands, for Prometheus."""
        labels = (self.name,)
        oldest = next(iter(self._since.values()), None)
        yield "monitor_source_connected", labels, float(self.away is None)
        yield "monitor_unsettled", labels, len(self._since)
        yield "monitor_oldest_unsettled_seconds", labels, 0.0 if oldest is None else time.monotonic() - oldest
        if isinstance(self._source, Lagging) and (lag := self._source.lag()) is not None:
            yield "monitor_source_lag", labels, lag
