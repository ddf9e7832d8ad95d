"""Message -> Sample: what every payload passes first, and which format takes it."""

from monitor import registry
from monitor.errors import BadSample
from monitor.ports import Format, SourceOptions
from monitor.types import Envelope, Message, Sample

_SAYS_NOTHING = frozenset({"application/octet-stream", "binary/octet-stream"})


def decode(message: Message, limits: SourceOptions) -> Sample:
    """Decode one message of a source, within its limits. Raises BadSample, and nothing else, for whatever is in it. Thread-safe."""
    return decode_payload(message, unwrap(message, limits), limits)


def unwrap(message: Message, limits: SourceOptions) -> Envelope:
    """The first half of `decode`: what the message says of its payload, before that is looked at."""
    size = len(message.payload)
    if size > limits.max_bytes:
        raise BadSample("too_large", f"the payload has {size} bytes, this source takes at most {limits.max_bytes}")
    return registry.unwrap()(message)


def decode_payload(message: Message, envelope: Envelope, limits: SourceOptions) -> Sample:
    """The second half."""
    if not envelope.payload:
        raise BadSample("empty", "the payload has no bytes")
    return _choose(envelope).decode(message, envelope, limits)


def _choose(envelope: Envelope) -> Format:
    """By the content type, which the bytes must not contradict; without one, by the bytes."""
    said = envelope.content_type
    are: frozenset[str] = frozenset()
    sniffed: Format | None = None
    for candidate in registry.formats():
        are = candidate.sniff(envelope.payload)
        if are:
            sniffed = candidate
            break
    if said is None or said in _SAYS_NOTHING:
        if sniffed is None:
            raise BadSample("undecodable", f"no content type, and the bytes are of no known format: {envelope.payload[:12]!r}")
        return sniffed
    if not any(said in candidate.media_types for candidate in registry.formats()):
        raise BadSample("unsupported", f"content type {said[:100]!r} is none that is read here")
    if sniffed is None:
        raise BadSample("undecodable", f"content type {said}, but the bytes are of no known format: {envelope.payload[:12]!r}")
    if said not in are:
        raise BadSample("lying_header", f"content type {said}, but the bytes are {min(are)}")
    return sniffed
