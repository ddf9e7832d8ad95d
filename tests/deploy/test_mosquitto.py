"""deploy/mosquitto.conf in a real Mosquitto: it starts, it holds what its own defaults would drop, and it forgets nothing when killed."""

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from brokers import ROOT
from integration.daemon import wait_until
from monitor.ports import SourceOptions
from mosquitto import PASSWORD, USER, Mosquitto

CONF = ROOT / "deploy" / "mosquitto.conf"
OF_THE_PLACE = {"listener", "password_file", "persistence_location", "log_dest"}
"""Where the broker lives; all else is tested as it stands."""


def settings() -> dict[str, str]:
    lines = [line for line in CONF.read_text().splitlines() if line and not line.startswith("#")]
    found = dict(line.split(maxsplit=1) for line in lines)
    assert len(found) == len(lines)
    assert found.keys() >= OF_THE_PLACE
    return {key: value for key, value in found.items() if key not in OF_THE_PLACE}


@pytest.fixture
def broker(mosquitto_with: Callable[..., Mosquitto]) -> Mosquitto:
    return mosquitto_with(**settings())


@contextmanager
def client(broker: Mosquitto, name: str, *, on_message: Callable[..., None] | None = None) -> Iterator[mqtt.Client]:
    """Connected as `name`, whose session the broker keeps."""
    made = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv5)
    made.username_pw_set(USER, PASSWORD)
    made.on_message = on_message
    kept = Properties(PacketTypes.CONNECT)
    kept.SessionExpiryInterval = 3600
    kept.ReceiveMaximum = 1000
    made.connect(broker.host, broker.port, keepalive=60, clean_start=False, properties=kept)
    made.loop_start()
    try:
        wait_until(made.is_connected, seconds=60, what="a connection")
        yield made
    finally:
        made.disconnect()
        made.loop_stop()


def subscribe(broker: Mosquitto, name: str, topic: str) -> None:
    """Leaves a session behind that wants the topic."""
    done = threading.Event()
    with client(broker, name) as subscriber:
        subscriber.on_subscribe = lambda *_: done.set()
        subscriber.subscribe(topic, qos=1)
        assert done.wait(60)


def publish(broker: Mosquitto, topic: str, payloads: list[bytes]) -> None:
    """Returns when the broker has confirmed each."""
    with client(broker, f"sender-{uuid.uuid4()}") as sender:
        sent = [sender.publish(topic, payload, qos=1) for payload in payloads]
        for one in sent:
            one.wait_for_publish(60)


def collect(broker: Mosquitto, name: str, count: int) -> list[bytes]:
    got: list[bytes] = []
    with client(broker, name, on_message=lambda _, __, message: got.append(message.payload)):
        wait_until(lambda: len(got) >= count, seconds=60, what=lambda: f"{count} messages; {len(got)} came")
    return got


def test_it_holds_for_a_client_that_is_away_what_its_defaults_would_drop_and_a_kill_loses_nothing_saved(broker: Mosquitto) -> None:
    topic, name = f"plant/{uuid.uuid4()}", f"away-{uuid.uuid4()}"
    subscribe(broker, name, topic)
    payloads = [b"%d" % number for number in range(3000)]  # Mosquitto's own max_queued_messages is 1000
    publish(broker, topic, payloads)

    broker.save()  # else within autosave_interval
    broker.kill()
    broker.start()
    assert collect(broker, name, len(payloads)) == payloads


def test_the_monitors_window_and_its_largest_message_fit() -> None:
    written = {key: int(value) for key, value in settings().items() if value.isdecimal()}
    defaults = SourceOptions()

    assert written["max_inflight_messages"] >= defaults.max_in_flight
    assert written["max_packet_size"] >= defaults.max_bytes + 65536
    assert written["max_queued_bytes"] >= 16 * written["max_packet_size"]
    assert written["autosave_interval"] <= 10


def test_nobody_gets_in_without_a_password(broker: Mosquitto) -> None:
    refused: list[str] = []
    stranger = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5, reconnect_on_failure=False)
    stranger.on_connect = lambda _, __, ___, reason, ____: refused.append(str(reason))
    stranger.connect(broker.host, broker.port)
    stranger.loop_start()
    try:
        assert wait_until(lambda: refused, seconds=60, what="an answer") == ["Not authorized"]
    finally:
        stranger.disconnect()
        stranger.loop_stop()
