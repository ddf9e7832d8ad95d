"""Dead letters on a topic: the message byte for byte, with its key and headers, and why it is there; and back."""

import base64
import json
from collections.abc import Callable, Mapping
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

_OURS = "monitor-"
_PACKED = "monitor-headers"

Headers = tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """What the record of a dead letter holds: the message's own value, key and headers, and apart from these our `facts`:

    monitor-id, monitor-reason, monitor-error, monitor-source, monitor-topic, monitor-position. Of a payload that is spilled the
    value is JSON of its size, sha256 and path, and `monitor-spilled: true` says so. A key and headers that are spilled too are
    JSON with base64, at the path in `monitor-headers-spilled`. An event without a message (one that a sink rejected) is
    a structured CloudEvent.
    """

    value: bytes
    key: bytes | None
    headers: Headers
    facts: Headers

    @property
    def beside(self) -> int:
        """Bytes of key, headers and facts."""
        return len(self.key or b"") + sum(len(name.encode()) + len(value) for name, value in written(self))

    @property
    def size(self) -> int:
        return len(self.value) + self.beside


def written(letter: Letter) -> Headers:
    """As the headers of a record."""
    return own_headers(letter, _is_unicode) + letter.facts


def own_headers(letter: Letter, is_carried: Callable[[str, bytes], bool]) -> Headers:
    """The message's own, as they are written. Where one is not carried, or its name begins as ours, all are packed into
    `monitor-headers`, which is JSON: name and value in base64 of each. So whatever is named `monitor-*` is ours."""
    if all(is_carried(name, value) and not name.startswith(_OURS) for name, value in letter.headers):
        return letter.headers
    return ((_PACKED, json.dumps([(name, base64.b64encode(value).decode()) for name, value in letter.headers]).encode()),)


def letter_of(value: bytes, key: bytes | None, headers: Headers) -> Letter:
    """What `written` wrote. Raises ValueError for what it cannot have written."""
    facts = tuple((name, text) for name, text in headers if name.startswith(_OURS) and name != _PACKED)
    own = tuple((name, text) for name, text in headers if not name.startswith(_OURS))
    try:
        for packed in (text for name, text in headers if name == _PACKED):
            own += tuple((str(name), base64.b64decode(text, validate=True)) for name, text in json.loads(packed))
    except (TypeError, RecursionError) as error:
        raise ValueError(f"not the headers of a dead letter: {error!r}") from error
    return Letter(value=value, key=key, headers=own, facts=facts)


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
        key, headers, why = whole.key, whole.headers, whole.facts
        if headers_too or whole.beside > self._max_bytes // 2:
            beside = {
                "key": None if key is None else base64.b64encode(key).decode(),
                "headers": [(name, base64.b64encode(value).decode()) for name, value in headers],
            }
            path = spill(self._folder, json.dumps(beside).encode())["path"]
            key, headers, why = None, (), (*why, ("monitor-headers-spilled", path.encode()))
        return Letter(value=json.dumps(facts).encode(), key=key, headers=headers, facts=(*why, ("monitor-spilled", b"true")))


def read_letter(letter: Letter, where: str, written: float) -> Mapping[str, Any]:
    """A CloudEvent with the `data` that a folder dead letter writes; `{"error": ...}` for somebody else's who used our headers.

    `written`: when, in epoch seconds.
    """
    why = dict(letter.facts)
    try:
        said = {name: why[f"monitor-{name}"].decode() for name in _FACTS}
        facts: dict[str, Any] = {
            "key": None if letter.key is None else readable(letter.key),
            "headers": [{"name": name, **readable(value)} for name, value in letter.headers],
        }
        if "monitor-spilled" in why:
            facts["spilled"] = json.loads(letter.value)
        else:
            facts["payload"] = base64.b64encode(letter.value).decode()
        return {
            "specversion": "1.0",
            "id": why["monitor-id"].decode(),
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
        return Letter(value=value, key=event.key.encode(), headers=(("content-type", STRUCTURED.encode()),), facts=_why(event))
    message = event.dead_letter.message
    return Letter(value=message.payload, key=message.key, headers=message.headers, facts=_why(event))


def _why(event: Event) -> Headers:
    letter = event.dead_letter
    facts = {"id": event.id, "reason": "rejected"}
    if letter is not None:
        facts |= {"reason": letter.reason, "error": letter.error[:_LONGEST_ERROR], "source": letter.message.source}
        facts |= {"topic": letter.message.topic, "position": letter.message.position}
    return tuple((f"monitor-{name}", value.encode("utf-8", "replace")) for name, value in facts.items())


def _is_unicode(name: str, _: bytes) -> bool:
    """Folders and JSON have names that are none."""
    return not any("\ud800" <= character <= "\udfff" for character in name)
