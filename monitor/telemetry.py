"""Every log event and metric, named in this one file. Normal operation is silent at info.

A happening is counted by name (and by its `cause`, where it has one) and logged with its facts. Counters and histograms are
fed where it happens; gauges are asked for when somebody looks. Names that come from outside (streams) never become labels.
"""

import copy
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal, get_args

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from monitor.errors import BadReason

HAPPENINGS: dict[str, str] = {
    # name: level. What each means stands beside it.
    "source_disconnected": "warning",  # a source's broker is away or refuses us; cause says which
    "source_connected": "info",  # a source has its other side (logged after a loss only)
    "topic_missing": "warning",  # a source's topic does not exist (yet)
    "offsets_gone": "warning",  # retention deleted messages before they were read; `missing` says how many
    "record_corrupt": "error",  # a record cannot be read from its log, by its cause; nothing is skipped: its partition holds there
    "session_lost": "warning",  # an MQTT broker has forgotten our session, and with it what it had queued for us while we were away
    "message_skipped": "warning",  # an MQTT message is not for us: it was retained, or is of an older subscription; said once per topic
    "message_without_id": "warning",  # MQTT messages without a user property id: identical payloads share one; said once per topic
    "message_at_most_once": "warning",  # was published with QoS 0, where only QoS 1 comes again after a loss; said once per topic
    "message_dropped": "warning",  # a message with QoS 0 came while max_in_flight were out; counted only
    "sink_disconnected": "warning",  # a sink's other side is away; its sources hold, but for one that takes health events only
    "sink_connected": "info",  # it is back (logged after a loss only)
    "map_dropped": "warning",  # an alert was too large with its map and went without
    "event_unheard": "warning",  # a broker confirmed an event that nobody has subscribed to, and kept nothing; counted each, logged once per topic
    "event_rejected": "error",  # a sink will never take this event; it went to the dead letter
    "dead_lettered": "warning",  # a message went to the dead letter; cause says why
    "payload_spilled": "warning",  # a dead letter's payload was beyond its max_bytes and lies in the spill folder
    "file_unreadable": "warning",  # a file of a folder source, or the headers beside it, could not be read; said once per file
    "commit_failed": "warning",  # settled positions could not be committed; they come again
    "ready": "info",  # configuration is read and the models that exist are loaded; sources of `holding` detectors hold
    "draining": "info",  # SIGTERM: sources stop, what is out is finished
    "stopped": "info",  # the end; `unsettled` messages come again
    "reloaded": "info",  # SIGHUP took effect; names what was rebuilt
    "reload_refused": "error",  # SIGHUP found mistakes; the old configuration goes on
    "restart_needed": "warning",  # a change in daemon, store, api or tracing takes effect at the next start only
    "processing_singly": "warning",  # the last run ended unclean: the first deliveries are processed one at a time
    "model_loaded": "info",  # a version was loaded and serves from the next batch on
    "model_missing": "warning",  # the store has no model of a detector; without one in memory its sources hold
    "model_refused": "error",  # a promoted version cannot serve; the one before goes on
    "model_broken": "critical",  # a model no longer repeats its reference scores; the daemon stops
    "device_lost": "critical",  # the device is gone; the daemon stops
    "batch_repeated": "warning",  # a batch raised or scored as not finite and was repeated one sample at a time
    "stream_unwatched": "warning",  # no detector takes this stream; counted per sample, logged once per stream
    "stream_silent": "warning",  # nothing came from a stream for over `expect_every`; without `stream`: from its source ever, or from `count` more
    "stream_speaks": "info",  # something came again
    "stream_moved": "info",  # a rebalance took partitions: a silent stream may be another member's now, and is silent here no more
    "stream_forgotten": "info",  # a reload or the end took its source, or others its place: what was told of it is over until it speaks again
    "signal_blank": "warning",  # a stream sends pictures of one colour, or silence; its samples are scored all the same
    "signal_clipped": "warning",  # a stream sends pictures or sound at the end of the scale: overexposed, overdriven; scored all the same
    "signal_frozen": "warning",  # a stream sends the same content again and again; scored all the same
    "signal_restored": "info",  # for a minute none of its samples had such a flaw
    "segment_partial": "warning",  # a segment was scored on its longest stretch: its recording ended within it (counted only), chunks are missing
    # (gap), or it was closed to make room (max_in_flight: named is the one that would do; counted each, logged when it grows)
    "segment_unscored": "warning",  # the same, but too short for its detector
    "chunk_repeated": "info",  # all segments of a chunk are finished: it came again, too late, or its recording's name was used before; counted only
    "sample_too_old": "warning",  # samples older than `max_age` were settled, not scored; `count` since this was last said; counted per sample
    "samples_in_time": "info",  # for a minute none was too old
    "health_event_dropped": "warning",  # a health event was lost to one sink: full, it never takes it, or the end came; once per outage
    "partitions_revoked": "info",  # a rebalance took partitions away
    "partitions_lost": "warning",  # partitions went to another member before we could commit
    "unsettled_at_revoke": "warning",  # `drain` ended before all was settled; those come again
    "stalled": "critical",  # a batch runs longer than `stall`: /live says so, and the watchdog of the service manager is told no more
    "notify_failed": "warning",  # the service manager's socket does not take what it is told; said once
    "traces_lost": "warning",  # the collector of traces is away or refuses them; they are dropped; said once per outage
    "precision_refused": "warning",  # a fast precision does not repeat the reference scores of a model, which serves in fp32
}

