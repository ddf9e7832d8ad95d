"""What the contract suites must know of each kind: its options, and what its other side holds. One class per kind and port.

A binding is made anew for each test and stands for one place (a folder, a topic): every `options()` of it leads there.
"""

import base64
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from connectors import letters
from connectors.folder.options import FolderDeadLetterOptions, FolderSinkOptions, FolderSourceOptions
from connectors.memory.channel import channel
from connectors.memory.options import MemoryDeadLetterOptions, MemorySinkOptions, MemorySourceOptions
from monitor.ports import SinkOptions, SourceOptions


class Record:
    """monitor.ports.Positions, kept by the test."""

    def __init__(self) -> None:
        self._settled: defaultdict[str, set[str]] = defaultdict(set)

    def settled(self, place: str) -> set[str]:
        return set(self._settled[place])

    def settle(self, place: str, positions: Sequence[str]) -> None:
        self._settled[place].update(positions)

    def forget(self, place: str, positions: Sequence[str]) -> None:
        self._settled[place].difference_update(positions)


class SourceBinding(Protocol):
    """`Binding(request, tmp_path)`. Messages are put with the kind's own Sender, read in order (one partition)."""

    in_order: bool
    """Whether the other side counts what is not acknowledged: a place is free again when all before it are settled."""
    key: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    """A key and headers as hard as this kind carries them."""

    def options(self, **more: Any) -> SourceOptions: ...


class SinkBinding(Protocol):
    """`Binding(request, tmp_path)`."""

    def options(self, **more: Any) -> SinkOptions: ...

    def events(self) -> list[dict[str, Any]]:
        """Every event there, as a JSON object, doubles too; in the order in which they came where the other side keeps one."""
        ...

    ordered: bool
    """Whether the other side keeps an order."""


@dataclass(frozen=True, kw_only=True)
class Letter:
    """A dead letter as it was found."""

    source: str
    topic: str
    position: str
    payload: bytes
    key: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    reason: str
    error: str
    spilled: bool


def as_found(letter: letters.Letter) -> Letter:
    """What a broker's record holds."""
    why = {name: value.decode() for name, value in letter.facts}
    spilled = "monitor-spilled" in why
    return Letter(
        source=why["monitor-source"],
        topic=why["monitor-topic"],
        position=why["monitor-position"],
        payload=unspilled(json.loads(letter.value)) if spilled else letter.value,
        key=letter.key,
        headers=letter.headers,
        reason=why["monitor-reason"],
        error=why["monitor-error"],
        spilled=spilled,
    )


class DeadLetterBinding(Protocol):
    """`Binding(request, tmp_path)`."""

    spills: bool
    """Whether payloads beyond `max_bytes` are spilled; else they are kept whole."""

    def options(self, **more: Any) -> SinkOptions: ...

    def letters(self) -> list[Letter]:
        """Every dead letter there, doubles too; the payload of a spilled one is read from its path and checked."""
        ...


class AnyBytes:
    """Places come back in any order; keys and headers are bytes."""

    in_order = False
    key: bytes | None = b"press/\xff"
    headers: tuple[tuple[str, bytes], ...] = (("content-type", b"image/png"), ("x", b"\xff\x00"), ("x", b"second"), ("empty", b""))


class _Place:
    def __init__(self, request: pytest.FixtureRequest, tmp_path: Path) -> None:
        self.path = tmp_path / "place"
        self.channel = f"{request.node.nodeid} {tmp_path}"


class FolderSourceBinding(AnyBytes, _Place):
    def options(self, **more: Any) -> FolderSourceOptions:
        return FolderSourceOptions(path=self.path, poll=0.02, **more)


class FolderSinkBinding(_Place):
    ordered = False

    def options(self, **more: Any) -> FolderSinkOptions:
        return FolderSinkOptions(path=self.path, **more)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_bytes()) for path in sorted(self.path.glob("*.json"))]


class FolderDeadLetterBinding(_Place):
    spills = True

    def options(self, **more: Any) -> FolderDeadLetterOptions:
        return FolderDeadLetterOptions(path=self.path, **more)

    def letters(self) -> list[Letter]:
        return [_letter(json.loads(path.read_bytes())["data"]) for path in sorted(self.path.glob("*.json"))]


def _letter(data: dict[str, Any]) -> Letter:
    def value(facts: dict[str, str]) -> bytes:
        return facts["text"].encode() if "text" in facts else base64.b64decode(facts["base64"])

    spilled = data.get("spilled")
    return Letter(
        source=data["source"],
        topic=data["topic"],
        position=data["position"],
        payload=unspilled(spilled) if spilled else base64.b64decode(data["payload"]),
        key=None if data["key"] is None else value(data["key"]),
        headers=tuple((header["name"], value(header)) for header in data["headers"]),
        reason=data["reason"],
        error=data["error"],
        spilled=spilled is not None,
    )


def unspilled(facts: dict[str, Any]) -> bytes:
    """The payload that a record's spill facts (size, sha256, path) lead to."""
    from hashlib import sha256

    payload = Path(facts["path"]).read_bytes()
    assert len(payload) == facts["size"]
    assert sha256(payload).hexdigest() == facts["sha256"]
    return payload


class MemorySourceBinding(AnyBytes, _Place):
    def options(self, **more: Any) -> MemorySourceOptions:
        return MemorySourceOptions(channel=self.channel, **more)


class MemorySinkBinding(_Place):
    ordered = True

    def options(self, **more: Any) -> MemorySinkOptions:
        return MemorySinkOptions(channel=self.channel, **more)

    def events(self) -> list[dict[str, Any]]:
        return channel(self.channel).events


class MemoryDeadLetterBinding(_Place):
    spills = False

    def options(self, **more: Any) -> MemoryDeadLetterOptions:
        return MemoryDeadLetterOptions(channel=self.channel, **more)

    def letters(self) -> list[Letter]:
        return [
            Letter(
                source=letter.message.source,
                topic=letter.message.topic,
                position=letter.message.position,
                payload=letter.message.payload,
                key=letter.message.key,
                headers=letter.message.headers,
                reason=letter.reason,
                error=letter.error,
                spilled=False,
            )
            for letter in channel(self.channel).letters
        ]
