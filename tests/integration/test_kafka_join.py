"""What kafka-python forgets of a rebalance, and that we do not."""

import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import RebalanceInProgressError
from kafka.structs import OffsetAndMetadata

from brokers import Broker
from connectors.kafka.connection import complete_join
from integration.daemon import wait_until
from kafka_plant import fresh, make_topic


def forgotten(consumer: KafkaConsumer) -> bool:
    """Have its metadata ask for a join that is answered between two polls; whether that came about."""
    coordinator = consumer._coordinator
    coordinator._assignment_snapshot = {}
    while not coordinator.rejoining and coordinator.need_rejoin():
        consumer.poll(timeout_ms=0)
    if coordinator._join_task is not None:
        wait_until(lambda: coordinator._join_task.is_done, seconds=60, what="the join is answered")
    return bool(coordinator.rejoining and not coordinator.need_rejoin())


def test_a_join_that_is_answered_between_two_polls_is_completed(kafka: Broker) -> None:
    topic = make_topic(kafka, "join")
    partition = TopicPartition(topic, 0)
    offsets = {partition: OffsetAndMetadata(0, "", -1)}
    consumer = KafkaConsumer(topic, bootstrap_servers=kafka.plain, group_id=fresh("join"), enable_auto_commit=False)
    try:

        def joined() -> bool:
            consumer.poll(timeout_ms=100)
            return consumer.assignment() == {partition} and not consumer._coordinator.rejoining

        wait_until(joined, seconds=60, what="joined")
        wait_until(lambda: forgotten(consumer) or not joined(), seconds=60, what="a join is forgotten")
        assert consumer._coordinator.rejoining
        consumer.poll(timeout_ms=500)
        with pytest.raises(RebalanceInProgressError):  # else the client mends this itself by now, and complete_join is needed no more
            consumer.commit(offsets)

        complete_join(consumer)
        wait_until(joined, seconds=60, what="joined")
        consumer.commit(offsets)
        assert consumer.committed(partition) == 0
    finally:
        consumer.close()
