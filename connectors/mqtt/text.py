"""What MQTT takes as text: in a topic, and in a user property that we write.

Source: MQTT 5.0, 1.5.4 "UTF-8 Encoded String" and 4.7 "Topic Names and Topic Filters". Control characters and non-characters are
allowed there, but a broker may close the connection upon them, and Mosquitto does.
"""

import re

LONGEST = 65_535
"""Bytes of a topic, and of the name or the value of a user property."""
_MOST_LEVELS = 100
"""Of a configured topic. Mosquitto closes the connection at 200."""
_LEVELS = 64
"""Of a stream, which a sink adds to it."""
_NONCHARACTERS = "\ufdd0-\ufdef" + "".join(chr(plane | low) for plane in range(0, 0x110000, 0x10000) for low in (0xFFFE, 0xFFFF))
_NOT_TEXT = re.compile(f"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufeff{_NONCHARACTERS}]")  # paho-mqtt 2.2 takes no U+FEFF either
_NOT_IN_A_TOPIC = re.compile(f"[%+#]|{_NOT_TEXT.pattern}")


def text_mistake(text: str) -> str | None:
    """What is wrong with text of a topic, in words."""
    if not text:
        return "it is empty"
    if len(text.encode("utf-8", "surrogatepass")) > LONGEST:
        return f"it is longer than {LONGEST} bytes"
    if text.count("/") >= _MOST_LEVELS:
        return f"it has more than {_MOST_LEVELS} levels"
    return "it holds control characters, or others that MQTT does not take as text" if _NOT_TEXT.search(text) else None


def is_text(text: str) -> bool:
    """Whether it can be a user property as it is."""
    return not _NOT_TEXT.search(text) and len(text.encode()) <= LONGEST


def as_text(text: str) -> str:
    """With U+FFFD for what MQTT does not take, and cut where it is too long."""
    return _NOT_TEXT.sub("\N{REPLACEMENT CHARACTER}", text)[: LONGEST // 4]


def topic_levels(stream: str) -> str:
    """A stream's name as levels of a topic, another for another name.

    Its slashes part levels. Written as %XX of their UTF-8 are `%`, `+`, `#`, what MQTT does not take as text, and slashes
    beyond 63; `%` alone is an empty level.
    """
    levels = _NOT_IN_A_TOPIC.sub(_percent, stream).split("/")
    levels[_LEVELS - 1 :] = ["%2F".join(levels[_LEVELS - 1 :])] if len(levels) >= _LEVELS else []
    return "/".join(level or "%" for level in levels)


def _percent(found: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", "surrogatepass"))
