"""What all tests share: the asyncio backend, and what a run requires of its machine."""

import gc
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from brokers import ROOT, Broker, NoBroker, find

_FOUND = pytest.StashKey[list[str]]()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_FOUND] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Says what the run stood on; `-ra` names what was skipped, and why."""
    for line in config.stash[_FOUND]:
        terminalreporter.write_line(line)


def _lacks(what: str, why: str) -> None:
    """Skip by name; where MONITOR_TEST_REQUIRE names it, fail."""
    if what in os.environ.get("MONITOR_TEST_REQUIRE", "").split(","):
        pytest.fail(f"{what} is required (MONITOR_TEST_REQUIRE), but: {why}")
    pytest.skip(f"no {what}: {why}")


@pytest.fixture(scope="session")
def data(request: pytest.FixtureRequest) -> Path:
    """The folder of the data sets: MONITOR_DATA, else ../shared/data."""
    folder = Path(os.environ.get("MONITOR_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        _lacks("data", f"{folder} is no folder")
    request.config.stash[_FOUND].append(f"data sets: {folder}")
    return folder


@pytest.fixture(scope="session")
def kafka(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """The broker that all tests share: use topics and groups of your own, and do not stop it."""
    yield from _broker(request, tmp_path_factory, "Kafka tests ran on")


@pytest.fixture(scope="module")
def own_kafka(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, kafka: Broker) -> Iterator[Broker]:
    """A second broker, for the tests of one file that stop and kill it; leave it running."""
    if "restart" not in kafka.abilities:
        _lacks("kafka", f"{kafka.name} cannot be stopped and started again")
    yield from _broker(request, tmp_path_factory, None)
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        gc.collect()  # the sockets that kafka-python left behind while it was away


@pytest.fixture
def kafka_with(kafka: Broker) -> Callable[[str], Broker]:
    """`kafka_with("limits")`, "security" or "restart": skips where the broker has no such ability."""

    def checked(ability: str) -> Broker:
        if ability not in kafka.abilities:
            _lacks("kafka", f"{kafka.name} has no {ability}")
        return kafka

    return checked


def _broker(request: pytest.FixtureRequest, folders: pytest.TempPathFactory, says: str | None) -> Iterator[Broker]:
    try:
        broker = find(folders.mktemp("kafka"))
    except NoBroker as error:
        _lacks("kafka", str(error))
        raise
    broker.start()
    if says:
        request.config.stash[_FOUND].append(f"{says} {broker.name}")
    try:
        yield broker
    finally:
        broker.stop()
