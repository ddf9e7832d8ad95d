"""The daemon on MQTT: brokers that stop, are killed and come back, sinks that are away, takeover, sessions that end; and beside Kafka.

MONITOR_TEST_RESTARTS is how often the broker of the pictures restarts in mid-stream, MONITOR_TEST_KILLS how often the daemon is
killed meanwhile. A show of 20 kills and 5 restarts, with its books:

    MONITOR_TEST_KILLS=20 MONITOR_TEST_RESTARTS=5 pytest -s tests/integration/test_mqtt_plant.py -k mid_stream
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from brokers import Broker
from integration.daemon import Daemon, wait_until
from integration.plant import MODEL, Plant
from mosquitto import Mosquitto

RESTARTS = int(os.environ.get("MONITOR_TEST_RESTARTS", "2"))
KILLS = int(os.environ.get("MONITOR_TEST_KILLS", "2"))
SLOW = {"options": {**MODEL, "delay": 0.1}}
"""80 messages a second at most: with more, some wait in the daemon and some in the broker."""

NewMosquitto = Callable[..., Mosquitto]
NewPlant = Callable[..., Plant]

pytestmark = pytest.mark.timeout(180 + 30 * RESTARTS)


@pytest.fixture
def built() -> Iterator[NewPlant]:
    """`built(broker, ...)`: a plant that is closed at the end."""
    plants: list[Plant] = []

    def build(*brokers: Any, **more: Any) -> Plant:
        plants.append(Plant(*brokers, **more))
        return plants[-1]

    yield build
    for plant in plants:
        plant.close()


def restart(broker: Mosquitto, end: Callable[[], None], daemon: Daemon) -> None:
    """End the broker, start it again, and wait for the daemon to have noticed both."""
    lost, back = (len(daemon.events(what, source="cameras")) for what in ("source_disconnected", "source_connected"))
    end()
    wait_until(lambda: len(daemon.events("source_disconnected", source="cameras")) > lost, seconds=60, what=daemon.tail)
    broker.start()
    wait_until(lambda: len(daemon.events("source_connected", source="cameras")) > back, seconds=60, what=daemon.tail)


@pytest.mark.timeout(180 + 30 * (RESTARTS + KILLS))
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_the_broker_restarts_and_the_daemon_is_killed_in_mid_stream(
    own_mosquitto: Mosquitto, mosquitto: Mosquitto, built: NewPlant, install: Callable[..., Path], protocol: str
) -> None:
    """An orderly stop saves all that was confirmed; what the cameras had no word of, they send again."""
    plant = built(own_mosquitto, events=mosquitto, dead=mosquitto, protocol=protocol)
    with Daemon(install(plant.tables())) as daemon:

        def go_on() -> None:
            before = len(plant.scored())
            wait_until(lambda: len(plant.scored()) > before + 30, seconds=60, what=daemon.tail)

        daemon.start()
        with plant.streaming(60, seed=11):
            for number in range(RESTARTS):
                for _ in range(KILLS * number // RESTARTS, KILLS * (number + 1) // RESTARTS):
                    go_on()
                    daemon.kill()
                    daemon.start()
                go_on()
                restart(own_mosquitto, own_mosquitto.stop, daemon)
                assert not daemon.events("session_lost")
        plant.finish(daemon)
    plant.audit(innocents=KILLS // 3)


def test_the_broker_is_killed_and_starts_again_with_what_it_had_saved(
    own_mosquitto: Mosquitto, mosquitto: Mosquitto, built: NewPlant, install: Callable[..., Path]
) -> None:
    """Killed, it forgets what came since it last saved: so it saves when the cameras rest, with messages in work and waiting."""
    plant = built(own_mosquitto, events=mosquitto, dead=mosquitto)
    with Daemon(install(plant.tables(detectors__bottle=SLOW))) as daemon:
        daemon.start()
        for _ in range(RESTARTS):
            before = len(plant.scored())
            plant.send(*["normal", "defect", "bad", "normal"] * 60)
            own_mosquitto.save()
            wait_until(lambda before=before: len(plant.scored()) > before, seconds=60, what=daemon.tail)
            restart(own_mosquitto, own_mosquitto.kill, daemon)
        plant.finish(daemon)
        assert not daemon.events("session_lost")
    plant.audit()


@pytest.mark.parametrize("away", ["events", "dead"])
def test_while_a_sink_or_the_dead_letter_is_away_the_broker_of_the_pictures_keeps_them(
    own_mosquitto: Mosquitto, mosquitto: Mosquitto, built: NewPlant, install: Callable[..., Path], away: str
) -> None:
    plant = built(mosquitto, **{away: own_mosquitto})
    with Daemon(install(plant.tables())) as daemon:
        daemon.start()
        with plant.streaming(60, seed=12):
            wait_until(lambda: len(plant.scored()) > 30, seconds=60, what=daemon.tail)
            own_mosquitto.stop()
            daemon.wait_for("sink_disconnected", sink={"events": "events", "dead": "dead_letter"}[away], cause="refused")
        plant.send(*["normal", "bad"] * 40)
        daemon.kill()
        kept = plant.unsettled()
        own_mosquitto.start()
        assert kept >= len(plant.outstanding()) > 0, "settled although its effects were not safe"
        daemon.start()
        plant.finish(daemon)
    plant.audit()


def test_another_daemon_with_the_same_client_id_takes_over(mosquitto: Mosquitto, built: NewPlant, install: Callable[..., Path]) -> None:
    """While both run they take the session from each other, and say so; when one is killed, the other goes on with its messages."""
    plant = built(mosquitto)

    def scored_by(name: str) -> int:
        return sum(event["source"] == f"/{name}/bottle" for event in plant.read("score"))

    def member(name: str) -> Daemon:
        return Daemon(install(plant.tables(daemon={"site": name}, detectors__bottle=SLOW), name), name)

    with member("one") as one, member("two") as two:
        one.start()
        with plant.streaming(60, seed=13):
            wait_until(lambda: scored_by("one") > 30, seconds=60, what=one.tail)
            two.start()
            told = one.wait_for("source_disconnected", source="cameras", cause="lost")
            assert "another client" in told["error"]
            one.kill()
            wait_until(lambda: scored_by("two") > 60, seconds=60, what=two.tail)
        plant.finish(two)
    plant.audit()


def test_a_session_that_the_broker_lost_is_told_and_the_daemon_goes_on(
    own_mosquitto: Mosquitto, mosquitto: Mosquitto, built: NewPlant, install: Callable[..., Path]
) -> None:
    plant = built(own_mosquitto, events=mosquitto, dead=mosquitto)
    with Daemon(install(plant.tables())) as daemon:
        daemon.start()
        plant.send(*["normal", "defect", "bad"] * 5)
        plant.wait()
        restart(own_mosquitto, own_mosquitto.kill, daemon)  # it had saved nothing
        assert daemon.events("session_lost", source="cameras")
        plant.send(*["normal", "defect", "bad"] * 5)
        plant.finish(daemon)
    plant.audit()


def test_a_session_that_expired_starts_anew(
    mosquitto_with: NewMosquitto, mosquitto: Mosquitto, built: NewPlant, install: Callable[..., Path]
) -> None:
    """What came after its end is lost, as `session_expiry` says; what comes when the daemon is back is not."""
    broker = mosquitto_with(log_type="all")
    plant = built(broker, events=mosquitto, dead=mosquitto)
    tables = plant.tables(sources__cameras={"session_expiry": 1.0})
    granted = f"Sending SUBACK to {tables['sources.cameras']['client_id']}"
    with Daemon(install(tables)) as daemon:
        daemon.start()
        plant.send(*["normal", "defect"] * 5)
        plant.wait()
        daemon.drain()
        subscribed = broker.log().count(granted)
        wait_until(lambda: "Expiring" in broker.log(), seconds=60, what=broker.log)
        late = plant.send("normal", "defect")
        daemon.start()
        wait_until(lambda: broker.log().count(granted) > subscribed, seconds=60, what=daemon.tail)
        plant.sent = plant.sent[: -len(late)]
        plant.send(*["normal", "defect", "bad"] * 5)
        plant.finish(daemon)
    assert not plant.scored().keys() & {sent.id for sent in late}
    plant.audit()


@pytest.mark.parametrize("pictures", ["mqtt", "kafka"])
def test_pictures_over_one_broker_become_alerts_on_the_other(
    apache_kafka: Broker, mosquitto: Mosquitto, built: NewPlant, install: Callable[..., Path], pictures: str
) -> None:
    comes, goes = (mosquitto, apache_kafka) if pictures == "mqtt" else (apache_kafka, mosquitto)
    plant = built(comes, events=goes, dead=goes)
    plant.send(*["normal", "defect", "bad", "raises"] * 10)
    with Daemon(install(plant.tables())) as daemon:
        daemon.start()
        plant.wait()
        daemon.drain()
    plant.audit(doubles=False)
