"""How far behind the group's end of the log we are: as fetches tell it, and asked for where nothing is fetched."""

import math
import time
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

_LOOK_EVERY = 1.0
"""Seconds between looks at what the fetches told."""
_ASK_EVERY = 10.0
"""Seconds between requests for the ends of the logs, while the source holds: paused partitions are not fetched."""
_ASK = 2.0
"""Seconds that such a request may take."""


class Lag:
    """Of one consumer; from the thread that owns it. `unread` may be read from any thread."""

    def __init__(self) -> None:
        self.unread: int | None = None
        """Messages of our partitions that were not handed to us yet; None while no fetch has told."""
        self.fetched = False
        """Whether, since the connection stands, a broker has answered a fetch of a partition of ours: then what is sent arrives."""
        self._looked = self._asked = -math.inf
        self._asked_ends: dict[TopicPartition, int] = {}

    def look(self, consumer: KafkaConsumer, *, holding: bool) -> None:
        """After a poll; most times it does nothing."""
        now = time.monotonic()
        if self.fetched and now - self._looked < _LOOK_EVERY:
            return
        self._looked = now
        found = _states(consumer)
        self.fetched = any(state is not None and state.highwater is not None for state in found.values())
        # not by consumer.position(): it may wait, and take an error that the next poll must raise
        states = {partition: state for partition, state in found.items() if state is not None and state.position is not None}
        if not holding:
            self._asked_ends = {}
        elif states and now - self._asked >= _ASK_EVERY:
            self._asked = now
            try:
                self._asked_ends = consumer.end_offsets(list(states), timeout_ms=int(1000 * _ASK))
            except KafkaError:  # the broker is away, of which the source speaks
                return
        unread = 0
        for partition, state in states.items():
            ends = [end for end in (state.highwater, self._asked_ends.get(partition)) if end is not None]
            if not ends:
                return  # not fetched yet
            unread += max(0, max(ends) - state.position.offset)
        self.unread = unread if states else None

    def forget(self, consumer: KafkaConsumer) -> None:
        """The connection is lost: what fetches told before says nothing of the next one."""
        self.fetched = False
        for state in _states(consumer).values():
            if state is not None:
                state.highwater = None


def _states(consumer: KafkaConsumer) -> dict[TopicPartition, Any]:
    """What the client knows of each partition of ours; None for one that is taken away this moment."""
    return {partition: consumer._subscription.assignment.get(partition) for partition in consumer.assignment()}
