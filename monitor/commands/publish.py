"""monitor publish: files to a source's broker, as a plant system would send them."""

import argparse
import mimetypes
import os
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

from monitor.errors import ConfigError

if TYPE_CHECKING:
    from monitor.types import Message

HELP = "send files to a source's broker and topic"
EXAMPLE = """\
example:
  monitor publish ../data/mvtec/bottle/test --to cameras --stream press/7/cam --rate 5 --json sent.json"""

GROUP = 32  # files that are confirmed together when no rate is asked for


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("publish", help=HELP, description=HELP, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, metavar="PATH", help="a file, or a folder whose files are sent in sorted order, subfolders too")
    parser.add_argument("--to", required=True, metavar="SOURCE", help="a source of monitor.toml")
    parser.add_argument("--rate", type=_positive, metavar="R", help="messages per second (default: as fast as they are confirmed)")
    parser.add_argument("--stream", metavar="S", help="the stream's name, sent as header and key (default: none; the topic names it)")
    parser.add_argument("--count", type=int, metavar="N", help="messages in all; begins again with the first file (default: each once)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write file, topic and position of each message")
    parser.set_defaults(command=execute)


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def execute(arguments: argparse.Namespace) -> int:
    import anyio

    from monitor.commands.answers import write_json
    from monitor.config import load_settings
    from monitor.registry import resolve

    sources = load_settings(arguments.config, os.environ).sources
    if arguments.to not in sources:
        raise ConfigError(f"--to {arguments.to}: no source has this name; expected one of {', '.join(sources)}")
    files = list(_files(arguments.path))
    if arguments.count is not None:
        if arguments.count < 1:
            raise ConfigError("--count: expected at least 1")
        files = list(islice(cycle(files), arguments.count))
    options = sources[arguments.to]
    sent: list[dict[str, str]] = []

    async def send() -> None:
        async with resolve(options.sender)(options) as sender:
            start = time.monotonic()
            size = GROUP if arguments.rate is None else 1
            for first in range(0, len(files), size):
                group = files[first : first + size]
                if arguments.rate is not None:
                    await anyio.sleep(max(0.0, start + first / arguments.rate - time.monotonic()))
                places = await sender.send([_message(file, arguments.path, arguments.stream) for file in group])
                for file, (topic, position) in zip(group, places, strict=True):
                    sent.append({"file": str(file), "topic": topic, "position": position})

    try:
        anyio.run(send)
    finally:
        topics = sorted({place["topic"] for place in sent})
        print(f"{len(sent)} of {len(files)} messages confirmed" + (f" in {', '.join(topics)}" if topics else ""))
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


def _message(file: Path, root: Path, stream: str | None) -> "Message":
    from monitor.types import Message

    now = time.time()
    headers = [("captured", str(int(now * 1000)).encode())]
    content_type, _ = mimetypes.guess_type(file.name)
    if content_type is not None and content_type.split("/")[0] in ("image", "audio"):
        headers.append(("content-type", content_type.encode()))
    if stream is not None:
        headers.append(("stream", stream.encode()))
    position = file.name if root == file else file.relative_to(root).as_posix()
    return Message(
        source="",
        topic="",
        position=position,
        payload=file.read_bytes(),
        received=now,
        key=stream.encode() if stream is not None else None,
        headers=tuple(headers),
    )
