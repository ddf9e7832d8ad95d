"""One OpenTelemetry trace per message: its context comes in the headers and goes on in the events (W3C Trace Context).

    receive (from when it arrived until it is settled)
      decode · score and publish of each detector

The only module that imports OpenTelemetry, which is optional; it is loaded where monitor.toml has a table [tracing].
"""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from threading import Lock
from typing import Self

import anyio
import anyio.to_thread
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from monitor.ports import Delivery, Report
from monitor.settings import TracingSettings
from monitor.types import DeadLetter, Event, Message

_MOST = 8192
"""Finished spans that wait for the collector; beyond that they are dropped and counted."""
_PATIENCE = 5.0
"""Seconds for one request to the collector; and at the end for what still waits."""
_FIELDS = ("traceparent", "tracestate")
_W3C = TraceContextTextMapPropagator()


class Tracing:
    """Follows messages by their id. Thread-safe."""

    def __init__(self, settings: TracingSettings, *, site: str, report: Report) -> None:
        self._settings = settings
        self._site = site
        self._report = report
        self._spans: dict[str, Span] = {}

    async def __aenter__(self) -> Self:
        quiet = logging.getLogger("opentelemetry")  # what it says of its collector is said by `traces_lost`
        quiet.addHandler(logging.NullHandler())
        quiet.propagate = False
        self._collector = _Collector(OTLPSpanExporter(endpoint=self._settings.endpoint, timeout=_PATIENCE), self._report)
        resource = Resource.create({"service.name": "monitor", "service.namespace": self._site, "service.version": version("plant-monitor")})
        sampler = ParentBased(TraceIdRatioBased(self._settings.sample))
        self._provider = TracerProvider(resource=resource, sampler=sampler, shutdown_on_exit=False)
        self._provider.add_span_processor(_Bounded(self._collector))
        self._tracer = self._provider.get_tracer("monitor")
        return self

    async def __aexit__(self, *exc: object) -> None:
        with anyio.move_on_after(_PATIENCE, shield=True) as waiting:
            await anyio.to_thread.run_sync(self._provider.shutdown, abandon_on_cancel=True)
        if waiting.cancelled_caught:
            self._collector.shutdown()  # ends the tries

    def received(self, delivery: Delivery) -> Callable[[], None]:
        """Begin the trace of a message; returns what settles the delivery and ends it."""
        message = delivery.message
        span = self._tracer.start_span(
            "receive",
            context=_W3C.extract(_carrier(message)),
            kind=SpanKind.CONSUMER,
            start_time=_ns(message.received),
            attributes={
                "messaging.destination.name": message.topic,
                "messaging.message.id": message.id,
                "messaging.message.body.size": len(message.payload),
                "monitor.source": message.source,
            },
        )
        self._spans[message.id] = span
        return partial(self._settle, delivery, span)

    def _settle(self, delivery: Delivery, span: Span) -> None:
        delivery.settle()
        span.end()
        if self._spans.get(delivery.message.id) is span:  # not while it is out for a second time
            del self._spans[delivery.message.id]

    def step(self, name: str, message_ids: Iterable[str], seconds: float, **facts: str | float) -> None:
        """A step of some messages that ends now and took so long."""
        end = time.time_ns()
        for message_id in message_ids:
            if (context := self._within(message_id)) is not None:
                span = self._tracer.start_span(name, context=context, start_time=end - int(1e9 * seconds), attributes=_named(facts))
                span.end(end)

    @contextmanager
    def publishing(self, detector: str, events: Sequence[Event]) -> Iterator[list[Event]]:
        """Around their sending: gives the events with the `traceparent` of the span that each is sent in."""
        spans: dict[str, Span] = {}
        for event in events:
            message_id = _message_id(event)
            if message_id not in spans and (context := self._within(message_id)) is not None:
                facts = _named({"detector": detector})
                spans[message_id] = self._tracer.start_span("publish", context=context, kind=SpanKind.PRODUCER, attributes=facts)
        try:
            yield [_stamped(event, spans.get(_message_id(event))) for event in events]
        finally:
            for span in spans.values():
                span.end()

    def failed(self, letter: DeadLetter) -> None:
        """A message went to the dead letter."""
        if (span := self._spans.get(letter.message.id)) is not None:
            span.set_attribute("error.type", letter.reason)
            span.set_status(Status(StatusCode.ERROR, letter.error))

    def _within(self, message_id: str) -> Context | None:
        span = self._spans.get(message_id)
        return None if span is None else set_span_in_context(span)


class _Collector(SpanExporter):
    """Sends to the collector, and says when it does not take them."""

    def __init__(self, exporter: OTLPSpanExporter, report: Report) -> None:
        self.waiting = 0
        self.lock = Lock()
        self._exporter = exporter
        self._report = report
        self._lost = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        with self.lock:
            self.waiting -= len(spans)
        if result is SpanExportResult.SUCCESS:
            self._lost = False
        else:
            self.lost("collector", len(spans))
        return result

    def lost(self, cause: str, spans: int) -> None:
        self._report("traces_lost", quiet=self._lost, cause=cause, spans=spans)
        self._lost = True

    def shutdown(self) -> None:
        self._exporter.shutdown()  # type: ignore[no-untyped-call]


class _Bounded(SpanProcessor):
    """Batches finished spans; drops and counts what is too many for the collector."""

    def __init__(self, collector: _Collector) -> None:
        self._collector = collector
        self._batches = BatchSpanProcessor(collector, max_queue_size=_MOST)

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is None or not span.context.trace_flags.sampled:
            return
        with self._collector.lock:
            full = self._collector.waiting >= _MOST
            self._collector.waiting += not full
        if full:
            self._collector.lost("queue_full", 1)
        else:
            self._batches.on_end(span)

    def shutdown(self) -> None:
        self._batches.shutdown()  # type: ignore[no-untyped-call]


def _carrier(message: Message) -> dict[str, str]:
    """The last header of each name, any case; also as an attribute of a CloudEvent in binary mode."""
    headers = {name.lower().removeprefix("ce_"): value.decode("ascii", "replace") for name, value in message.headers}
    return {field: headers[field] for field in _FIELDS if field in headers}


def _message_id(event: Event) -> str:
    """Of the message that was scored; of a segment's, the first of its chunks."""
    place = event.data["sample"]
    return f"{place['source']}/{place['topic']}/{place['position']}"


def _stamped(event: Event, span: Span | None) -> Event:
    if span is None:
        return event
    carrier: dict[str, str] = {}
    _W3C.inject(carrier, context=set_span_in_context(span))
    return dataclasses.replace(event, traceparent=carrier["traceparent"])


def _named(facts: Mapping[str, str | float]) -> dict[str, str | float]:
    return {f"monitor.{name}": value for name, value in facts.items()}


def _ns(seconds: float) -> int:
    return int(1e9 * seconds)
