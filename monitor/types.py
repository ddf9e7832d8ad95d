"""The nouns. Each stage makes the next: Message -> Sample -> Batch -> Scores -> Verdict -> Alert (an Event)."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

Modality = Literal["image", "rgbd", "sound"]
SENSORS: Mapping[str, str] = {"image": "image", "rgbd": "depth", "sound": "sound"}
"""What a sample must hold for a detector of that modality, in the words of `Sample.sensors`."""
EventType = Literal["monitor.alert.v1", "monitor.score.v1", "monitor.health.v1", "monitor.dead_letter.v1"]

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What a broker handed over, untouched.

    `position` is unique within source and topic for ever (Kafka: "partition-offset"; folder: the file name).
    `headers` keep their order and bytes; `timestamp` is the broker's time, `received` our own (epoch seconds).
    `cloudevents_prefix` stands before the names of a CloudEvent's attributes among them: `ce_` on Kafka, nothing on MQTT.
    """

    source: str
    topic: str
    position: str
    payload: bytes
    received: float
    key: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()
    timestamp: float | None = None
    cloudevents_prefix: str = "ce_"

    @property
    def id(self) -> str:
        return f"{self.source}/{self.topic}/{self.position}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """What a message says of its payload: by headers, as a CloudEvent (binary or structured), or by its broker.

    `content_type` is a bare lower-case media type; `captured` is epoch seconds; `payload` the file as the sensor sent it.
    A chunk of a longer recording names it, the index of its first sample in it, and whether it is the last; else `recording` is None.
    """

    payload: bytes
    stream: str
    captured: float
    content_type: str | None = None
    recording: str | None = None
    offset: int = 0
    last: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Segmentation:
    """How a detector of sound wants recordings cut: `length` seconds every `hop` seconds; a shorter stretch is scored from `shortest` on."""

    length: float
    hop: float
    shortest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Which piece of a recording a sample is: its `index`-th segment, what lies from `start` to `end` seconds of it.

    partial: samples of the segment are missing; then this is its longest stretch.
    """

    recording: str
    index: int
    start: float
    end: float
    partial: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """One decoded picture, scan or clip.

    image: (H, W, C) uint8 or uint16, C = 1 (grey) or 3 (RGB), never rescaled per image. depth: (H, W) float32, of the same
    H and W where there is an image too; NaN, 0 and below are "not measured".
    waveform: (channels, T) float32 in [-1, 1] at `rate` Hz. `captured` and `received` are epoch seconds.
    segment: only of a piece of a recording that came in several messages; topic and position are then those of the first of them.
    """

    source: str
    topic: str
    position: str
    stream: str
    captured: float
    received: float
    image: NDArray[np.uint8] | NDArray[np.uint16] | None = None
    depth: FloatArray | None = None
    waveform: FloatArray | None = None
    rate: int | None = None
    segment: Segment | None = None

    @property
    def id(self) -> str:
        """A segment's does not depend on how its recording was cut into messages."""
        if self.segment is not None:
            return f"{self.source}/{self.stream}/{quote(self.segment.recording, safe='')}/{self.segment.index}"
        return f"{self.source}/{self.topic}/{self.position}"

    @property
    def modality(self) -> Modality:
        if self.waveform is not None:
            return "sound"
        return "image" if self.depth is None else "rgbd"

    def has(self, modality: str) -> bool:
        """Whether a detector of `modality` can look at it: one of images at what has an image, one of scans at what has depth."""
        return SENSORS[modality] in self._held

    @property
    def sensors(self) -> str:
        """What it holds, in words: "image", "image and depth", "depth" or "sound"."""
        return " and ".join(self._held)

    @property
    def _held(self) -> list[str]:
        named = {"image": self.image, "depth": self.depth, "sound": self.waveform}
        return [name for name, array in named.items() if array is not None]

    @property
    def measured(self) -> NDArray[np.bool_]:
        """(H, W) bool: where there is depth. Only of a sample that has some."""
        assert self.depth is not None
        return np.asarray(self.depth > 0, dtype=np.bool_)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """Samples with what their detector prepared, stacked (and on its device) by that detector."""

    samples: tuple[Sample, ...]
    data: Any


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Axes:
    """Where a map of sound lies: the edges of its columns and rows.

    seconds: (W + 1,) ascending, of the sample. hertz: (H + 1,) descending: low is at the bottom.
    """

    seconds: FloatArray
    hertz: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scores:
    """values: (B,) float32, higher is stranger, raw. maps: per sample (H, W) float32, or None; of images at the sent size.

    A map may be drawn only when it is indexed: at the sent size it costs far more memory than its network's, and few are wanted.
    axes: of sound, those of each map. named: score name -> (B,) float32, filled only by `score(batch, every=True)`.
    """

    values: FloatArray
    maps: Sequence[FloatArray] | None = None
    axes: Sequence[Axes] | None = None
    named: Mapping[str, FloatArray] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelVersion:
    """A trained model on disk: `id` is UTC-sha8, `manifest` the parsed manifest.json of `folder`."""

    name: str
    id: str
    folder: Path
    manifest: Mapping[str, Any]

    @property
    def trained(self) -> float:
        """Epoch seconds, as the id says."""
        return datetime.strptime(self.id.partition("-")[0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Verdict:
    """What one detector says of one sample, by the threshold of the version that scored it."""

    sample: Sample
    detector: str
    version: ModelVersion
    score: float
    threshold: float
    scored: float
    map: FloatArray | None = None
    axes: Axes | None = None

    @property
    def anomalous(self) -> bool:
        return self.score > self.threshold


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DeadLetter:
    """A message that could not be scored, why (a BadReason), and the error in words."""

    message: Message
    reason: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Event:
    """What a sink sends: the attributes of a CloudEvent, whose `data` is JSON-able.

    `source` is "/<site>/<detector>", of a health event "/<site>"; `key` is the stream, or whatever else a health event is about;
    `time` epoch seconds.
    `map` is the float32 (H, W) score map of an alert, which each sink encodes as its options say; `axes` says, JSON-able, where a map of sound
    lies. `traceparent` is W3C's, where messages are traced.
    """

    id: str
    type: EventType
    source: str
    key: str
    time: float
    data: Mapping[str, Any]
    map: FloatArray | None = None
    axes: Mapping[str, Any] | None = None
    dead_letter: DeadLetter | None = None
    traceparent: str | None = None

    def without_map(self) -> "Event":
        return dataclasses.replace(self, map=None)


def rfc_3339(seconds: float) -> str:
    """Epoch seconds -> UTC to the microsecond, e.g. 2026-11-22T06:30:00.250000Z."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
