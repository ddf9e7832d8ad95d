"""Records in order to a broker that refuses some for their size."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from monitor.errors import Rejected
from monitor.ports import Report
from monitor.types import Event


class Sized(Protocol):
    @property
    def value(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Refused:
    """The broker will never take this record."""

    error: str


R = TypeVar("R", bound=Sized)
Taken = TypeVar("Taken")
Shrink = Callable[[int, Refused], R | None]
"""`shrink(index, refused)`: what goes instead of a refused record; None for nothing."""


class Shrinking(Generic[R, Taken]):
    """`send(records)` returns for each what the broker says of a record that it took, or Refused.

    A record larger than any that was taken may be refused: it goes alone, so that the order holds and the refusal is its own.
    """

    def __init__(self, send: Callable[[Sequence[R]], list[Taken | Refused]]) -> None:
        self._send = send
        self.taken = 0
        """Bytes of the largest value that the broker has taken."""

    def send(self, records: Sequence[R], shrink: Shrink[R]) -> list[Taken | Refused]:
        """What is refused goes again as `shrink` says. Raises what `send` raises."""
        outcomes: list[Taken | Refused] = []
        run: list[R] = []
        for record in records:
            if len(record.value) > self.taken:
                outcomes += self._send_run(run, len(outcomes), shrink)
                outcomes += self._send_run([record], len(outcomes), shrink)
                run = []
            else:
                run.append(record)
        return outcomes + self._send_run(run, len(outcomes), shrink)

    def _send_run(self, run: Sequence[R], start: int, shrink: Shrink[R]) -> list[Taken | Refused]:
        outcomes = self._send(run) if run else []
        for at, (record, outcome) in enumerate(zip(run, outcomes, strict=True)):
            if not isinstance(outcome, Refused):
                self.taken = max(self.taken, len(record.value))
            elif (smaller := shrink(start + at, outcome)) is not None:
                (outcomes[at],) = self._send([smaller])
        return outcomes


def send_events(
    events: Sequence[Event], record: Callable[[Event], R], send: Callable[[Sequence[R], Shrink[R]], Sequence[object]], report: Report
) -> None:
    """As monitor.ports.Sink: an alert that the broker refuses goes without its map (`map_dropped`).

    `record(event)` raises Rejected for an event that is too large even without its map.
    """
    rejected: list[Rejected] = []
    offered: list[tuple[Event, R]] = []
    for event in events:
        try:
            offered.append((event, record(event)))
        except Rejected as error:
            rejected.append(error)

    def shrink(at: int, refused: Refused) -> R | None:
        event, large = offered[at]
        if event.map is None:
            return None
        report("map_dropped", id=event.id, error=f"{len(large.value)} bytes: {refused.error}")
        return record(event.without_map())

    outcomes = send([large for _, large in offered], shrink)
    for (event, large), outcome in zip(offered, outcomes, strict=True):
        if isinstance(outcome, Refused):
            rejected.append(Rejected(f"event {event.id} has {len(large.value)} bytes: {outcome.error}", [(event.type, event.id)]))
    if rejected:
        raise Rejected("; ".join(map(str, rejected)), [name for error in rejected for name in error.events])


def reject_refused(events: Sequence[Event], outcomes: Sequence[object]) -> None:
    """Raises Rejected where the broker does not even take the record of a dead letter that was spilled."""
    refused = [(event, outcome.error) for event, outcome in zip(events, outcomes, strict=True) if isinstance(outcome, Refused)]
    if refused:
        raise Rejected("; ".join(f"{event.id}: {error}" for event, error in refused), [(event.type, event.id) for event, _ in refused])
