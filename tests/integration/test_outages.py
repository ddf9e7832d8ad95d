"""Brokers that stop, are killed and come back; sinks and dead letters that are slow or away: the sources hold, nothing is lost.

MONITOR_TEST_OUTAGE is how many seconds the other side is away.
"""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from brokers import Broker
from connectors.kafka.options import KafkaSinkOptions
from connectors.mqtt.options import MqttSinkOptions
from integration.daemon import Daemon, wait_until
from integration.plant import Plant
from kafka_plant import fresh
from monitor import publishing
from monitor.publishing import Outlet
from monitor.telemetry import Telemetry

OUTAGE = float(os.environ.get("MONITOR_TEST_OUTAGE", "8"))

pytestmark = pytest.mark.timeout(240 + 4 * OUTAGE)


@pytest.fixture
def frail(own_kafka: Broker) -> Iterator[Plant]:
    """A plant on a broker that the test may stop and kill."""
    plant = Plant(own_kafka)
    yield plant
    plant.close()


@pytest.fixture
def moved(kafka: Broker, own_kafka: Broker) -> Iterator[Callable[..., Plant]]:
    """`moved("events", "dead")`: a plant with these topics on a broker of their own, all others on the shared one."""
    plants = []

    def make(*topics: str) -> Plant:
        plants.append(Plant(kafka, **dict.fromkeys(topics, own_kafka)))
        return plants[-1]

    yield make
    for plant in plants:
        plant.close()


def open_files(daemon: Daemon) -> int:
    return len(list(Path(f"/proc/{daemon.process.pid}/fd").iterdir()))


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_the_broker_is_away_and_comes_back(own_kafka: Broker, frail: Plant, install: Callable[..., Path], how: str) -> None:
    plant = frail
    with plant.streaming(60, seed=5), Daemon(install(plant.tables())) as daemon:
        daemon.start()
        wait_until(lambda: len(plant.scored()) > 60, seconds=90, what=daemon.tail)
        if how == "stopped":
            own_kafka.stop()
        else:
            own_kafka.kill()
        daemon.wait_for("source_disconnected", source="cameras")
        own_kafka.start()
        daemon.wait_for("source_connected", source="cameras", seconds=60)
        before = len(plant.scored())
        wait_until(lambda: len(plant.scored()) > before + 60, seconds=60, what=daemon.tail)
        daemon.drain()
    with daemon:
        daemon.start()
        plant.wait()
        daemon.drain()
    plant.audit()


@pytest.mark.parametrize("away", ["events", "dead"])
def test_while_a_sink_or_the_dead_letter_is_away_the_source_holds(
    moved: Callable[..., Plant], own_kafka: Broker, install: Callable[..., Path], away: str
) -> None:
    plant = moved(away)
    sink = {"events": "events", "dead": "dead_letter"}[away]
    with Daemon(install(plant.tables())) as daemon:
        daemon.start()
        with plant.streaming(40, seed=6):
            wait_until(lambda: len(plant.scored()) > 40, seconds=90, what=daemon.tail)
            own_kafka.stop()
            daemon.wait_for("sink_disconnected", sink=sink)
            time.sleep(OUTAGE / 2)
            held, files = plant.unsettled(), open_files(daemon)
            time.sleep(OUTAGE / 2)
            assert plant.unsettled() >= held, "settled although its effects were not safe"
            assert open_files(daemon) < files + 10, "every try leaves a socket"
            own_kafka.start()
            daemon.wait_for("sink_connected", sink=sink)
        assert plant.unsettled() > 0
        plant.wait()
        daemon.drain()
    plant.audit()


def test_a_slow_sink_slows_its_source_and_loses_nothing(moved: Callable[..., Plant], own_kafka: Broker, install: Callable[..., Path]) -> None:
    plant = moved("events")
    with Daemon(install(plant.tables())) as daemon:
        daemon.start()
        with plant.streaming(100, seed=7):
            wait_until(lambda: len(plant.scored()) > 50, seconds=90, what=daemon.tail)
            for _ in range(6):  # the broker stands still most of the time, with its connections open
                own_kafka.suspend()
                time.sleep(1.2)
                own_kafka.resume()
                time.sleep(0.1)
        plant.wait()
        daemon.drain()
    plant.audit()


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["kafka", "mqtt"])
async def test_a_sink_that_sends_nothing_is_missed_and_found_again(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = request.getfixturevalue("own_kafka" if kind == "kafka" else "own_mosquitto")
    options = (
        KafkaSinkOptions(bootstrap_servers=broker.plain, topic=fresh("idle"))
        if kind == "kafka"
        else MqttSinkOptions(url=broker.url, topic=f"{fresh('idle')}/{{stream}}")
    )
    monkeypatch.setattr(publishing, "LOOK_EVERY", 0.05)
    telemetry = Telemetry()
    outlet = Outlet("alerts", options, ["alert"], telemetry)

    async def until(*, there: bool) -> None:
        with anyio.fail_after(60):
            while (outlet.away is None) != there:  # noqa: ASYNC110 (nobody is told)
                await anyio.sleep(0.01)

    await outlet.open()
    assert outlet.away is not None, "it has not looked yet"
    async with anyio.create_task_group() as watching:
        watching.start_soon(outlet.watch)
        await until(there=True)
        assert telemetry.count("sink_disconnected") == 0
        await anyio.to_thread.run_sync(broker.stop)
        await until(there=False)
        await anyio.to_thread.run_sync(broker.start)
        await until(there=True)
        watching.cancel_scope.cancel()
    await outlet.sink.__aexit__(None, None, None)
    assert telemetry.count("sink_disconnected") > 0
    assert telemetry.count("sink_connected") > 0
