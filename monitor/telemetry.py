"""Every log event and counter, named in this one file. Normal operation is silent at info.

A happening is counted by name (and by its `cause`, where it has one) and logged with its facts.
"""

import logging
import sys
from collections import Counter
from threading import Lock
from typing import Any

import structlog

HAPPENINGS: dict[str, str] = {
    # name: level. What each means stands beside it.
    "source_disconnected": "warning",  # a source's broker is away or refuses us; cause says which
    "source_connected": "info",  # it is back (logged after a loss only)
    "topic_missing": "warning",  # a source's topic does not exist (yet)
    "offsets_gone": "warning",  # retention deleted messages before they were read; `missing` says how many
    "record_corrupt": "error",  # a record cannot be read from its log, by its cause; nothing is skipped: its partition holds there
    "sink_disconnected": "warning",  # a sink's other side is away; its sources hold
    "sink_connected": "info",  # it is back (logged after a loss only)
    "map_dropped": "warning",  # an alert was too large with its map and went without
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
    "restart_needed": "warning",  # a change in daemon, state or store takes effect at the next start only
    "processing_singly": "warning",  # the last run ended unclean: the first deliveries are processed one at a time
    "model_loaded": "info",  # a version was loaded and serves from the next batch on
    "model_missing": "warning",  # the store has no model of a detector; without one in memory its sources hold
    "model_refused": "error",  # a promoted version cannot serve; the one before goes on
    "model_broken": "critical",  # a model no longer repeats its reference scores; the daemon stops
    "device_lost": "critical",  # the device is gone; the daemon stops
    "batch_repeated": "warning",  # a batch raised or scored as not finite and was repeated one sample at a time
    "stream_unwatched": "warning",  # no detector takes this stream; counted per sample, logged once per stream
    "partitions_revoked": "info",  # a rebalance took partitions away
    "partitions_lost": "warning",  # partitions went to another member before we could commit
    "unsettled_at_revoke": "warning",  # `drain` ended before all was settled; those come again
    "precision_refused": "warning",  # a fast precision does not repeat the reference scores of a model, which serves in fp32
}


class Telemetry:
    """Counts and logs happenings. Thread-safe."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._lock = Lock()
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger("monitor")

    def report(self, what: str, /, *, quiet: bool = False, **facts: Any) -> None:
        """Count and log; `quiet` only counts. Raises KeyError for a happening that is not named above."""
        level = HAPPENINGS[what]
        with self._lock:
            self._counts[what, str(facts.get("cause", ""))] += 1
        if quiet:
            return
        self._log.log(logging.getLevelNamesMapping()[level.upper()], what, **facts)

    def count(self, what: str, cause: str | None = None) -> int:
        """How often something happened, of one cause or of all."""
        with self._lock:
            return sum(n for (name, why), n in self._counts.items() if name == what and cause in (None, why))


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
