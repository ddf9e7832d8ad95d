"""Events for the tests of sinks that have a broker."""

from typing import Any

import numpy as np

from monitor.types import DeadLetter, Event, Message


def alert(number: int, *, key: str = "press/7/cam", side: int = 0, **data: Any) -> Event:
    """With a map of `side` x `side` random scores, which does not compress."""
    scores = np.random.default_rng(number).random((side, side), dtype=np.float32) if side else None
    return Event(
        id=f"bottle:cameras/t/0-{number}",
        type="monitor.alert.v1",
        source="/press_shop/bottle",
        key=key,
        time=1_790_000_000.0 + number,
        data={"number": number, **data},
        map=scores,
    )


def letter(payload: bytes, *, key: bytes | None = None, headers: tuple[tuple[str, bytes], ...] = (), error: str = "broken") -> Event:
    message = Message(source="cameras", topic="press", position="0-7", payload=payload, received=5.0, key=key, headers=headers)
    dead = DeadLetter(message=message, reason="undecodable", error=error)
    return Event(id=f"dead:{message.id}", type="monitor.dead_letter.v1", source="/press_shop", key="press", time=5.0, data={}, dead_letter=dead)
