"""How long to wait before the next attempt."""

import random
from collections.abc import Callable


class Backoff:
    """Delays in seconds that double from `first` up to `most`, each shortened at random by up to half.

    The jitter keeps a fleet that lost one broker from coming back in step. `reset` after a success.
    """

    def __init__(self, first: float = 0.1, most: float = 10.0, *, uniform: Callable[[float, float], float] = random.uniform) -> None:
        if not 0 < first <= most:
            raise ValueError(f"first = {first} must be above 0 and at most {most}")
        self._first = first
        self._most = most
        self._uniform = uniform
        self._next = first

    def delay(self) -> float:
        """The delay before the next attempt."""
        delay = self._next
        self._next = min(2 * delay, self._most)
        return delay * self._uniform(0.5, 1.0)

    def reset(self) -> None:
        """Begin again at `first`."""
        self._next = self._first
