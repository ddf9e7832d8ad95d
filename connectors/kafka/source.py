"""Messages from Kafka, as a member of a consumer group.

One thread owns the consumer, which is not thread-safe, and passes groups of records to the event loop: a hop per group. The
client runs its network in a thread of its own; rebalance callbacks come from there, while our thread waits in `poll`.
"""

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator
from functools import partial
from importlib.util import find_spec
from typing import Any, Self

import anyio
import anyio.to_thread
from kafka import KafkaConsumer, TopicPartition
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import (
    CommitFailedError,
    CorruptRecordError,
    KafkaError,
    LogTruncationError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    RebalanceInProgressError,
    RetriableError,
)

from connectors.kafka.connection import client_arguments, complete_join, disconnected, is_connected
from connectors.kafka.diagnosis import check
from connectors.kafka.lag import Lag
from connectors.kafka.options import KafkaSourceOptions
from connectors.kafka.partitions import Listener, Partition, Partitions, next_offsets
from monitor.errors import Backoff, ConfigError, Disconnected
from monitor.ports import Context, Delivery
from monitor.types import Message

_POLL = 0.2
"""Seconds that a poll waits: the client cannot be woken, so this bounds how soon a stop is seen."""
_GATHER = 0.005
"""Seconds to wait for a quarter of the places, so that a slow trickle of settlements does not make groups of one."""
_UNREACHABLE = 15.0
"""Seconds without a connection to brokers that let us in, after which the client is made anew."""
_STEADY = 5.0
"""Seconds that a connection without messages must hold to count as one: what we may not read fails only after connecting."""
_CLOSE = 5.0
"""Seconds that closing may take where the broker does not answer."""
_SAY_AGAIN = 600.0
"""Seconds after which a corrupt record that still holds its partition is named again."""

Group = list[tuple[Partition, int, Message]]


