"""What three threads share: whose partitions are ours, what is out of each, and how many places are free.

Our consumer thread takes places and commits, the event loop hands out and settles, the client's network thread brings rebalances.
"""

import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.subscription_state import AsyncConsumerRebalanceListener
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata

from connectors.ledger import Ledger
from monitor.ports import Context

_LOOK = 0.02
"""Seconds between looks whether a revoked partition is drained."""


class Partition:
    """One stay of a partition with us."""

    def __init__(self) -> None:
        self.ledger: Ledger[int] = Ledger()
        self.reading = True
        """False once it is being taken away: what is read of it but not handed out is dropped, for its next owner to read."""


class Partitions:
    """Thread-safe."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._enough = max(1, places // 4)
        self._taken = 0
        self._open: dict[TopicPartition, Partition] = {}
        self._closing = False
        self._change = threading.Condition()

    def wait_for_places(self, seconds: float, gather: float) -> int:
        """Free places: waits up to `seconds` for the first and then up to `gather` for a quarter of all."""
        with self._change:
            self._change.wait_for(lambda: self._closing or self._taken < self._places, seconds)
            if 0 < self._places - self._taken < self._enough:
                self._change.wait_for(lambda: self._closing or self._places - self._taken >= self._enough, gather)
            return self._places - self._taken

    def wake(self) -> None:
        """We are closing: wait for nothing any more."""
        with self._change:
            self._closing = True
            self._change.notify_all()

    def take(self, group: Sequence[Any]) -> None:
        """A place for each of a group that goes to the event loop."""
        with self._change:
            self._taken += len(group)

    def give_back(self) -> None:
        """The place of a message that is not handed out."""
        with self._change:
            self._free()

    def hand_out(self, partition: Partition, offset: int) -> bool:
        """Track it; or give its place back and return False where its partition is being taken away."""
        with self._change:
            if partition.reading:
                partition.ledger.track(offset)
            else:
                self._free()
            return partition.reading

    def settle(self, partition: Partition, offset: int) -> None:
        with self._change:
            partition.ledger.settle(offset)
            self._free()

    def moved(self, partition: Partition) -> bool:
        """Whether its stay with us is over."""
        return partition.ledger.dead

    def _free(self) -> None:
        self._taken -= 1
        if self._places - self._taken in (1, self._enough):
            self._change.notify_all()

    @property
    def taken(self) -> int:
        """Messages that are read and not settled."""
        return self._taken

    @property
    def full(self) -> bool:
        return self._taken >= self._places

    def get(self, partition: TopicPartition) -> Partition | None:
        """Its stay with us; None where it is ours no longer."""
        with self._change:
            return self._open.get(partition)

    def assign(self, partitions: Iterable[TopicPartition]) -> None:
        with self._change:
            self._close(self._open[partition] for partition in partitions if partition in self._open)
            self._open.update((partition, Partition()) for partition in partitions)

    def renew(self, partition: TopicPartition) -> None:
        """Offsets begin elsewhere: nothing from before may move the watermark."""
        self.assign([partition])

    def quiesce(self, partitions: Iterable[TopicPartition]) -> bool:
        """Hand out nothing more of these; False where none is open."""
        with self._change:
            stays = [self._open[partition] for partition in partitions if partition in self._open]
            for stay in stays:
                stay.reading = False
            return bool(stays)

    def outstanding(self, partitions: Iterable[TopicPartition]) -> int:
        with self._change:
            return sum(self._open[partition].ledger.outstanding for partition in partitions if partition in self._open)

    def watermarks(self, partitions: Iterable[TopicPartition] | None = None) -> dict[TopicPartition, tuple[Partition, int]]:
        """The last settled offset of each (by default of all) whose broker does not know it yet."""
        with self._change:
            wanted = list(self._open) if partitions is None else [partition for partition in partitions if partition in self._open]
            uncommitted = ((partition, self._open[partition], self._open[partition].ledger.uncommitted) for partition in wanted)
            return {partition: (stay, offset) for partition, stay, offset in uncommitted if offset is not None}

    def committed(self, watermarks: dict[TopicPartition, tuple[Partition, int]]) -> None:
        with self._change:
            for stay, offset in watermarks.values():
                stay.ledger.committed(offset)

    def kill(self, partitions: Iterable[TopicPartition] | None = None) -> None:
        """These (by default all) are ours no longer: a late settle commits nothing."""
        with self._change:
            gone = list(self._open) if partitions is None else [partition for partition in partitions if partition in self._open]
            self._close(self._open.pop(partition) for partition in gone)

    def _close(self, stays: Iterable[Partition]) -> None:
        for stay in stays:
            stay.reading = False
            stay.ledger.kill()


class Listener(AsyncConsumerRebalanceListener):  # type: ignore[misc]
    """What a rebalance does. Asynchronous on the client's loop, so that heartbeats go on while partitions drain."""

    def __init__(self, consumer: KafkaConsumer, partitions: Partitions, context: Context, *, drain: float, closing: threading.Event) -> None:
        self._consumer = consumer
        self._partitions = partitions
        self._context = context
        self._drain = drain
        self._closing = closing

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        self._partitions.assign(assigned)
        if self._partitions.full:
            self._consumer.pause(*assigned)  # the poll that we are in would hand records of them out

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        """Drain for `drain` seconds and commit while they are still ours."""
        if not self._partitions.quiesce(revoked):
            return  # the client is being closed, after its last commit
        end = time.monotonic() + self._drain
        while self._partitions.outstanding(revoked) and time.monotonic() < end and not self._closing.is_set():
            await self._consumer._net.sleep(_LOOK)
        if watermarks := self._partitions.watermarks(revoked):
            try:
                await self._consumer.commit_async(next_offsets(watermarks))
            except KafkaError as error:
                self._context.report("commit_failed", source=self._context.name, cause=type(error).__name__, error=str(error))
        unsettled = self._partitions.outstanding(revoked)
        self._partitions.kill(revoked)
        self._context.report("partitions_revoked", source=self._context.name, partitions=_names(revoked))
        if unsettled:
            self._context.report("unsettled_at_revoke", source=self._context.name, partitions=_names(revoked), unsettled=unsettled)

    async def on_partitions_lost(self, lost: set[TopicPartition]) -> None:
        """They may be another member's already."""
        self._partitions.kill(lost)
        self._context.report("partitions_lost", source=self._context.name, partitions=_names(lost))


def next_offsets(watermarks: dict[TopicPartition, tuple[Partition, int]]) -> dict[TopicPartition, OffsetAndMetadata]:
    """Kafka is told the offset to go on from."""
    return {partition: OffsetAndMetadata(offset + 1, "", -1) for partition, (_, offset) in watermarks.items()}


def _names(partitions: Iterable[TopicPartition]) -> list[str]:
    return sorted(f"{partition.topic}/{partition.partition}" for partition in partitions)
