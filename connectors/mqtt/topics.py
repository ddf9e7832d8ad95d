"""Topic templates: `plant/{stream}/sound` is read as `plant/+/sound`, and what stands at {stream} names the stream.

Source: MQTT 5.0, 4.7 "Topic Names and Topic Filters"; 4.8.2 "Shared Subscriptions".
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

from connectors.mqtt.text import text_mistake

PLACE = "{stream}"


@dataclass(frozen=True)
class Topic:
    """One entry of `topics`: a plain topic, one with wildcards, or a template. `text` is checked by `mistake`."""

    text: str

    @property
    def filter(self) -> str:
        """What is subscribed to."""
        return self.text.replace(PLACE, "+")

    @property
    def is_template(self) -> bool:
        return PLACE in self.text

    @property
    def has_wildcards(self) -> bool:
        """Other than {stream}: nobody can publish to it."""
        return "+" in self.text or "#" in self.text

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        meanings = {PLACE: "([^/]*)", "+": "[^/]*", "#": ".*"}
        pattern = "/".join(meanings.get(level, re.escape(level)) for level in self.text.split("/"))
        if self.text == "#":
            pattern = r"(?!\$).*"
        elif self.text.endswith("/#"):  # a/# matches a as well
            pattern = pattern.removesuffix("/.*") + "(?:/.*)?"
        elif self.text[0] in "+{":
            pattern = r"(?!\$)" + pattern  # wildcards do not match $SYS
        return re.compile(pattern, re.DOTALL)

    def matches(self, topic: str) -> bool:
        return self._pattern.fullmatch(topic) is not None

    def stream(self, topic: str) -> str | None:
        """What stands at {stream} in a topic that matches; None where this is no template, or nothing stands there."""
        found = self._pattern.fullmatch(topic)
        return (found[1] or None) if found and self.is_template else None

    def fill(self, stream: str | None) -> str:
        """The topic to publish to. Raises ValueError, in words, where there is none."""
        if self.has_wildcards:
            raise ValueError(f"nobody can publish to {self.text!r}, which has wildcards: write {PLACE} for the level that names the stream")
        if not self.is_template:
            return self.text
        if not stream:
            raise ValueError(f"topic {self.text!r} needs a stream (--stream)")
        if mistake := level_mistake(stream):
            raise ValueError(f"stream {stream!r} does not fit into topic {self.text!r}: {mistake}")
        return self.text.replace(PLACE, stream)


def overlap(topics: Sequence[str]) -> tuple[str, str] | None:
    """Two of them that one topic can match: the broker may then send its messages twice."""
    levels = [(text, Topic(text).filter.split("/")) for text in topics]
    return next(((one, other) for (one, ours), (other, theirs) in combinations(levels, 2) if _overlap(ours, theirs)), None)


def _overlap(ours: Sequence[str], theirs: Sequence[str]) -> bool:
    for mine, yours in zip(ours, theirs, strict=False):
        if mine == "#" or yours == "#":
            return True
        if mine not in (yours, "+") and yours != "+":
            return False
    return len(ours) == len(theirs) or (ours[len(theirs) :] or theirs[len(ours) :]) == ["#"]


def level_mistake(level: str) -> str | None:
    """What is wrong with text that shall stand between two slashes of a topic."""
    return "a level holds no /, + or #" if re.search(r"[/+#]", level) else text_mistake(level)


def mistake(text: str) -> str | None:
    """What is wrong with an entry of `topics`, in words."""
    if wrong := text_mistake(text):
        return wrong
    if text.startswith("$share/"):
        return "a shared subscription is written as share_group"
    levels = text.split("/")
    for number, level in enumerate(levels):
        if level != PLACE and re.search(r"[{}]", level):
            return f"{level!r}: only {PLACE} may stand in braces, as a level of its own"
        if len(level) > 1 and re.search(r"[+#]", level):
            return f"{level!r}: a wildcard (+ or #) is a level of its own"
        if level == "#" and number < len(levels) - 1:
            return "# stands at the end only"
    return f"{PLACE} stands twice" if levels.count(PLACE) > 1 else None
