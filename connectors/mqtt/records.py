"""What stands in an MQTT message, as headers, and the id that it has for ever.

Source: MQTT 5.0, 3.3.2.3 PUBLISH Properties; CloudEvents 1.0.2, bindings/mqtt-protocol-binding.md.
"""

import re
from collections.abc import Sequence
from hashlib import sha256

from connectors.mqtt.publish import Arrived
from connectors.mqtt.text import LONGEST, is_text

Headers = Sequence[tuple[str, bytes]]

_PLAIN_ID = re.compile(r"[A-Za-z0-9._:~+=@-]{1,128}", re.ASCII)
_DIGEST = 32
"""Hexadecimal digits: 128 bits, so that no two of all messages of a plant share one by chance."""


def headers(arrived: Arrived) -> tuple[tuple[str, bytes], ...]:
    """The user properties, then the content type as `content-type`, which goes before a user property of that name."""
    content_type = () if arrived.content_type is None else (("content-type", arrived.content_type),)
    return (*arrived.user_properties, *content_type)


def as_text(headers: Headers) -> tuple[str | None, tuple[tuple[str, str], ...]]:
    """The other way: content type and user properties. Raises ValueError, in words, for what MQTT cannot carry: it carries text."""
    content_types = [value for name, value in headers if name.lower() == "content-type"]
    user_properties = ((name, value) for name, value in headers if name.lower() != "content-type")
    return (
        _text("content-type", content_types[-1]) if content_types else None,
        tuple((_text(name, name.encode("utf-8", "surrogatepass")), _text(name, value)) for name, value in user_properties),
    )


def position(topic: str, headers: Headers, payload: bytes) -> str:
    """The user property `id` where there is one, else a hash of topic, time of capture if given, and payload.

    An id that is long, or holds what would make source/topic/position ambiguous, is hashed too.
    """
    said = said_id(headers)
    if said is None:
        captured = _last(headers, "captured") or _last(headers, "time") or b""
        return _hash(topic.encode("utf-8", "surrogatepass"), captured, payload)
    text = said.decode("utf-8", "replace")
    return text if _PLAIN_ID.fullmatch(text) else _hash(said)


def said_id(headers: Headers) -> bytes | None:
    """The user property `id`; None where it is missing or empty."""
    return _last(headers, "id") or None


def is_structured(headers: Headers) -> bool:
    """Whether the payload is a CloudEvent in JSON, which holds its own id."""
    return (_last(headers, "content-type") or b"").lower().startswith(b"application/cloudevents+json")


def _last(headers: Headers, name: str) -> bytes | None:
    return next((value for key, value in reversed(headers) if key.lower() == name), None)


def _hash(*parts: bytes) -> str:
    """Lengths first, so that no two lists of parts are the same bytes."""
    digest = sha256(b"".join(len(part).to_bytes(8, "big") for part in parts))
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:_DIGEST]


def _text(name: str, value: bytes) -> str:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        raise ValueError(f"header {name!a} is not UTF-8: {value[:40]!r}; MQTT carries text only") from None
    if not is_text(text):
        raise ValueError(f"header {name!a} holds control characters or is longer than {LONGEST} bytes, which MQTT does not carry")
    return text
