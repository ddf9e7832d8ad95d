"""Two daemons in one consumer group."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from brokers import Broker
from integration.daemon import Daemon, wait_until
from integration.plant import MODEL, Plant


@pytest.fixture
def wide(apache_kafka: Broker) -> Iterator[Plant]:
    """A plant whose topic has four partitions."""
    plant = Plant(apache_kafka, partitions=4)
    yield plant
    plant.close()


def test_one_of_two_daemons_is_killed_and_rebalances_happen_with_batches_in_flight(wide: Plant, install: Callable[..., Path]) -> None:
    def member(name: str) -> Daemon:
        tables = wide.tables(
            daemon={"site": name},
            sources__cameras={"group_instance_id": f"member-{name}", "session_timeout": 3.0},
            detectors__bottle={"options": {**MODEL, "delay": 0.1}},  # seconds per batch of 8: one is always in flight
        )
        return Daemon(install(tables, name), name)

    def scored_by(name: str) -> int:
        return sum(event["source"] == f"/{name}/bottle" for event in wide.read("score"))

    with member("one") as one, member("two") as two:
        with wide.streaming(60, seed=8):
            one.start()
            wait_until(lambda: scored_by("one") > 60, seconds=90, what=one.tail)
            two.start()
            wait_until(lambda: scored_by("two") > 60, seconds=90, what=two.tail)
            two.kill()
            alone = scored_by("one")
            wait_until(lambda: scored_by("one") > alone + 200, seconds=90, what=one.tail)
            again = scored_by("two")
            two.start()
            wait_until(lambda: scored_by("two") > again, seconds=90, what=two.tail)
            one.drain()
        wide.wait(seconds=90)
        two.drain()
    assert one.events("partitions_revoked") or one.events("partitions_lost")  # lost: this machine kept it waiting for a session's length
    wide.audit(innocents=1)
