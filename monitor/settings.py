"""The tables of monitor.toml: what each key means, its default and its bounds."""

from collections.abc import Collection, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from monitor.ports import Options, SinkOptions, SourceOptions


class Table(BaseModel):
    """A table of monitor.toml: frozen, so that a reload can compare; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class DaemonSettings(Table):
    site: str = Field(default="plant", pattern=r"^[A-Za-z0-9._-]+$")
    """Names the plant in every alert's `source`."""
    state: Path = Path("var/state.db")
    """The state database (SQLite); one per daemon."""
    grace: float = Field(default=25.0, gt=0)
    """Seconds to drain on SIGTERM."""
    stall: float = Field(default=60.0, gt=0)
    """Seconds that one batch may run; beyond that /live says no and the watchdog of the service manager is told no more."""

    @field_validator("state")
    @classmethod
    def _file(cls, value: Path) -> Path:
        if ":/" in str(value):
            raise ValueError(f"{value} is a URL; expected a file (SQLite)")
        return value


class StoreSettings(Table):
    path: Path = Path("var/models")
    """The folder of trained models."""
    poll: float = Field(default=5.0, gt=0)
    """Seconds between looks for a promoted version."""


class ApiSettings(Table):
    """Where /live, /ready and /metrics are served; without this table nowhere."""

    host: str = Field(default="127.0.0.1", min_length=1)
    """The address or name to listen on; 0.0.0.0 or :: for all. What is served can only be read, by whoever reaches it."""
    port: int = Field(default=8440, ge=0, le=65535)
    """One per daemon; 0 takes a free one, which the log names when ready."""


class TracingSettings(Table):
    """Where the OpenTelemetry trace of each message is sent; without this table nowhere. Needs `pip install 'plant-monitor[tracing]'`."""

    endpoint: str = Field(default="http://127.0.0.1:4318/v1/traces", pattern=r"^https?://[^/\s]+(/\S*)?$")
    """The URL where a collector takes traces by OTLP over HTTP. Credentials, if it wants some: OTEL_EXPORTER_OTLP_HEADERS in the environment."""
    sample: float = Field(default=1.0, ge=0, le=1)
    """Share of messages that are traced; a message that comes with a `traceparent` follows that one's decision."""

    @model_validator(mode="after")
    def _needs(self) -> "TracingSettings":
        if not _installed("opentelemetry.sdk") or not _installed("opentelemetry.exporter.otlp.proto.http"):
            raise ValueError("OpenTelemetry is not installed; pip install 'plant-monitor[tracing]'")
        return self


class DetectorSettings(Table):
    """What the daemon needs to know of a detector; the method's own options stand in `options`."""

    kind: str
    """The method."""
    inputs: tuple[str, ...] = Field(min_length=1)
    """The sources that it reads."""
    streams: tuple[str, ...] = Field(default=("*",), min_length=1)
    """Globs of the streams that it scores."""
    max_batch_size: int = Field(default=16, ge=1, le=4096)
    """Samples per batch at most."""
    max_wait: float = Field(default=0.05, ge=0)
    """Seconds that the first sample of a batch waits for others at most."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto takes the fastest that repeats the model's reference scores."""
    false_alarm_probability: float = Field(default=0.01, gt=0, lt=1)
    """Share of normal samples that may be alerted."""
    options: Options
    """The method's own options."""


class SinkSettings(Table):
    inputs: tuple[str, ...] | None = None
    """The detectors whose events it takes; all by default. Health events come from everywhere."""
    events: tuple[Literal["alert", "score", "health"], ...] = Field(default=("alert",), min_length=1)
    """Which events it takes: of anomalous samples, of every sample, of the health of sources, sinks, models and streams."""
    options: SinkOptions

    def takes_from(self, detectors: Collection[str]) -> bool:
        """Whether it takes alerts or scores of any of these."""
        return set(self.events) != {"health"} and (self.inputs is None or not set(self.inputs).isdisjoint(detectors))


class Settings(Table):
    """A whole, valid monitor.toml, its paths absolute."""

    daemon: DaemonSettings
    store: StoreSettings
    api: ApiSettings | None
    tracing: TracingSettings | None
    sources: Mapping[str, SourceOptions]
    detectors: Mapping[str, DetectorSettings]
    sinks: Mapping[str, SinkSettings]
    dead_letter: SinkOptions


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # not even the package around it
        return False
