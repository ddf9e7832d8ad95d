"""The verbs: what the daemon asks of its sources, sinks, formats and detectors.

Adapters satisfy these without inheriting. Every MUST is checked by the contract suites in tests/contract.
Constructors MUST NOT do I/O or start threads: `async with` begins and ends everything.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from monitor.types import Batch, Envelope, Event, Message, Sample, Scores, Segmentation


class Options(BaseModel):
    """A component's configuration, its validation and its reference page. Lives in a light file (no torch, no client).

    `implementation` names the class ("package.module:Class") that is imported only when it runs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    implementation: ClassVar[str]

    def secret(self, name: str) -> str | None:
        """The secret `name`: the value that came from the environment, else what stands in `<name>_file`, else None.

        Raises OSError where the file cannot be read.
        """
        value: SecretStr | None = getattr(self, name)
        if value is not None:
            return value.get_secret_value()
        file: Path | None = getattr(self, f"{name}_file", None)
        return None if file is None else file.read_text().rstrip("\r\n")

    @property
    def sole(self) -> str | None:
        """What the other side lets only one have at a time, in words (MQTT: a client id); None where there is nothing such."""
        return None


class SourceOptions(Options):
    """What every source takes."""

    sender: ClassVar[str]
    probe: ClassVar[str]
    """Names `async probe(options)` for check --online: raises Disconnected unless the other side lets us in; returns what is doubtful, in words."""

    max_in_flight: int = Field(default=256, ge=1, le=100_000)
    """Unsettled messages that the source hands out at most; when all are out, it holds."""
    max_bytes: int = Field(default=16 * 1024 * 1024, ge=1)
    """Largest payload in bytes; a larger one goes to the dead letter."""
    max_pixels: int = Field(default=50_000_000, ge=1)
    """Most pixels that an image may have; checked before it is decoded."""
    max_seconds: float = Field(default=600.0, gt=0)
    """Longest sound in seconds; checked before it is decoded."""
    expect_every: float | None = Field(default=None, gt=0)
    """A stream of this source from which nothing has come for longer is a health event; so is a source from which nothing comes at all.

    It must have spoken since the start or the last reload of its source. 20 are told by name at a time, the others as their number.
    """
    max_age: float | None = Field(default=None, gt=0)
    """A sample captured longer ago is not scored: it is counted, settled and named in a health event. Without it, age does not matter."""

    recording_timeout: float | None = Field(default=None, gt=0)
    """A recording that comes in chunks has ended when none has come for so many seconds, or with a chunk that says `last`.

    So has a segment of it. By default twice the length of a segment of its detector. No time passes while all of `max_in_flight` are out.
    """

    @property
    def refuses_chunks(self) -> str | None:
        """Why no recording can come in chunks through it, in words: their order is lost, or what they say of themselves. None where one can."""
        return None

    @property
    def stock_window(self) -> int | None:
        """Unsettled messages that a stock broker hands out at most, where the protocol does not let us say it; else None."""
        return None


class SinkOptions(Options):
    """What every sink takes."""

    receiver: ClassVar[str]
    probe: ClassVar[str]

    max_bytes: int = Field(default=1024 * 1024, ge=1024)
    """Largest record in bytes that this sink sends."""

    def feeds(self, source: SourceOptions) -> str | None:  # noqa: ARG002
        """Where `source` reads what this sink writes, in words: it would go round for ever. None where it does not."""
        return None


Report = Callable[..., None]
"""`report(what, **facts)`: counts and logs one happening; `what` MUST be named in monitor/telemetry.py."""


class Positions(Protocol):
    """A lasting record of settled positions, for sources whose other side keeps none (folder). Thread-safe.

    `place` names where they count: the source, and what it reads. `settle` and `forget` do all or nothing, and raise
    Disconnected where they cannot: the caller keeps the positions and tries again.
    """

    def settled(self, place: str) -> set[str]: ...

    def settle(self, place: str, positions: Sequence[str]) -> None: ...

    def forget(self, place: str, positions: Sequence[str]) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What the daemon lends to a source or sink: its name in monitor.toml, a way to be heard, a lasting record."""

    name: str
    report: Report
    positions: Positions | None = None


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message and the promise about it, which travels beside it.

    `settle` MUST be called exactly once, from the event loop's thread, in any order among deliveries, only after every
    effect of the message is safe elsewhere. There is no nack: what is unsettled comes again after a reconnect or restart.
    """

    message: Message
    settle: Callable[[], None]
    moved: Callable[[], bool] = lambda: False
    """Whether it is settled for nobody any more, because its partition went to another member, who is given it too. MUST NOT wait or do I/O."""


class Source(Protocol):
    """`Implementation(options, context)`.

    Iteration MUST hand out at most `max_in_flight` unsettled deliveries and hold until one is settled; MUST keep the order
    within a partition; MUST report `source_connected` when it has its other side (`quiet` unless after a loss), reconnect by
    itself with back-off and report it, and never raise Disconnected out of the iteration.
    A settled position is committed only when all before it in its partition are settled, at the latest on exit.
    """

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc: object) -> None: ...

    def __aiter__(self) -> AsyncIterator[Delivery]: ...

    async def stop(self) -> None:
        """Hand out nothing more and end the iteration; what is out may still be settled, and is committed on exit."""
        ...


@runtime_checkable
class Lagging(Protocol):
    """What a source may have besides, where its other side tells how far behind we are."""

    def lag(self) -> int | None:
        """Messages that it holds for us and that are not settled; None while that is not known. MUST NOT wait or do I/O."""
        ...


