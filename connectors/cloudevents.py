"""CloudEvents 1.0 in both directions: what a message says of its payload, and events as structured JSON.

Source: github.com/cloudevents/spec, cloudevents/spec.md, formats/json-format.md, bindings/kafka-protocol-binding.md and
bindings/mqtt-protocol-binding.md (1.0.2).
"""

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from connectors.maps import Place, describe
from monitor.errors import BadSample, Rejected
from monitor.types import Envelope, Event, Message, rfc_3339

STRUCTURED = "application/cloudevents+json"
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_EPOCH_MS = re.compile(r"\d{1,15}", re.ASCII)
_END_OF_TIME = 253_402_300_800.0  # the year 10,000: what datetime and RFC 3339 cannot say any more
_LONGEST_NAME = 512
_WHOLE = re.compile(r"\d{1,15}", re.ASCII)
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_ATTRIBUTES = ("subject", "time", "recording", "offset", "last")


def unwrap(message: Message) -> Envelope:
    """What the message says of its payload, by plain headers, by a CloudEvent's among them (binary mode), or as JSON (structured mode).

    Stream: header `stream`, else the event's subject, else the key, else the topic. Captured: header `captured`, else the
    event's time, else the broker's time where it is one, else when it was received. A plain header goes before the event's attribute.
    A chunk of a recording says `recording` and `offset` (the index of its first sample), the final one also `last` (true or 1).
    Raises BadSample: lying_header for facts that cannot be read, undecodable for a structured event that is none.
    """
    content_type = media_type(_header(message, "content-type"))
    payload = message.payload
    if content_type == STRUCTURED:
        payload, content_type, attributes = _structured(message.payload)
    else:
        attributes = {name: _header(message, f"{message.cloudevents_prefix}{name}") for name in _ATTRIBUTES}
    captured = _header(message, "captured") or attributes["time"]
    recording, offset, last = _chunk(*(_header(message, name) or attributes[name] for name in ("recording", "offset", "last")))
    return Envelope(
        payload=payload,
        content_type=content_type,
        stream=_stream(message, _header(message, "stream") or attributes["subject"]),
        captured=_seconds(captured) if captured else _brokers_time(message),
        recording=recording,
        offset=offset,
        last=last,
    )


def media_type(content_type: str | None) -> str | None:
    """`Image/JPEG; q=1` -> `image/jpeg`; None for nothing."""
    return (content_type or "").partition(";")[0].strip().lower() or None


def _header(message: Message, name: str) -> str | None:
    """The last header of that name (any case) as text, None when missing. Raises BadSample when it is not UTF-8."""
    for key, value in reversed(message.headers):
        if key.lower() == name:
            try:
                return value.decode()
            except UnicodeDecodeError:
                raise BadSample("lying_header", f"header {name} is not UTF-8: {value[:40]!r}") from None
    return None


def _stream(message: Message, said: str | None) -> str:
    stream = said
    if not stream and message.key:
        try:
            stream = message.key.decode()
        except UnicodeDecodeError:
            raise BadSample("lying_header", f"the key names the stream, but is not UTF-8: {message.key[:40]!r}") from None
    return _name(stream or message.topic, "stream")


def _name(name: str, of: str) -> str:
    if len(name) > _LONGEST_NAME:
        raise BadSample("lying_header", f"the {of}'s name has {len(name)} characters, at most {_LONGEST_NAME} are taken")
    try:
        name.encode()
    except UnicodeEncodeError:  # JSON may say half a surrogate pair
        raise BadSample("lying_header", f"the {of}'s name is no Unicode text: {ascii(name)[:60]}") from None
    return name


def _chunk(recording: str | None, offset: str | None, last: str | None) -> tuple[str | None, int, bool]:
    if not recording or not offset:
        if recording or offset or last:
            lacking = [name for name, said in (("recording", recording), ("offset", offset)) if not said]
            raise BadSample("lying_header", f"a chunk says both recording and offset: {' and '.join(lacking)} missing")
        return None, 0, False
    if not _WHOLE.fullmatch(offset):
        raise BadSample("lying_header", f"offset {offset!r:.60} is no index of a sample: a whole number from 0 on, of at most 15 digits")
    ends = _BOOLEANS.get((last or "false").lower())
    if ends is None:
        raise BadSample("lying_header", f"last {last!r:.60} is neither true nor false")
    return _name(recording, "recording"), int(offset), ends


def _seconds(text: str) -> float:
    """RFC 3339 or epoch milliseconds -> epoch seconds."""
    if _EPOCH_MS.fullmatch(text):
        seconds = int(text) / 1000
    elif _RFC_3339.fullmatch(text):
        try:
            seconds = datetime.fromisoformat(text.upper()).timestamp()
        except (ValueError, OverflowError) as error:
            raise BadSample("lying_header", f"captured {text[:60]!r} is no time: {error}") from None
    else:
        raise BadSample("lying_header", f"captured {text[:60]!r} is neither RFC 3339 (with its offset) nor epoch milliseconds")
    if not _is_time(seconds):
        raise BadSample("lying_header", f"captured {text[:60]!r} is before 1970 or after 9999")
    return seconds


