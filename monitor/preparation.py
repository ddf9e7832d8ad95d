"""In worker threads: a message becomes a sample that is prepared for each detector that takes it."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from monitor.decoding import decode_payload, unwrap
from monitor.errors import BadSample
from monitor.pending import Pending
from monitor.ports import Report, SourceOptions
from monitor.segments import Chunk
from monitor.serving import Model
from monitor.settings import DetectorSettings
from monitor.signals import Signal, look
from monitor.types import SENSORS, Envelope, Sample, Segmentation

if TYPE_CHECKING:
    from monitor.tracing import Tracing

WORKERS = os.cpu_count() or 1
MOST_STREAMS_LOGGED = 1000  # names of streams come from outside
EXPANSION = 4
"""A chunk is held as float32 until its segments are whole: at most so many bytes for each of `max_bytes`, as many as 8-bit PCM takes.

Silence packed as FLAC would take thousands."""


@dataclass(slots=True, eq=False)
class Decoded:
    """What became of a delivery: a sample prepared for each detector that takes it, a chunk to be cut for them, or what is wrong with it."""

    pending: Pending
    stream: str | None = None
    """Unless the headers cannot be read."""
    too_old: float | None = None
    """The seconds since it was captured, if beyond `max_age`: then it is not even decoded."""
    sample: Sample | None = None
    signal: Signal | None = None
    error: Exception | None = None
    prepared: dict[str, Any | Exception] | None = None  # by detector
    chunk: Chunk | None = None
    segmentations: dict[str, Segmentation] | None = None  # of the chunk, by detector


class Preparation:
    """Of one source. Thread-safe."""

    def __init__(
        self, source: str, options: SourceOptions, detectors: Mapping[str, DetectorSettings], *, report: Report, tracing: "Tracing | None"
    ) -> None:
        self._source = source
        self._options = options
        self._detectors = detectors
        self._report = report
        self._tracing = tracing
        self._unwatched: set[str] = set()

    def decode(self, part: Sequence[Pending], models: Mapping[str, Model]) -> list[Decoded]:
        """Any exception is one of its message or of its model, never of the flow."""
        if self._tracing is None:
            return [self._decode(pending, models) for pending in part]
        done = []
        for pending in part:
            begun = time.perf_counter()
            done.append(self._decode(pending, models))
            self._tracing.step("decode", [pending.delivery.message.id], time.perf_counter() - begun)
        return done

    def _decode(self, pending: Pending, models: Mapping[str, Model]) -> Decoded:
        one, message = Decoded(pending), pending.delivery.message
        try:
            envelope = unwrap(message, self._options)
            one.stream = envelope.stream
            age = time.time() - envelope.captured
            if self._options.max_age is not None and age > self._options.max_age:
                one.too_old = age
                return one
            sample = one.sample = decode_payload(message, envelope, self._options)
            takers = self._takers(sample, models)
            one.signal = look(sample)
            if envelope.recording is not None:
                one.chunk = self._chunk(pending, sample, envelope, envelope.recording)
                one.segmentations = {name: _segmentation(name, model) for name, model in takers.items()}
                return one
        except MemoryError:
            raise  # the machine's fault, not the message's
        except Exception as error:
            one.error = error
            return one
        one.prepared = {name: prepare(model, sample) for name, model in takers.items()}
        return one

    def _chunk(self, pending: Pending, sample: Sample, envelope: Envelope, recording: str) -> Chunk:
        if sample.waveform is None:
            raise BadSample("unsupported", f"a chunk of a recording is sound, this is {sample.sensors}")
        if self._options.refuses_chunks is not None:
            raise BadSample("unsupported", f"a chunk of a recording: {self._options.refuses_chunks}")
        if sample.waveform.nbytes > EXPANSION * self._options.max_bytes:
            channels, count = sample.waveform.shape
            most = f"at most {EXPANSION} * max_bytes / 4 = {self._options.max_bytes * EXPANSION // 4} of all channels are held"
            raise BadSample("too_large", f"a chunk of {count} samples in {channels} channels: {most}")
        return Chunk(pending=pending, sample=sample, recording=recording, offset=envelope.offset, last=envelope.last)

    def _takers(self, sample: Sample, models: Mapping[str, Model]) -> dict[str, Model]:
        """The detectors that watch this stream. Raises BadSample when none of them is made for such samples."""
        watching = {name: model for name, model in models.items() if any(fnmatchcase(sample.stream, glob) for glob in self._detectors[name].streams)}
        takers = {name: model for name, model in watching.items() if sample.has(model.detector.modality)}
        if watching and not takers:
            wanted = " or ".join(sorted({SENSORS[model.detector.modality] for model in watching.values()}))
            error = f"{sample.sensors} from stream {sample.stream}, whose detectors ({', '.join(watching)}) do not take it: expected {wanted}"
            raise BadSample("unsupported", error)
        if not watching:
            known = sample.stream in self._unwatched or len(self._unwatched) >= MOST_STREAMS_LOGGED
            self._report("stream_unwatched", quiet=known, source=self._source, stream=sample.stream)
            if not known:
                self._unwatched.add(sample.stream)
        return takers


def prepare(model: Model, sample: Sample) -> Any | Exception:
    """What the detector needs of a sample, or why it can have nothing."""
    try:
        return model.detector.prepare(sample)
    except MemoryError:
        raise
    except Exception as error:
        return error


def _segmentation(detector: str, model: Model) -> Segmentation:
    if model.detector.segmentation is None:
        raise BadSample("unsupported", f"a chunk of a recording, but detector {detector} takes whole recordings only")
    return model.detector.segmentation