class KafkaSource:
    """See monitor.ports.Source. A message's position is "partition-offset"."""

    def __init__(self, options: KafkaSourceOptions, context: Context) -> None:
        self._options = options
        self._context = context
        self._partitions = Partitions(options.max_in_flight)
        self._stopping = False
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._missing: set[str] = set()
        """Topics that were reported as missing."""
        self._lost: str | None = None
        """The cause that was reported last; None while connected."""
        self._said = False
        """Whether it was ever said that we are connected."""
        self._corrupt_said: dict[tuple[str | None, int | None, int | None], float] = {}
        self._committing: dict[TopicPartition, tuple[Partition, int]] = {}
        self._lag = Lag()

    async def __aenter__(self) -> Self:
        if find_spec("crc32c") is None:
            raise ConfigError("the package crc32c is missing: without it kafka-python checks sums in pure Python, 25 times slower")
        client_arguments(self._options)  # unusable files are a mistake in the configuration, not a broker that is away
        self._loop = asyncio.get_running_loop()
        self._send, self._received = anyio.create_memory_object_stream[Group | BaseException](math.inf)  # the places bound it
        if self._stopping:
            self._send.close()
        self._thread = threading.Thread(target=self._run, name=f"kafka source {self._context.name}", daemon=True)
        self._thread.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._thread is not None
        await self.stop()
        self._closing.set()
        self._partitions.wake()
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._thread.join, 2 * _CLOSE)  # it may be in a call that knows no time limit
        self._received.close()

    async def stop(self) -> None:
        self._stopping = True
        if self._thread is not None:
            self._send.close()

    def lag(self) -> int | None:
        unread = self._lag.unread
        return None if unread is None else unread + self._partitions.taken

    def listening(self) -> bool:
        """Not without partitions: a rebalance, or another member's turn."""
        return self._lag.fetched

    async def __aiter__(self) -> AsyncIterator[Delivery]:
        async for group in self._received:
            if isinstance(group, BaseException):
                raise group
            for partition, offset, message in group:
                if not self._stopping and self._partitions.hand_out(partition, offset):
                    yield Delivery(message, partial(self._partitions.settle, partition, offset), partial(self._partitions.moved, partition))
                elif self._stopping:
                    self._partitions.give_back()

    def _pass_on(self, group: Group | BaseException) -> None:
        if not self._stopping:
            self._send.send_nowait(group)

    # From here on: our thread.

    def _run(self) -> None:
        backoff = Backoff(most=5.0)
        try:
            while not self._closing.is_set():
                try:
                    check(self._options)
                    self._serve(backoff)
                except Disconnected as error:
                    self._report_lost(error)
                except ConfigError as error:  # a secret that could be read at start-up
                    self._report_lost(Disconnected(str(error), "not_authorised"))
                except KafkaError as error:
                    self._report_lost(disconnected(error, self._options))
                self._closing.wait(backoff.delay())
        except BaseException as error:  # a bug: the daemon must hear of it, or it would wait for ever
            self._loop.call_soon_threadsafe(self._pass_on, error)

    def _serve(self, backoff: Backoff) -> None:
        """Read with one client until we close or it fails."""
        options = self._options
        consumer = KafkaConsumer(
            **client_arguments(options),
            group_id=options.group_id,
            group_instance_id=options.group_instance_id,
            enable_auto_commit=False,
            auto_offset_reset="none",  # we count what is missing before we reset
            partition_assignment_strategy=(CooperativeStickyAssignor,),
            session_timeout_ms=int(1000 * options.session_timeout),
            heartbeat_interval_ms=int(1000 * min(3.0, options.session_timeout / 4)),
            max_poll_interval_ms=int(1000 * options.max_poll_interval),
            fetch_max_wait_ms=max(1, int(1000 * options.fetch_max_wait)),
            fetch_max_bytes=options.fetch_max_bytes,
            max_partition_fetch_bytes=options.max_partition_fetch_bytes,
            metadata_max_age_ms=int(1000 * options.metadata_max_age),
        )
        self._lag = Lag()
        try:
            self._know_topics(consumer)
            listener = Listener(consumer, self._partitions, self._context, drain=options.drain, closing=self._closing)
            consumer.subscribe(topics=options.topics, listener=listener)
            self._read(consumer, backoff)
        finally:
            self._lag.fetched = False
            try:
                self._finish(consumer)
            finally:
                self._partitions.kill()
                consumer.close(timeout_ms=int(1000 * _CLOSE))

    def _know_topics(self, consumer: KafkaConsumer) -> None:
        """Fetch what partitions there are before joining; say which topics are missing.

        A leader that assigns before its metadata have come gives nobody anything, and notes them as if it had known: the group
        then stays without partitions until their number changes (kafka-python 3.0.12: seen under load, one join in five).
        """
        for topic in self._options.topics:
            if not consumer.partitions_for_topic(topic) and topic not in self._missing:
                self._missing.add(topic)
                self._context.report(
                    "topic_missing",
                    source=self._context.name,
                    topic=topic,
                    bootstrap_servers=self._options.bootstrap_servers,
                    mend="create it, or mend `topics`; it is read as soon as it is there",
                )

    def _read(self, consumer: KafkaConsumer, backoff: Backoff) -> None:
        started = committed = connected = time.monotonic()
        while not self._closing.is_set():
            free = 0 if self._stopping else self._partitions.wait_for_places(_POLL, _GATHER)
            self._hold_or_resume(consumer, free)
            complete_join(consumer)
            try:
                records = consumer.poll(timeout_ms=int(1000 * (_POLL if free else _POLL / 10)), max_records=max(1, free))
            except NoOffsetForPartitionError as error:
                self._begin(consumer, error.args[0])
                continue
            except OffsetOutOfRangeError as error:
                self._skip_gap(consumer, error.args[0])
                continue
            except LogTruncationError as error:
                self._skip_gap(consumer, {partition: consumer.position(partition) for partition in error.divergent_offsets})
                continue
            except CorruptRecordError as error:
                self._report_corrupt(consumer, error)
                raise  # the client cannot go on behind it
            now = time.monotonic()
            if records:
                self._hand_over(consumer, records)
            if is_connected(consumer):
                connected = now
                self._lag.look(consumer, holding=not free)
                if records or self._lag.fetched or now - started > _STEADY:
                    backoff.reset()
                    self._report_back()
                if now - committed >= self._options.commit_interval:
                    committed = now
                    self._commit(consumer)
            elif not records:
                self._lag.forget(consumer)
                self._ride_out(now - connected, backoff)

    def _ride_out(self, seconds: float, backoff: Backoff) -> None:
        """No connection: the client tries again by itself, and keeps its positions. Find out why, and say so once."""
        try:
            check(self._options)
        except Disconnected as error:
            self._report_lost(error)
            self._closing.wait(backoff.delay())
            return
        if seconds > _UNREACHABLE:  # we are let in, but the client is not: it remembers a refusal for ever
            raise Disconnected(f"{self._options.bootstrap_servers}: the client found no way back in {seconds:.0f} s", "lost")

    def _hold_or_resume(self, consumer: KafkaConsumer, free: int) -> None:
        """A paused partition keeps what was fetched of it, so that holding costs no second fetch (read in kafka-python 3.0.12)."""
        paused = consumer.paused()
        if free and paused:
            consumer.resume(*paused)
        elif not free and (going := consumer.assignment() - paused):
            consumer.pause(*going)

    def _hand_over(self, consumer: KafkaConsumer, records: dict[TopicPartition, list[Any]]) -> None:
        received = time.time()
        group: Group = []
        for partition, batch in records.items():
            owner = self._partitions.get(partition)
            if owner is None:  # lost while we polled, or its assignment was not told us yet: they come again, wherever it is now
                if partition in consumer.assignment():
                    consumer.seek(partition, batch[0].offset)
                continue
            for record in batch:
                message = Message(
                    source=self._context.name,
                    topic=record.topic,
                    position=f"{record.partition}-{record.offset}",
                    payload=record.value or b"",
                    received=received,
                    key=record.key,
                    headers=tuple((name, value or b"") for name, value in record.headers),
                    timestamp=record.timestamp / 1000 if record.timestamp >= 0 else None,
                )
                group.append((owner, record.offset, message))
        self._partitions.take(group)
        self._loop.call_soon_threadsafe(self._pass_on, group)

    def _begin(self, consumer: KafkaConsumer, partitions: set[TopicPartition]) -> None:
        """The group has never committed these."""
        look = consumer.beginning_offsets if self._options.auto_offset_reset == "earliest" else consumer.end_offsets
        for partition, offset in look(list(partitions), timeout_ms=10_000).items():
            consumer.seek(partition, offset)

    def _skip_gap(self, consumer: KafkaConsumer, offsets: dict[TopicPartition, int]) -> None:
        """Retention deleted what we would have read next (or the topic was made anew): count it, go on from what there is."""
        for partition, first in consumer.beginning_offsets(list(offsets), timeout_ms=10_000).items():
            missing = max(0, first - offsets[partition])
            self._context.report(
                "offsets_gone", source=self._context.name, topic=partition.topic, partition=partition.partition, missing=missing, going_on_from=first
            )
            self._partitions.renew(partition)
            consumer.seek(partition, first)

    def _commit(self, consumer: KafkaConsumer) -> None:
        """Begin to commit what is settled; `poll` calls back. One at a time, so that no older commit overtakes a newer one."""
        if not self._committing and (watermarks := self._partitions.watermarks()):
            self._committing = watermarks
            consumer.commit_async(next_offsets(watermarks), self._committed)

    def _committed(self, _: object, outcome: object) -> None:
        watermarks, self._committing = self._committing, {}
        if isinstance(outcome, RetriableError | RebalanceInProgressError):
            pass  # the next interval tries again, or the listener has committed them
        elif isinstance(outcome, Exception):
            self._report_commit_failed(outcome)
        else:
            self._partitions.committed(watermarks)

    def _finish(self, consumer: KafkaConsumer) -> None:
        """The last commit of this client. When another member leaves at the same moment, the rebalance is completed first."""
        self._committing = {}
        end = time.monotonic() + _CLOSE
        while watermarks := self._partitions.watermarks():
            if self._lost is not None and not is_connected(consumer):
                return
            try:
                consumer.commit(next_offsets(watermarks), timeout_ms=int(1000 * _CLOSE))
                self._partitions.committed(watermarks)
            except RebalanceInProgressError as error:
                if time.monotonic() > end:
                    self._report_commit_failed(error)
                    return
                self._rejoin(consumer)
            except KafkaError as error:
                self._report_commit_failed(error)
                return

    def _rejoin(self, consumer: KafkaConsumer) -> None:
        """Nothing is handed out any more: what new partitions bring is left for their next owner."""
        try:
            if assigned := consumer.assignment():
                consumer.pause(*assigned)
            complete_join(consumer)
            consumer.poll(timeout_ms=100)
        except KafkaError:  # of reading, which is over; the commit that follows speaks for itself
            pass

    def _report_commit_failed(self, error: Exception) -> None:
        cause = "rebalanced" if isinstance(error, CommitFailedError) else type(error).__name__
        self._context.report("commit_failed", source=self._context.name, cause=cause, error=str(error))

    def _report_lost(self, error: Disconnected) -> None:
        if self._lost != error.cause and not self._closing.is_set():
            self._lost = error.cause
            self._context.report("source_disconnected", source=self._context.name, cause=error.cause, error=str(error))

    def _report_corrupt(self, consumer: KafkaConsumer, error: CorruptRecordError) -> None:
        """Nothing is skipped: its partition holds here, and the others go on until the next try."""
        part = consumer._fetcher._next_partition_records  # the error does not say where; None where not even a batch can be read
        topic, partition, offset = (*part.topic_partition, part.next_fetch_offset) if part else (None, None, None)
        if self._corrupt_said.get((topic, partition, offset), -math.inf) > time.monotonic() - _SAY_AGAIN:
            return
        self._corrupt_said = {(topic, partition, offset): time.monotonic()}
        cause = "checksum" if "crc" in str(error) else "structure"
        self._context.report(
            "record_corrupt", source=self._context.name, topic=topic, partition=partition, offset=offset, cause=cause, error=str(error)
        )

    def _report_back(self) -> None:
        if self._lost is not None or not self._said:
            self._context.report("source_connected", quiet=self._lost is None, source=self._context.name)
            self._lost, self._said = None, True