def _brokers_time(message: Message) -> float:
    """A producer may have set it, in whatever unit."""
    return message.timestamp if message.timestamp is not None and _is_time(message.timestamp) else message.received


def _is_time(seconds: float) -> bool:
    return 0 <= seconds < _END_OF_TIME


def _structured(raw: bytes) -> tuple[bytes, str | None, dict[str, str | None]]:
    """payload, content type and _ATTRIBUTES of a structured event."""
    try:
        event = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadSample("undecodable", f"says {STRUCTURED}, but is not JSON: {error}") from None
    if not isinstance(event, dict) or not isinstance(event.get("specversion"), str):
        raise BadSample("undecodable", f"says {STRUCTURED}, but is no JSON object with a specversion")
    if not event["specversion"].startswith("1."):
        raise BadSample("unsupported", f"CloudEvents specversion {event['specversion'][:20]!r}; 1.0 is read")
    for name, kind in (("offset", int), ("last", bool)):  # JSON may say these as what they are
        if type(event.get(name)) is kind:
            event[name] = str(event[name])
    for name in ("datacontenttype", *_ATTRIBUTES):
        if not isinstance(event.get(name), str | None):
            raise BadSample("undecodable", f"attribute {name} of the CloudEvent is not a string")
    said = event.get("datacontenttype")
    return _data(event, said), media_type(said), {name: event.get(name) for name in _ATTRIBUTES}


def _data(event: dict[str, Any], content_type: str | None) -> bytes:
    """Decoded, the data are smaller than the message that holds them, whose size was checked before."""
    try:
        if event.get("data_base64") is not None:
            if not isinstance(event["data_base64"], str):
                raise BadSample("undecodable", "data_base64 of the CloudEvent is not a string")
            return base64.b64decode(event["data_base64"], validate=True)
        data = event.get("data")
        if data is None:
            return b""
        if isinstance(data, str) and content_type is not None and "json" not in content_type:
            return data.encode()
        return json.dumps(data).encode()
    except (binascii.Error, ValueError, RecursionError) as error:
        raise BadSample("undecodable", f"the data of the CloudEvent cannot be read: {error}") from None


def structured(event: Event, **more: Any) -> bytes:
    """The event as structured JSON, with `more` added to its data. Raises ValueError where data hold NaN or infinity."""
    attributes = {
        "specversion": "1.0",
        "id": event.id,
        "source": event.source,
        "type": event.type,
        "subject": event.key,
        "time": rfc_3339(event.time),
        "datacontenttype": "application/json",
        **({"traceparent": event.traceparent} if event.traceparent else {}),
        "data": {**event.data, **more},
    }
    return json.dumps(attributes, allow_nan=False, separators=(",", ":")).encode()


def trace_headers(event: Event) -> tuple[tuple[str, str], ...]:
    """What stands beside the record too, for tools that follow a trace by headers."""
    return (("traceparent", event.traceparent),) if event.traceparent else ()


def read_event(raw: bytes, where: str) -> Mapping[str, Any]:
    """What a receiver makes of a record: the JSON object, whoever wrote it; `{"error": ...}` where there is none."""
    try:
        event = json.loads(raw)
    except (ValueError, RecursionError):
        event = None
    return event if isinstance(event, dict) else {"error": f"{where} is no JSON object"}


def readable(value: bytes) -> dict[str, str]:
    """Bytes in JSON, as dead letters write a key and headers: `text` where it is UTF-8, else `base64`."""
    try:
        return {"text": value.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


def encode(event: Event, *, max_bytes: int, place: Place | None = None, report: Callable[..., None]) -> bytes:
    """The event as structured JSON of at most `max_bytes`, its map as `data.map`; without the map if it is too large with it.

    For a worker thread: it compresses the map, and `place` may write or send it. Raises Rejected for an event that is too
    large even without, and what `place` raises, but for its Rejected: then the event goes without its map too.
    """
    record = structured(event)
    if event.map is not None:
        try:
            with_map = structured(event, map=describe(event, place))
        except Rejected as error:
            report("map_dropped", id=event.id, error=str(error))
        else:
            if len(with_map) <= max_bytes:
                return with_map
            report("map_dropped", id=event.id, error=f"{len(with_map)} bytes, this sink sends at most {max_bytes}")
    if len(record) > max_bytes:
        raise Rejected(f"event {event.id} has {len(record)} bytes, this sink sends at most {max_bytes}", [(event.type, event.id)])
    return record