HEALTH: dict[str, tuple[str, ...]] = {
    # happenings that are health events too, for sinks with events = ["health"], each with those that it ends
    "source_disconnected": (),
    "source_connected": ("source_disconnected",),
    "topic_missing": (),
    "offsets_gone": (),
    "record_corrupt": (),
    "session_lost": (),
    "sink_disconnected": (),
    "sink_connected": ("sink_disconnected",),
    "model_missing": (),
    "model_refused": (),
    "model_loaded": ("model_missing", "model_refused"),  # else it is no health event
    "stream_silent": (),
    "stream_speaks": ("stream_silent",),
    "stream_moved": ("stream_silent",),
    "stream_forgotten": ("stream_silent", "signal_blank", "signal_clipped", "signal_frozen", "sample_too_old"),
    "signal_blank": (),
    "signal_clipped": (),
    "signal_frozen": (),
    "signal_restored": ("signal_blank", "signal_clipped", "signal_frozen"),
    "sample_too_old": (),
    "samples_in_time": ("sample_too_old",),
}


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric as Prometheus sees it; in base units (seconds, messages)."""

    kind: Literal["counter", "histogram", "gauge"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


METRICS: dict[str, Metric] = {
    # what came and went
    "monitor_messages_total": Metric("counter", "Messages that a source handed out.", ("source",)),
    "monitor_too_old_total": Metric("counter", "Samples older than max_age, which were not scored.", ("source",)),
    "monitor_scored_total": Metric("counter", "Samples that a detector scored.", ("detector",)),
    "monitor_anomalous_total": Metric("counter", "Samples whose score was above the threshold.", ("detector",)),
    "monitor_events_sent_total": Metric("counter", "Events that a sink's other side has confirmed, by type.", ("sink", "type")),
    "monitor_health_events_dropped_total": Metric(
        "counter", "Health events lost to a sink: its queue was full, it never takes them, or the end came first."
    ),
    "monitor_dead_letters_total": Metric("counter", "Messages and events that the dead letter has confirmed, by reason.", ("reason",)),
    "monitor_happenings_total": Metric(
        "counter", "How often each log event happened, by its name and cause; also where the log says it only once.", ("happening", "cause")
    ),
    # how long it took
    "monitor_batch_size": Metric("histogram", "Samples per scored batch.", ("detector",), (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)),
    "monitor_batch_seconds": Metric(
        "histogram",
        "Time to score and judge one batch on its device.",
        ("detector",),
        (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
    ),
    "monitor_latency_seconds": Metric(
        "histogram",
        "From when a sample was captured until its events were confirmed.",
        ("detector",),
        (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600),
    ),
    # how things stand
    "monitor_ready": Metric("gauge", "1 when /ready says yes: every source and sink connected, every detector with a model, not draining."),
    "monitor_source_connected": Metric("gauge", "1 while a source has its other side.", ("source",)),
    "monitor_sink_connected": Metric(
        "gauge", "1 while a sink (or the dead_letter) has its other side; while 0, its sources hold what they have for it.", ("sink",)
    ),
    "monitor_health_sink_connected": Metric("gauge", "The same of a sink that takes health events only; it holds nothing.", ("sink",)),
    "monitor_source_lag": Metric("gauge", "Messages that a source's broker holds for us and we have not settled, where it tells.", ("source",)),
    "monitor_unsettled": Metric("gauge", "Messages that a source handed out and that are not settled.", ("source",)),
    "monitor_oldest_unsettled_seconds": Metric("gauge", "How long the oldest unsettled message is out; 0 without one.", ("source",)),
    "monitor_silent_streams": Metric("gauge", "Streams of a source that are silent for longer than expect_every.", ("source",)),
    "monitor_open_segments": Metric("gauge", "Segments of recordings that wait for further chunks.", ("source",)),
    "monitor_queue_depth": Metric("gauge", "What waits: messages of sources.NAME to be decoded, samples of detectors.NAME to be scored.", ("queue",)),
    "monitor_running_batch_seconds": Metric("gauge", "How long the batch that runs longest is running; 0 without one. Beyond stall, /live says no."),
    "monitor_model_info": Metric("gauge", "1 for the model version that a detector serves.", ("detector", "model_version")),
    "monitor_model_age_seconds": Metric("gauge", "Time since the model that a detector serves was trained.", ("detector",)),
    "monitor_build_info": Metric("gauge", "1 for the version that runs.", ("version",)),
}

disable_created_metrics()  # type: ignore[no-untyped-call]  # a series beside every counter, which nobody reads

Listener = Callable[[str, Mapping[str, Any]], None]
"""`listener(what, facts)`: in the thread that reports, and must not wait."""

Reading = tuple[str, tuple[str, ...], float]
"""A gauge's name, the values of its labels, and how it stands."""


