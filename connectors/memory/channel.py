"""What a memory source reads and a memory sink writes, and how its other side behaves. Lives as long as the process."""

from dataclasses import dataclass, field
from functools import cache
from typing import Any

from monitor.errors import Disconnected
from monitor.types import DeadLetter, Message


@dataclass(slots=True)
class Channel:
    """Lists are only ever appended to, so that any thread may look."""

    name: str

    messages: list[Message] = field(default_factory=list)
    """What was sent; the index is the position."""
    settled: set[str] = field(default_factory=set)
    """Positions that were settled; they are not handed out again."""

    events: list[dict[str, Any]] = field(default_factory=list)
    """What was confirmed, doubles too, as consumers would read it."""
    letters: list[DeadLetter] = field(default_factory=list)
    """What was confirmed by the dead letter, doubles too."""

    failures: int = 0
    """The next `failures` calls of send fail; each counts one down."""
    away: bool = False
    """Every send and every look fails until it is False again."""
    delay: float = 0.0
    """Seconds that each send takes."""
    rejects: set[tuple[str, str]] = field(default_factory=set)
    """(type, id) of events that are never taken."""

    def fail(self) -> None:
        """Raises Disconnected as scripted."""
        self.look()
        if self.failures > 0:
            self.failures -= 1
            raise Disconnected(f"channel {self.name} fails once more", "lost")

    def look(self) -> None:
        """Raises Disconnected while it is away."""
        if self.away:
            raise Disconnected(f"channel {self.name} is away", "lost")


@cache
def channel(name: str) -> Channel:
    """The channel of that name, made on first use."""
    return Channel(name)


async def probe(_: object) -> list[str]:
    """A channel is always there."""
    return []
