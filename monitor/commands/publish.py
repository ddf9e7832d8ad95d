"""monitor publish: files to a source's broker, as a plant system would send them."""

import argparse
import io
import math
import mimetypes
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monitor.errors import ConfigError

if TYPE_CHECKING:
    from monitor.types import Message

HELP = "send files to a source's broker and topic"
EXAMPLE = """\
example:
  monitor publish ../data/mvtec/bottle/test --to cameras --stream press/7/cam --rate 5 --json sent.json
  monitor publish ../data/dcase2020/dev_data/fan/test --to microphones --stream hall/2/fan --chunk 1 --rate 1"""

GROUP = 32  # files that are confirmed together when no rate is asked for


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("publish", help=HELP, description=HELP, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, metavar="PATH", help="a file, or a folder whose files are sent in sorted order, subfolders too")
    parser.add_argument("--to", required=True, metavar="SOURCE", help="a source of monitor.toml")
    parser.add_argument("--rate", type=_positive, metavar="R", help="messages per second (default: as fast as they are confirmed)")
    parser.add_argument("--stream", metavar="S", help="the stream's name, sent as header and key (default: none; the topic names it)")
    parser.add_argument("--count", type=int, metavar="N", help="messages in all; begins again with the first file (default: each once)")
    parser.add_argument(
        "--chunk",
        type=_positive,
        metavar="SECONDS",
        help="send each sound as a recording of its own, cut into messages of so many seconds (as WAV)",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write file, topic and position of each message, of a chunk also its recording and offset"
    )
    parser.set_defaults(command=execute)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
    if not value > 0 or math.isinf(value):
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and finite")
    return value


def execute(arguments: argparse.Namespace) -> int:
    import anyio

    from monitor.commands.answers import write_json
    from monitor.config import load_settings
    from monitor.registry import resolve

    sources = load_settings(arguments.config, os.environ).sources
    if arguments.to not in sources:
        raise ConfigError(f"--to {arguments.to}: no source has this name; expected one of {', '.join(sources)}")
    options = sources[arguments.to]
    files = list(_files(arguments.path))
    if arguments.chunk is not None and options.refuses_chunks is not None:
        raise ConfigError(f"--chunk: --to {arguments.to}: {options.refuses_chunks}")
    if arguments.count is not None and arguments.count < 1:
        raise ConfigError("--count: expected at least 1")
    rounds = repeat(None) if arguments.count is not None else repeat(None, 1)
    parts = list(islice(chain.from_iterable(_parts(files, arguments.path, arguments.chunk) for _ in rounds), arguments.count))
    sent: list[dict[str, str | int]] = []

    async def send() -> None:
        async with resolve(options.sender)(options) as sender:
            start = time.monotonic()
            size = GROUP if arguments.rate is None else 1
            for first in range(0, len(parts), size):
                group = parts[first : first + size]
                if arguments.rate is not None:
                    await anyio.sleep(max(0.0, start + first / arguments.rate - time.monotonic()))
                places = await sender.send([_message(part, arguments.stream) for part in group])
                for part, (topic, position) in zip(group, places, strict=True):
                    sent.append({"file": str(part.file), "topic": topic, "position": position, **part.facts})

    try:
        anyio.run(send)
    finally:
        topics = sorted({str(place["topic"]) for place in sent})
        print(f"{len(sent)} of {len(parts)} messages confirmed" + (f" in {', '.join(topics)}" if topics else ""))
        write_json(arguments.json, sent)
    return 0


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    if not path.is_dir():
        raise ConfigError(f"{path}: no such file or folder")
    found = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    if not found:
        raise ConfigError(f"{path}: holds no files")
    yield from found


