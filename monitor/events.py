"""Events as consumers read them. deploy/schema/ is generated from these types."""

import json
import sys
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from monitor.types import Modality


class Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Origin(Data):
    """Where a sample came from: source, topic and position are its id, of a segment source, stream, recording and segment."""

    source: str
    topic: str
    position: str
    """Of a segment, that of the first chunk that it was made of; which chunk that is depends on how its recording was cut."""
    recording: str | None = None
    """This and the following only of a segment, a piece of a recording that came in chunks."""
    segment: int | None = Field(default=None, ge=0)
    """Its number in the recording."""
    start: float | None = Field(default=None, ge=0)
    """Where in the recording it begins, in seconds."""
    end: float | None = Field(default=None, gt=0)
    """Where it ends."""
    partial: bool | None = None
    """True when samples of the segment are missing: this is its longest stretch."""


class Region(Data):
    """One connected part of an image where the fault is, in pixels of the image as it was sent."""

    x: int = Field(ge=0)
    y: int = Field(ge=0)
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    area: int = Field(ge=1)
    """Pixels above the map threshold."""
    peak: float
    """The largest map value in it."""


class SoundRegion(Data):
    """One stretch of time and pitch where the fault is. Seconds count from the beginning of the recording; a clip that was sent whole is one."""

    start: float = Field(ge=0)
    end: float = Field(gt=0)
    low_hz: float = Field(ge=0)
    high_hz: float = Field(gt=0)
    peak: float
    """The largest map value in it."""


class MapAxes(Data):
    """Where a map of sound lies: its columns run evenly from `start` to `end`, in seconds as those of the regions."""

    start: float = Field(ge=0)
    end: float = Field(gt=0)
    hertz: tuple[float, ...]
    """The edges of its rows from the top down, one more than there are rows: high pitch is at the top."""


class MapImage(Data):
    """The score map as a grey PNG: score = black + grey / 255 * (white - black)."""

    media_type: Literal["image/png"]
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    black: float
    """The score at grey 0."""
    white: float
    """The score at grey 255."""
    axes: MapAxes | None = None
    """Only of sound; a map of an image covers the image."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Of the PNG."""
    base64: str | None = None
    """The PNG, when it is inline."""
    uri: str | None = None
    """Where the PNG lies, when it is not."""


class ScoreData(Data):
    """What one detector says of one sample."""

    stream: str
    detector: str
    kind: str
    model_version: str
    sample: Origin
    modality: Modality
    captured: str = Field(json_schema_extra={"format": "date-time"})
    scored: str = Field(json_schema_extra={"format": "date-time"})
    score: float
    """Raw, as the model gave it; higher is stranger."""
    threshold: float
    """A sample is anomalous when its score is above."""
    p_value: float = Field(gt=0, le=1)
    """The share of normal data with such a score."""
    supported: str | None = None
    """Only when the calibration is too small for the false-alarm probability asked for: what it supports."""


class AlertData(ScoreData):
    """What one detector says of an anomalous sample."""

    regions: tuple[Region, ...] | tuple[SoundRegion, ...]
    """Where the fault is, in an image or in sound, strongest first; at least one where the detector draws maps."""
    map: MapImage | None = None
    """Missing (null) when the sink could not send it even at its smallest."""


class HealthData(Data):
    """What happened to a source, a sink, a model or a stream; the log has the same line."""

    what: str
    """The name of its log event and counter; `HEALTH` in monitor/telemetry.py lists them."""
    level: Literal["debug", "info", "warning", "error", "critical"]
    """How urgent it is; what is over is info."""
    host: str
    """The machine (or pod) whose daemon says so: several may share a site."""
    source: str | None = None
    sink: str | None = None
    detector: str | None = None
    stream: str | None = None
    cause: str | None = None
    """What an operator must tell apart, of a closed list per `what`."""
    error: str | None = None
    """In words."""
    since: str | None = Field(default=None, json_schema_extra={"format": "date-time"})
    """When that which goes on, or is over now, has begun. Missing for what happens in a moment."""
    ends: tuple[str, ...] = ()
    """The `what` of the earlier events about the same source, sink, detector and stream that are over now."""
    facts: dict[str, JsonValue] = Field(default_factory=dict)
    """What else the log line says, under its names there."""


class CloudEvent(Data):
    """The envelope (CloudEvents 1.0, structured JSON)."""

    specversion: Literal["1.0"]
    id: str
    """`<detector>:<sample id>`; the same after any redelivery or restart."""
    source: str
    """`/<site>/<detector>`."""
    subject: str
    """The stream."""
    time: str = Field(json_schema_extra={"format": "date-time"})
    """When the sample was captured."""
    datacontenttype: Literal["application/json"]
    traceparent: str | None = Field(default=None, pattern="^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$")
    """Only where messages are traced: the span in which it was sent (W3C Trace Context, CloudEvents extension)."""


class Alert(CloudEvent):
    """An anomalous sample, and where the fault is."""

    type: Literal["monitor.alert.v1"]
    data: AlertData


class Score(CloudEvent):
    """A verdict, anomalous or not."""

    type: Literal["monitor.score.v1"]
    data: ScoreData


class Health(CloudEvent):
    """Something that an operator must hear of although no sample is strange."""

    id: str
    """`health:<site>:<subject>:<what>:<time>`; the same when it is sent again."""
    source: str
    """`/<site>`."""
    subject: str
    """The stream, detector, sink or source that it is about."""
    time: str = Field(json_schema_extra={"format": "date-time"})
    """When it was noticed."""
    type: Literal["monitor.health.v1"]
    data: HealthData


SCHEMAS: dict[str, type[CloudEvent]] = {"monitor.alert.v1.json": Alert, "monitor.score.v1.json": Score, "monitor.health.v1.json": Health}
"""File in deploy/schema -> what it describes. `python -m monitor.events deploy/schema` writes them anew."""


def schema(event: type[CloudEvent]) -> str:
    """JSON Schema (2020-12) of an event, as text."""
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **event.model_json_schema()}, indent=2) + "\n"


if __name__ == "__main__":
    for name, event in SCHEMAS.items():
        (Path(sys.argv[1]) / name).write_text(schema(event))
