"""What the benchmarks over MQTT share: a Mosquitto of their own, sessions filled beforehand, the daemon and a bare paho loop over them."""

# ruff: noqa: T201 (scripts that print)

import os
import re
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from paho.mqtt.client import Client, MQTTMessage, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from certificates import issue
from connectors.mqtt.connection import Connection
from connectors.mqtt.options import MqttSourceOptions
from harness import THREADS, Bench
from integration.daemon import Daemon, write_configuration
from kafka_home import free_ports
from kafka_plant import fresh
from mosquitto import Mosquitto

RECEIVE_MAXIMUM = 256
_SCORED = re.compile(r'^monitor_scored_total\{detector="it"\} (\S+)', re.MULTILINE)


class MqttBench(Bench):
    """A topic is `PREFIX/NUMBER`; every session that is filled gets every message."""

    def __init__(self, folder: Path, broker: Mosquitto) -> None:
        self.folder = folder
        self._mosquitto = broker
        (self._port,) = free_ports(1)

    def keep(self, prefix: str) -> str:
        """The client id of a new session to which the broker keeps what is published below the prefix."""
        client_id = fresh("session")
        connection = Connection(self._source(prefix, client_id), client_id, session_expiry=3600)
        connection.open()
        connection.subscribe([f"{prefix}/+"], 1)
        connection.close()
        return client_id

    def fill(self, prefix: str, payloads: Sequence[bytes], count: int, *, topics: int = 1) -> None:
        """`count` messages: the payloads in turn, the topics in turn, each with its id."""
        client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv5)
        client.max_inflight_messages = 1000
        client.connect(self._mosquitto.host, self._mosquitto.port)
        client.loop_start()
        sent = []
        for number in range(count):
            properties = Properties(PacketTypes.PUBLISH)
            properties.UserProperty = ("id", str(uuid.uuid4()))
            sent.append(client.publish(f"{prefix}/{number % topics}", payloads[number % len(payloads)], qos=1, properties=properties))
        for each in sent:
            each.wait_for_publish(120)
            assert each.is_published()
        client.disconnect()
        client.loop_stop()

    def bare_rate(self, client_id: str, count: int) -> float:
        """Messages per second through paho's own loop, each acknowledged by hand and nothing else done with it."""
        client = Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=MQTTv5, manual_ack=True)
        times: list[float] = []

        def on_message(client: Client, _: object, message: MQTTMessage) -> None:
            client.ack(message.mid, message.qos)
            times.append(time.perf_counter())

        client.on_message = on_message
        properties = Properties(PacketTypes.CONNECT)
        properties.ReceiveMaximum = RECEIVE_MAXIMUM
        properties.SessionExpiryInterval = 3600
        client.connect(self._mosquitto.host, self._mosquitto.port, clean_start=False, properties=properties)
        while len(times) < count:
            assert client.loop(1.0) == 0
        client.disconnect()
        return (len(times) - 1) / (times[-1] - times[0])

    def daemon_rate(self, topic: str, count: int, detector: Mapping[str, Any], **source: Any) -> float:
        """Messages scored per second, from ready to the last. `topic` is the prefix; `client_id` of a session that `fill` has filled."""
        with Daemon(self.configuration(topic, source.pop("client_id"), detector, source=source), **THREADS) as daemon:
            daemon.start()
            daemon.ready()
            begun = time.perf_counter()
            while self._scored() < count:
                assert daemon.process.poll() is None, daemon.tail()
                time.sleep(0.05)
            rate = count / (time.perf_counter() - begun)
            daemon.drain()
        return rate

    def _scored(self) -> float:
        with urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=60) as answer:
            found = _SCORED.search(answer.read().decode())
        return float(found[1]) if found else 0.0

    def configuration(
        self, topic: str, group: str, detector: Mapping[str, Any], *, events: str = "alert", source: Mapping[str, Any] | None = None
    ) -> Path:
        """`group` is the client id."""
        options = self._source(topic, group)
        return write_configuration(
            self.folder / "monitor.toml",
            {
                "store": {"path": "models"},
                "api": {"port": self._port},
                "sources.cameras": {
                    "kind": "mqtt",
                    "url": options.url,
                    "topics": options.topics,
                    "client_id": group,
                    "max_in_flight": RECEIVE_MAXIMUM,
                    **(source or {}),
                },
                "detectors.it": {"inputs": ["cameras"], "max_batch_size": 16, **detector},
                "sinks.alerts": {"kind": "mqtt", "url": options.url, "topic": f"{topic}-alerts", "events": [events]},
            },
        )

    def _source(self, prefix: str, client_id: str) -> MqttSourceOptions:
        return MqttSourceOptions(url=self._mosquitto.url, topics=(f"{prefix}/{{stream}}",), client_id=client_id)


@contextmanager
def mqtt_bench() -> Iterator[MqttBench]:
    with tempfile.TemporaryDirectory(prefix="monitor-bench-") as name:
        folder = Path(name)
        for part in ("broker", "certificates"):
            (folder / part).mkdir()
        issue(folder / "certificates")
        broker = Mosquitto(folder / "broker", folder / "certificates")
        broker.start()
        print(f"on Mosquitto, {os.cpu_count()} cores", flush=True)
        try:
            yield MqttBench(folder, broker)
        finally:
            broker.stop()
