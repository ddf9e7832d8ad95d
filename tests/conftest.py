"""What all tests share: the asyncio backend, and what a run requires of its machine."""

import contextlib
import gc
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from brokers import ROOT, Broker, NoBroker, find
from certificates import issue
from mosquitto import Mosquitto

_FOUND = pytest.StashKey[list[str]]()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def pytest_configure(config: pytest.Config) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in what it starts in the background, and so would all our processes
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
def lacks() -> Callable[[str, str], None]:
    """`lacks("deploy", "no promtool on the PATH")`: skips by name, or fails where that is required."""
    return _lacks


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


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Mosquitto's TLS listeners stand on; tests that want it ask for a broker."""
    folder = tmp_path_factory.mktemp("certificates")
    issue(folder)
    return folder


@pytest.fixture(scope="session")
def mosquitto_new(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Mosquitto]:
    """Makes a Mosquitto that is not started: `mosquitto_new(max_queued_messages=10, acl=...)`."""
    missing = Mosquitto.missing()
    if missing:
        _lacks("mosquitto", missing)
    folder: Path = request.getfixturevalue("certificates")
    return lambda **settings: Mosquitto(tmp_path_factory.mktemp("mosquitto"), folder, **settings)


@pytest.fixture(scope="session")
def mosquitto(mosquitto_new: Callable[..., Mosquitto]) -> Iterator[Mosquitto]:
    """The broker that all tests share: use topics and client ids of your own, and do not stop it."""
    broker = mosquitto_new()
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


@pytest.fixture
def mosquitto_with(mosquitto_new: Callable[..., Mosquitto]) -> Iterator[Callable[..., Mosquitto]]:
    """`mosquitto_with(max_queued_messages=10, acl=...)`: a started broker of the test's own, which it may stop, kill and start."""
    with contextlib.ExitStack() as ending:

        def started(**settings: object) -> Mosquitto:
            broker = mosquitto_new(**settings)
            broker.start()
            ending.callback(broker.stop)
            return broker

        yield started


@pytest.fixture
def own_mosquitto(mosquitto_with: Callable[..., Mosquitto]) -> Mosquitto:
    """A broker of the test's own, which it may stop, kill and start."""
    return mosquitto_with()


@pytest.fixture
def one_seeded_thread() -> Iterator[None]:
    """torch on one thread, which small networks like best, with random numbers that begin anew in each test."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        yield
    torch.set_num_threads(threads)
