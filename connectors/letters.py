"""Dead letters on a topic: the message byte for byte, with its key and headers, and why it is there; and back."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from connectors.cloudevents import STRUCTURED, readable, structured
from connectors.maps import describe
from connectors.spill import spill
from monitor.ports import Context
from monitor.types import Event, rfc_3339

_LONGEST_ERROR = 2000
_FACTS = ("source", "topic", "position", "reason", "error")

Headers = tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """What the record of a dead letter holds: the message's own, and these headers behind its own:

    monitor-id, monitor-reason, monitor-error, monitor-source, monitor-topic, monitor-position. Of a payload that is spilled the
    value is JSON of its size, sha256 and path, and `monitor-spilled: true` says so. A key and headers that are spilled too are
    JSON with base64, at the path in `monitor-headers-spilled`. An event without a message (one that a sink rejected) is
    a structured CloudEvent.
    """

    value: bytes
    key: bytes | None
    headers: Headers

    @property
    def beside(self) -> int:
        """Bytes of key and headers."""
        return len(self.key or b"") + sum(len(name.encode()) + len(value) for name, value in self.headers)

    @property
    def size(self) -> int:
        return len(self.value) + self.beside


class Letters:
    """Writes them: whole up to `max_bytes`, beyond it with what is spilled into `folder`."""

    def __init__(self, folder: Path, max_bytes: int, context: Context) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._context = context

    def fitting(self, event: Event) -> Letter:
        """Raises Disconnected where the disk is full."""
        letter = _whole(event)
        return letter if letter.size <= self._max_bytes else self.spilled(event, f"{letter.size} bytes, max_bytes is {self._max_bytes}")

    def spilled(self, event: Event, error: str, *, headers_too: bool = False) -> Letter:
        """The payload lies in the folder; key and headers too where they are asked for, or more than half of `max_bytes`."""
        whole = _whole(event)
        facts = spill(self._folder, whole.value)
        self._context.report("payload_spilled", sink=self._context.name, id=event.id, error=error, **facts)
        key, headers = whole.key, whole.headers
        if headers_too or whole.beside > self._max_bytes // 2:
            beside = {
                "key": None if key is None else base64.b64encode(key).decode(),
                "headers": [(name, base64.b64encode(value).decode()) for name, value in headers],
            }
            path = spill(self._folder, json.dumps(beside).encode())["path"]
            key, headers = None, (*_why(event), ("monitor-headers-spilled", path.encode()))
        return Letter(value=json.dumps(facts).encode(), key=key, headers=(*headers, ("monitor-spilled", b"true")))


def read_letter(letter: Letter, where: str, written: float) -> Mapping[str, Any]:
    """A CloudEvent with the `data` that a folder dead letter writes; `{"error": ...}` for somebody else's who used our headers.

    `written`: when, in epoch seconds.
    """
    headers = dict(letter.headers)
    try:
        said = {name: headers[f"monitor-{name}"].decode() for name in _FACTS}
        facts: dict[str, Any] = {
            "key": None if letter.key is None else readable(letter.key),
            "headers": [{"name": name, **readable(value)} for name, value in letter.headers if not name.startswith("monitor-")],
        }
        if "monitor-spilled" in headers:
            facts["spilled"] = json.loads(letter.value)
        else:
            facts["payload"] = base64.b64encode(letter.value).decode()
        return {
            "specversion": "1.0",
            "id": headers["monitor-id"].decode(),
            "type": "monitor.dead_letter.v1",
            "source": where,
            "subject": (letter.key or b"").decode("utf-8", "replace"),
            "time": rfc_3339(written),
            "data": {**said, **facts},
        }
    except (KeyError, ValueError, OverflowError) as error:
        return {"error": f"{where} is no dead letter: {error!r}"}


def _whole(event: Event) -> Letter:
    if event.dead_letter is None:
        value = structured(event, map=describe(event)) if event.map is not None else structured(event)
        return Letter(value=value, key=event.key.encode(), headers=(("content-type", STRUCTURED.encode()), *_why(event)))
    message = event.dead_letter.message
    return Letter(value=message.payload, key=message.key, headers=message.headers + _why(event))


def _why(event: Event) -> Headers:
    letter = event.dead_letter
    facts = {"id": event.id, "reason": "rejected"}
    if letter is not None:
        facts |= {"reason": letter.reason, "error": letter.error[:_LONGEST_ERROR], "source": letter.message.source}
        facts |= {"topic": letter.message.topic, "position": letter.message.position}
    return tuple((f"monitor-{name}", value.encode("utf-8", "replace")) for name, value in facts.items())