class Telemetry:
    """Counts and logs happenings; keeps the metrics. Thread-safe, but for `exposition`.

    `read` gives the gauges that anybody else must tell: it is called when somebody looks.
    """

    CONTENT_TYPE = CONTENT_TYPE_LATEST
    """Of `exposition`."""

    def __init__(self) -> None:
        self.read: Callable[[], Iterable[Reading]] = tuple
        self._listeners: tuple[Listener, ...] = ()
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger("monitor")
        self._registry = CollectorRegistry()
        self._counters = {
            name: Counter(name, metric.help, metric.labels, registry=self._registry) for name, metric in METRICS.items() if metric.kind == "counter"
        }
        self._histograms = {
            name: Histogram(name, metric.help, metric.labels, buckets=metric.buckets, registry=self._registry)
            for name, metric in METRICS.items()
            if metric.kind == "histogram"
        }
        self._registry.register(_Gauges(self))
        ProcessCollector(registry=self._registry)
        self._happenings = self._counters["monitor_happenings_total"]
        for name in HAPPENINGS:  # from 0 on: else Prometheus would not see the first as an increase
            self._happenings.labels(name, "")
        for reason in get_args(BadReason):
            self.counter("monitor_dead_letters_total", reason)

    def report(self, what: str, /, *, quiet: bool = False, **facts: Any) -> None:
        """Count and log; `quiet` only counts. Raises KeyError for a happening that is not named above."""
        level = HAPPENINGS[what]
        self._happenings.labels(what, str(facts.get("cause", ""))).inc()
        if quiet:
            return
        self._log.log(logging.getLevelNamesMapping()[level.upper()], what, **facts)
        for listener in self._listeners:
            listener(what, facts)

    def heard_by(self, listener: Listener) -> "Telemetry":
        """The same metrics and log; whatever is reported to the one returned, and not quiet, is told to `listener` too."""
        heard = copy.copy(self)
        heard._listeners = (*self._listeners, listener)
        return heard

    def count(self, what: str, cause: str | None = None) -> int:
        """How often something happened, of one cause or of all."""
        counts = [sample for metric in self._happenings.collect() for sample in metric.samples if sample.name == "monitor_happenings_total"]
        return int(sum(count.value for count in counts if count.labels["happening"] == what and cause in (None, count.labels["cause"])))

    def counter(self, name: str, *labels: str) -> Counter:
        """`.inc(n)`. To be bound once where it counts often. Raises KeyError for one that is not named above."""
        return self._counters[name].labels(*labels) if labels else self._counters[name]

    def histogram(self, name: str, *labels: str) -> Histogram:
        """`.observe(value)`; otherwise as `counter`."""
        return self._histograms[name].labels(*labels)

    def exposition(self) -> bytes:
        """Everything as Prometheus reads it. From the event loop's thread: what it asks belongs there."""
        return generate_latest(self._registry)


class _Gauges(Collector):
    """Asks how things stand, at every look."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def collect(self) -> Iterator[GaugeMetricFamily]:
        families = {name: GaugeMetricFamily(name, metric.help, labels=metric.labels) for name, metric in METRICS.items() if metric.kind == "gauge"}
        for name, labels, value in (*self._telemetry.read(), ("monitor_build_info", (version("plant-monitor"),), 1.0)):
            families[name].add_metric(labels, value)
        yield from families.values()


def configure_logging() -> None:
    """Structured logs on stderr: JSON when not on a terminal."""
    human = sys.stderr.isatty()
    renderer = structlog.dev.ConsoleRenderer() if human else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            structlog.dev.set_exc_info if human else structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
