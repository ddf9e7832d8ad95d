"""A PUBLISH packet as it arrives.

Not read by paho (2.2): upon a user property with a byte order mark it ends the connection, for ever again, as the message comes
again; and it copies the rest of the packet, payload and all, for every field of the properties.
Source: MQTT 5.0, 3.3 PUBLISH, 2.2.2 Properties, 1.5 Data representation; MQTT 3.1.1, 3.3.
"""

import struct
from dataclasses import dataclass

_CONTENT_TYPE, _USER_PROPERTY = 0x03, 0x26
_FIXED = {0x01: 1, 0x02: 4, 0x23: 2}
"""Bytes of the properties that have a fixed length: payload format indicator, message expiry interval, topic alias."""
_PREFIXED = frozenset({0x03, 0x08, 0x09})  # a string or bytes: content type, response topic, correlation data
_SUBSCRIPTION_IDENTIFIER = 0x0B


@dataclass(frozen=True, slots=True)
class Arrived:
    """`mid` is the packet id, 0 with QoS 0. Names and values of user properties keep their order."""

    topic: str
    payload: bytes
    mid: int
    qos: int
    retain: bool
    content_type: bytes | None = None
    user_properties: tuple[tuple[str, bytes], ...] = ()


def read_publish(first: int, packet: bytes | bytearray, *, v5: bool) -> Arrived:
    """`first` is the first byte of the packet, `packet` what follows its length.

    Bytes of topic or names that are not UTF-8 become U+FFFD; values stay as they are. Raises ValueError for what is no PUBLISH.
    """
    try:
        topic, at = _prefixed(packet, 0)
        qos, mid = (first & 0x06) >> 1, 0
        if qos:
            (mid,) = struct.unpack_from(">H", packet, at)
            at += 2
        content_type: bytes | None = None
        user_properties: tuple[tuple[str, bytes], ...] = ()
        if v5:
            length, at = _variable(packet, at)
            if at + length > len(packet):
                raise ValueError("the properties are longer than the packet")
            content_type, user_properties = _properties(bytes(packet[at : at + length]))
            at += length
    except (struct.error, IndexError) as error:
        raise ValueError(f"a PUBLISH that ends too early: {error}") from None
    if not topic or qos > 2 or bool(qos) != bool(mid):
        raise ValueError(f"a PUBLISH to {topic[:40]!r} with QoS {qos} and packet id {mid}")
    return Arrived(topic.decode("utf-8", "replace"), bytes(memoryview(packet)[at:]), mid, qos, bool(first & 0x01), content_type, user_properties)


def _properties(properties: bytes) -> tuple[bytes | None, tuple[tuple[str, bytes], ...]]:
    """Content type and user properties; others are passed over."""
    at, content_type, user_properties = 0, None, []
    while at < len(properties):
        kind, at = _variable(properties, at)
        if kind == _USER_PROPERTY:
            name, at = _prefixed(properties, at)
            value, at = _prefixed(properties, at)
            user_properties.append((name.decode("utf-8", "replace"), value))
        elif kind in _PREFIXED:
            value, at = _prefixed(properties, at)
            content_type = value if kind == _CONTENT_TYPE else content_type
        elif kind == _SUBSCRIPTION_IDENTIFIER:
            _, at = _variable(properties, at)
        elif kind in _FIXED:
            at += _FIXED[kind]
        else:
            raise ValueError(f"a PUBLISH with property {kind:#x}, which it cannot have")
    if at != len(properties):
        raise ValueError("a property that is longer than its packet")
    return content_type, tuple(user_properties)


def _prefixed(data: bytes | bytearray, at: int) -> tuple[bytes, int]:
    """Two bytes of length, and as many bytes; with where it ends."""
    (length,) = struct.unpack_from(">H", data, at)
    end = at + 2 + length
    if end > len(data):
        raise ValueError("a string that is longer than its packet")
    return bytes(data[at + 2 : end]), end


def _variable(data: bytes | bytearray, at: int) -> tuple[int, int]:
    """A variable byte integer; with where it ends."""
    value = 0
    for place in range(4):
        byte = data[at + place]
        value |= (byte & 0x7F) << (7 * place)
        if not byte & 0x80:
            return value, at + place + 1
    raise ValueError("a variable byte integer of more than four bytes")