@runtime_checkable
class Listening(Protocol):
    """What a source may have besides, where a connection alone brings it nothing."""

    def listening(self) -> bool:
        """Whether what is sent now would reach us: else its streams are not silent. MUST NOT wait or do I/O."""
        ...


@runtime_checkable
class InOrder(Protocol):
    """What a source may have besides, where a settled delivery keeps its place until all before it are settled."""

    def taken(self) -> int:
        """Deliveries of max_in_flight that were handed out and whose place the other side does not have back. MUST NOT wait or do I/O."""
        ...


class Sink(Protocol):
    """`Implementation(options, context)`."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc: object) -> None: ...

    async def look(self) -> None:
        """Raises Disconnected unless the other side is there and lets us in. Cheap: it is called again and again while nothing is sent."""
        ...

    async def send(self, events: Sequence[Event]) -> None:
        """Return only when the other side has confirmed all of them. The order per key is kept.

        Raises Disconnected when it is away (all may be sent again: ids are the same), Rejected naming the events (type, id)
        that it will never take, after all others are confirmed. A too large alert is first sent without its map.
        """
        ...


class Sender(Protocol):
    """Of a source's kind, `Implementation(options)`: puts messages where that source reads (`monitor publish`)."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc: object) -> None: ...

    async def send(self, messages: Sequence[Message]) -> Sequence[tuple[str, str]]:
        """Send payload, key and headers; return topic and position of each when confirmed. Raises Disconnected, Rejected.

        Of a message's own position only the folder kind makes use: as the file's name.
        """
        ...


class Receiver(Protocol):
    """Of a sink's kind, `Implementation(options)`: reads what that sink sent (`monitor listen`), from now on."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc: object) -> None: ...

    def __aiter__(self) -> AsyncIterator[Mapping[str, Any]]:
        """The CloudEvents as JSON objects. Where others write there too: their JSON objects, and `{"error": "where: why"}` for what is none."""
        ...

    async def map(self, event: Mapping[str, Any]) -> bytes | None:
        """The PNG of the event's map, inline or followed by its uri and checked against its sha256; None without one."""
        ...


Unwrap = Callable[[Message], Envelope]
"""What a message says of its payload. Raises BadSample (undecodable, lying_header), and nothing else. Thread-safe."""


class Format(Protocol):
    """One family of payloads; `Implementation()`. MUST check sizes before it decodes, and never unpickle.

    monitor.decoding chooses the format: by the envelope's content type, else by what the bytes are.
    """

    media_types: frozenset[str]

    def sniff(self, payload: bytes) -> frozenset[str]:
        """Every media type (in all its spellings) that the first bytes allow; empty when they are not this family's."""
        ...

    def decode(self, message: Message, envelope: Envelope, limits: SourceOptions) -> Sample:
        """The sample in `envelope.payload`, which is of this family. Raises BadSample, and nothing else. Thread-safe."""
        ...


Progress = Callable[[str, int, int, Mapping[str, float]], None]
"""`progress(phase, step, steps, figures)`, e.g. ("train", 3, 30, {"loss": 0.02}): a bar on a terminal, log lines elsewhere."""


class Detector(Protocol):
    """`Implementation(options)`. Knows no threshold and no broker."""

    modality: str
    """"image", "rgbd" (depth, with or without an image) or "sound": the pipeline refuses samples without that.

    Of a scan with an image a detector of modality "image" sees the image, and one of modality "rgbd" what its options ask for."""

    segmentation: Segmentation | None
    """After load, of a detector of sound: how recordings are cut for it. None of any other."""
    device: str
    """After load: where it scores, "cpu" or "cuda:0"."""
    precision: str
    """After load: in what it scores, "fp32", "bf16" or "fp16"; what "auto" became."""

    def fit(
        self, training: Sequence[Sample], held_out: Sequence[Sample], folder: Path, *, seed: int, device: str, progress: Progress
    ) -> Mapping[str, Any]:
        """Learn from normal samples; early stopping and every choice on `held_out` and synthetic defects only.

        Checkpoints in `folder`, and MUST go on from the checkpoint that it finds there, with the same result as if never
        interrupted. The sequences decode when indexed and may be indexed more than once. Returns what the manifest tells
        of the training (epochs, losses, choices, options as resolved, seconds). Raises ConfigError for options that cannot work with these samples.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write the weights as safetensors, and nothing that is executable."""
        ...

    def load(self, folder: Path, *, device: str, precision: str) -> None:
        """Be ready to score: read `folder`, move, fuse and warm up. device: auto, cpu, cuda, cuda:1. precision: auto, fp32, bf16, fp16.

        The options that act are those in `folder`. Raises ModelRefused where it holds no model of this kind, ConfigError for what this
        machine lacks: a device, a precision, published weights that the model rests on."""
        ...

    def prepare(self, sample: Sample) -> Any:
        """What this detector needs of one sample (resized, as the network takes it). Thread-safe, on the CPU; before `fit` too.

        Raises BadSample where this sample can never be scored."""
        ...

    def stack(self, samples: Sequence[Sample], prepared: Sequence[Any]) -> Batch:
        """Stack and copy to the device; runs in another thread while the batch before is scored."""
        ...

    def score(self, batch: Batch, *, every: bool = False) -> Scores:
        """Same length and order as the batch. A sample alone and in any batch MUST score the same within the tolerance."""
        ...
