"""The other side of Kafka tests: topics, producers, committed offsets, and a source with its reports."""

import itertools
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic

from brokers import Broker
from connectors.kafka.options import KafkaSourceOptions
from connectors.kafka.source import KafkaSource
from monitor.ports import Context, Delivery
from monitor.telemetry import Telemetry

_numbers = itertools.count()


def fresh(name: str) -> str:
    """A name that no other test and no earlier run uses."""
    return f"{name}-{time.time_ns()}-{next(_numbers)}"


class Reports(Telemetry):
    """Keeps what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[str, dict[str, Any]]] = []

    def report(self, what: str, /, **facts: Any) -> None:
        super().report(what, **facts)
        self.told.append((what, facts))

    def facts(self, what: str) -> list[dict[str, Any]]:
        return [facts for name, facts in self.told if name == what]


@contextmanager
def admin(broker: Broker) -> Iterator[KafkaAdminClient]:
    client = KafkaAdminClient(bootstrap_servers=broker.plain)
    try:
        yield client
    finally:
        client.close()


def make_topic(broker: Broker, name: str, partitions: int = 1, **configuration: str) -> str:
    """`retention_ms="1"` is retention.ms."""
    topic = fresh(name)
    with admin(broker) as client:
        client.create_topics([NewTopic(topic, partitions, 1, topic_configs={key.replace("_", "."): value for key, value in configuration.items()})])
    return topic


def produce(broker: Broker, topic: str, values: Sequence[bytes], *, partition: int | None = None, **record: Any) -> list[str]:
    """Positions, in order."""
    producer = KafkaProducer(bootstrap_servers=broker.plain)
    try:
        futures = [producer.send(topic, value, partition=partition, **record) for value in values]
        return [f"{sent.partition}-{sent.offset}" for sent in (future.get(timeout=30) for future in futures)]
    finally:
        producer.close()


def committed(broker: Broker, group: str, topic: str, partition: int = 0) -> int | None:
    """The offset that the group would go on from."""
    consumer = KafkaConsumer(bootstrap_servers=broker.plain, group_id=group, enable_auto_commit=False)
    try:
        offset: int | None = consumer.committed(TopicPartition(topic, partition), timeout_ms=10_000)
        return offset
    finally:
        consumer.close()


def everything(broker: Broker, topic: str, count: int, seconds: float = 20) -> list[Any]:
    """All records of all partitions, once there are at least `count`."""
    consumer = KafkaConsumer(bootstrap_servers=broker.plain, auto_offset_reset="earliest", group_id=None)
    try:
        partitions = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic)]
        consumer.assign(partitions)
        records: list[Any] = []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = [record for batch in consumer.poll(timeout_ms=500).values() for record in batch]
            records += found
            if not found and len(records) >= count:
                break
        return records
    finally:
        consumer.close()


def source_options(broker: Broker, topic: str, group: str | None = None, **options: Any) -> KafkaSourceOptions:
    """Times as short as tests like them."""
    defaults = {
        "bootstrap_servers": broker.plain,
        "topics": (topic,),
        "group_id": group or fresh("group"),
        "commit_interval": 0.1,
        "connect_timeout": 2.0,
    }
    return KafkaSourceOptions(**{**defaults, **options})


@asynccontextmanager
async def reading(options: KafkaSourceOptions, reports: Reports | None = None) -> AsyncIterator[tuple[KafkaSource, AsyncIterator[Delivery]]]:
    reports = reports or Reports()
    async with KafkaSource(options, Context(name="cameras", report=reports.report)) as source:
        yield source, aiter(source)


async def take(deliveries: AsyncIterator[Delivery], count: int, *, settle: bool = False, seconds: float = 90) -> list[Delivery]:
    taken = []
    with anyio.fail_after(seconds):
        while len(taken) < count:
            delivery = await anext(deliveries)
            taken.append(delivery)
            if settle:
                delivery.settle()
    return taken


async def nothing(deliveries: AsyncIterator[Delivery], seconds: float = 0.7) -> bool:
    """Whether nothing is handed out for so long. The iteration is over afterwards."""
    with anyio.move_on_after(seconds):
        await anext(deliveries)
        return False
    return True


async def until(condition: Any, seconds: float = 90) -> None:
    """Wait for a condition (called in a worker thread) to hold."""
    with anyio.fail_after(seconds):
        while not await anyio.to_thread.run_sync(condition):  # noqa: ASYNC110 (the broker tells nobody)
            await anyio.sleep(0.05)
