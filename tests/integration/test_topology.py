"""One source into two detectors, two sources into one."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from brokers import Broker
from integration.daemon import Daemon
from integration.plant import Kind, Plant

STREAM: list[Kind] = ["normal", "defect", "bad", "normal", "raises"]


def test_a_message_is_settled_when_the_last_of_its_detectors_has_finished(plant: Plant, install: Callable[..., Path]) -> None:
    tables = plant.tables(detectors__lid={**plant.tables()["detectors.bottle"], "max_batch_size": 3, "max_wait": 0.5})
    plant.send(*STREAM * 8)
    with Daemon(install(tables)) as daemon:
        daemon.start()
        plant.wait("bottle", "lid")
        daemon.drain()
    plant.audit("bottle", "lid", doubles=False)
    letters = plant.dead_letters()
    assert {len(letters[sample_id]) for sample_id in plant.ids("bad")} == {1}, "decoded once for all its detectors"


@pytest.fixture
def two_lines(apache_kafka: Broker) -> Iterator[Plant]:
    plant = Plant(apache_kafka, sources=("cameras", "scanners"))
    yield plant
    plant.close()


def test_two_sources_into_one_detector_take_turns(two_lines: Plant, install: Callable[..., Path]) -> None:
    two_lines.send(*STREAM * 40)
    two_lines.send(*STREAM, source="scanners")
    with Daemon(install(two_lines.tables())) as daemon:
        daemon.start()
        two_lines.wait()
        daemon.drain()
    two_lines.audit(doubles=False)
    order = [event["data"]["sample"]["source"] for event in two_lines.read("score")]
    last = len(order) - 1 - order[::-1].index("scanners")
    assert last < len(order) - 60, "the flooding source was served first"
