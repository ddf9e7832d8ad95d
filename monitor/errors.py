"""The kinds of error, told apart by what the daemon does about them (architecture rule 8).

    read -> decode -> prepare -> score -> judge -> publish -> settle
     |        |          |                            |
     |        BadSample  BadSample                    Rejected: never taken; without its map, else dead letter
     Disconnected: back off, reconnect                Disconnected: back off, send again

Anything else is a bug or a broken model: rule 9 decides whether the sample or the model is at fault.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

BadReason = Literal["undecodable", "too_large", "empty", "unsupported", "lying_header", "failed", "rejected"]
"""Why a message went to the dead letter: the closed list of the public contract.

undecodable: the bytes are not what they say or sniff as. too_large: beyond max_bytes, max_pixels or max_seconds.
empty: no bytes, no pixels or no sound. unsupported: a content type or sensor that nothing here reads.
lying_header: a header contradicts the payload or cannot be read. failed: raises or scores as not finite, alone.
rejected: an event that a sink will never take.
"""


class MonitorError(Exception):
    """Anything that this project raises on purpose. The text is written for an operator."""


class ConfigError(MonitorError):
    """Refuse to start, exit 2. Holds every mistake found, each `path in monitor.toml: what was expected`."""

    def __init__(self, *mistakes: str) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


class BadSample(MonitorError):
    """This message can never be scored: dead letter, settle, go on."""

    def __init__(self, reason: BadReason, error: str) -> None:
        super().__init__(error)
        self.reason: BadReason = reason


class Disconnected(MonitorError):
    """The other side is away or does not let us in: back off with jitter and try again.

    `cause` is what the operator must tell apart.
    """

    def __init__(self, error: str, cause: Literal["refused", "not_authorised", "unknown_ca", "tls", "timeout", "lost"]) -> None:
        super().__init__(error)
        self.cause = cause


class Rejected(MonitorError):
    """The other side will never take these events; all others of the same `send` are confirmed.

    `events` names them by (type, id): the score and the alert of one sample share an id. Empty where a Sender raises it.
    """

    def __init__(self, error: str, events: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(error)
        self.events = tuple(events)


class ModelRefused(MonitorError):
    """A model folder that must not serve: changed bytes, missing files, a newer format, scores that do not repeat."""


class DeviceLost(MonitorError):
    """The device that scores is gone: stop without settling, exit 1."""


class ModelBroken(MonitorError):
    """A loaded model no longer repeats its reference scores: stop without settling, exit 1."""


def leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    """Every error in a group of groups: what concurrent tasks raised."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from leaves(error)
        else:
            yield error


class Backoff:
    """What to wait while Disconnected: delays in seconds that double from `first` up to `most`, each shortened at random by up to half.

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