@dataclass(slots=True, eq=False)
class _Recording:
    """One sending of a sound file in chunks: its name is its own."""

    name: str
    rate: int
    frames: int
    chunk: int
    """Frames of each chunk but the last."""
    subtype: str
    """What WAV is to hold."""
    began: float = 0.0
    """Epoch seconds of its first sample: as if it had ended when its first chunk is sent."""
    values: Any = None
    """(frames, channels), while it is sent."""


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """A file, or a chunk of it: what becomes one message."""

    file: Path
    position: str
    recording: _Recording | None = None
    offset: int = 0

    @property
    def facts(self) -> dict[str, str | int]:
        return {} if self.recording is None else {"recording": self.recording.name, "offset": self.offset}


_LOSSLESS = {"PCM_S8": "PCM_U8", **{subtype: subtype for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32")}}
"""PCM -> how WAV holds the same values. Anything else (floats, lossy codecs) is held as 32 bit floats, which is what it decodes to here."""


def _parts(files: list[Path], root: Path, chunk: float | None) -> list[_Part]:
    """All files once. Raises ConfigError for what cannot be cut."""
    parts, mistakes = [], []
    for file in files:
        position = file.name if root == file else file.relative_to(root).as_posix()
        if chunk is None:
            parts.append(_Part(file, position))
            continue
        try:
            recording = _recording(file, chunk)
        except ValueError as error:
            mistakes.append(f"--chunk: {file}: {error}")
            continue
        folder = position.rpartition("/")[0]
        for number, offset in enumerate(range(0, recording.frames, recording.chunk)):
            parts.append(_Part(file, f"{folder}/{recording.name}-{number:06}.wav".lstrip("/"), recording, offset))
    if mistakes:
        raise ConfigError(*mistakes)
    return parts


def _recording(file: Path, chunk: float) -> _Recording:
    """Raises ValueError, in words."""
    import soundfile

    try:
        info = soundfile.info(file)
    except (soundfile.LibsndfileError, OSError) as error:
        raise ValueError(f"only sound can be cut: {error}") from error
    frames = round(chunk * info.samplerate)
    if frames < 1 or info.frames < 1:
        raise ValueError(f"{info.frames} samples at {info.samplerate} Hz cannot be cut into chunks of {chunk} s")
    stem = os.fsencode(file.stem).decode("utf-8", "backslashreplace")[:400]
    return _Recording(f"{stem}-{uuid.uuid4().hex[:8]}", info.samplerate, info.frames, frames, _LOSSLESS.get(info.subtype, "FLOAT"))


def _message(part: _Part, stream: str | None) -> "Message":
    from monitor.types import Message

    now = time.time()
    if part.recording is None:
        payload, headers = part.file.read_bytes(), {"captured": str(int(now * 1000))}
        content_type, _ = mimetypes.guess_type(part.file.name)
        if content_type is not None and content_type.split("/")[0] in ("image", "audio"):
            headers["content-type"] = content_type
    else:
        payload, headers = _chunk(part.file, part.recording, part.offset, now)
    if stream is not None:
        headers["stream"] = stream
    return Message(
        source="",
        topic="",
        position=part.position,
        payload=payload,
        received=now,
        key=stream.encode() if stream is not None else None,
        headers=tuple((name, value.encode()) for name, value in headers.items()),
    )


def _chunk(file: Path, recording: _Recording, offset: int, now: float) -> tuple[bytes, dict[str, str]]:
    """Payload and headers."""
    import soundfile

    if offset == 0:  # at once: not every codec can begin to decode just anywhere
        recording.began = now - recording.frames / recording.rate
        recording.values, _ = soundfile.read(file, dtype="float32" if recording.subtype == "FLOAT" else "int32", always_2d=True)
    end = offset + recording.chunk
    wav = io.BytesIO()
    soundfile.write(wav, recording.values[offset:end], recording.rate, format="WAV", subtype=recording.subtype)
    headers = {
        "captured": str(int((recording.began + offset / recording.rate) * 1000)),
        "content-type": "audio/wav",
        "recording": recording.name,
        "offset": str(offset),
    }
    if end >= recording.frames:
        headers["last"] = "true"
        recording.values = None
    return wav.getvalue(), headers
