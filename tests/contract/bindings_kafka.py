"""Kafka in the contract suites: a topic of its own for each test, on the broker that the session found."""

import json
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, TopicPartition

from connectors.kafka.options import KafkaDeadLetterOptions, KafkaSinkOptions, KafkaSourceOptions
from connectors.letters import letter_of
from contract.bindings import AnyBytes, Letter, as_found
from kafka_plant import fresh, make_topic


class _Place:
    """One partition: what the suites call the order is that of a partition."""

    def __init__(self, request: pytest.FixtureRequest, tmp_path: Path) -> None:
        self.broker = request.getfixturevalue("kafka")
        self.topic = make_topic(self.broker, "contract")
        self.folder = tmp_path

    def records(self) -> list[Any]:
        """Every record of the topic."""
        consumer = KafkaConsumer(bootstrap_servers=self.broker.plain, group_id=None, enable_auto_commit=False)
        try:
            partition = TopicPartition(self.topic, 0)
            consumer.assign([partition])
            end = consumer.end_offsets([partition])[partition]
            consumer.seek_to_beginning(partition)
            records: list[Any] = []
            while not records or records[-1].offset < end - 1:
                found = consumer.poll(timeout_ms=1000).get(partition, [])
                if not found and not end:
                    break
                records += found
            return records
        finally:
            consumer.close()


class KafkaSourceBinding(AnyBytes, _Place):
    def __init__(self, request: pytest.FixtureRequest, tmp_path: Path) -> None:
        super().__init__(request, tmp_path)
        self.group = fresh("contract")

    def options(self, **more: Any) -> KafkaSourceOptions:
        # Tansu keeps the first member of a group waiting for half the session timeout.
        return KafkaSourceOptions(bootstrap_servers=self.broker.plain, topics=(self.topic,), group_id=self.group, session_timeout=6.0, **more)


class KafkaSinkBinding(_Place):
    ordered = True

    def options(self, **more: Any) -> KafkaSinkOptions:
        return KafkaSinkOptions(bootstrap_servers=self.broker.plain, topic=self.topic, **more)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(record.value) for record in self.records()]


class KafkaDeadLetterBinding(_Place):
    spills = True

    def options(self, **more: Any) -> KafkaDeadLetterOptions:
        return KafkaDeadLetterOptions(bootstrap_servers=self.broker.plain, topic=self.topic, spill=self.folder / "spill", **more)

    def letters(self) -> list[Letter]:
        return [as_found(letter_of(record.value, record.key, tuple(record.headers))) for record in self.records()]


SOURCES = {"kafka": KafkaSourceBinding}
SINKS = {"kafka": KafkaSinkBinding}
DEAD_LETTERS = {"kafka": KafkaDeadLetterBinding}
