"""What a plant asks of its brokers, for Kafka and for MQTT: pictures in, with what is not settled; events and dead letters out."""

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaTimeoutError
from paho.mqtt.client import Client, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from brokers import Broker
from connectors.letters import Letter
from connectors.mqtt.connection import Connection
from connectors.mqtt.dead_letter import letter_of
from connectors.mqtt.options import MqttSourceOptions
from connectors.mqtt.records import position
from kafka_plant import fresh, make_topic
from mosquitto import Mosquitto
from mqtt_reader import Reader

Headers = Sequence[tuple[str, bytes]]
Confirmed = Callable[[], tuple[str, Headers]]
"""Waits until the broker has the message; its position, and all headers that it was given."""
_PATIENCE = 120.0


class Inlet(Protocol):
    """A topic of pictures or sound: what a camera or microphone sends there, and the source that reads it. `more` are further headers."""

    topic: str
    table: dict[str, Any]
    """The source, as in monitor.toml."""

    def send(self, payload: bytes, stream: str, **more: str) -> Confirmed: ...

    def unsettled(self) -> int:
        """How many messages the broker would give the source again."""
        ...

    def close(self) -> None: ...


class Record(Protocol):
    @property
    def value(self) -> bytes: ...

    @property
    def headers(self) -> Headers: ...


class Outlet(Protocol):
    """A topic that a sink or a dead letter writes."""

    address: dict[str, Any]
    """As in monitor.toml."""

    def look(self) -> Sequence[Record]:
        """Every record so far, in order."""
        ...

    def close(self) -> None: ...


class KafkaInlet:
    """HEADERS are on every message: twice the same name, and bytes that are no text."""

    HEADERS = (("line", b"\x00\xff"), ("line", b"2"))

    def __init__(self, broker: Broker, source: str, group: str, partitions: int = 1) -> None:
        self._broker = broker
        self._group = group
        self.topic = make_topic(broker, source, partitions)
        self.table = {
            "kind": "kafka",
            "bootstrap_servers": broker.plain,
            "topics": [self.topic],
            "group_id": group,
            "group_instance_id": source,
            "max_in_flight": 64,
        }
        self._producer = KafkaProducer(bootstrap_servers=broker.plain, linger_ms=5)

    def send(self, payload: bytes, stream: str, **more: str) -> Confirmed:
        headers = (*self.HEADERS, *((name, text.encode()) for name, text in more.items()))
        future = self._producer.send(self.topic, value=payload, key=stream.encode(), headers=list(headers))

        def confirmed() -> tuple[str, Headers]:
            where = future.get(timeout=_PATIENCE)
            return f"{where.partition}-{where.offset}", headers

        return confirmed

    def unsettled(self) -> int:
        consumer = KafkaConsumer(bootstrap_servers=self._broker.plain, group_id=self._group, enable_auto_commit=False)
        partitions = [TopicPartition(self.topic, number) for number in consumer.partitions_for_topic(self.topic)]
        ends = consumer.end_offsets(partitions)
        behind = sum(ends[partition] - (consumer.committed(partition) or 0) for partition in partitions)
        consumer.close()
        return behind

    def close(self) -> None:
        self._producer.close()


class KafkaOutlet:
    """A new topic, read to its present end at every look."""

    def __init__(self, broker: Broker, name: str) -> None:
        self.name = make_topic(broker, name)
        self.address = {"kind": "kafka", "bootstrap_servers": broker.plain, "topic": self.name}
        self._partition = TopicPartition(self.name, 0)
        self._records: list[Any] = []
        self._consumer = self._reader()

    def _reader(self) -> KafkaConsumer:
        """A consumer that goes on after the records read so far."""
        servers = self.address["bootstrap_servers"]
        consumer = KafkaConsumer(bootstrap_servers=servers, enable_auto_commit=False, fetch_max_wait_ms=20, max_poll_records=2000)
        consumer.assign([self._partition])
        consumer.seek(self._partition, len(self._records))
        return consumer

    def look(self) -> Sequence[Record]:
        try:
            end = self._consumer.end_offsets([self._partition])[self._partition]
        except KafkaTimeoutError:  # a client that did not survive its broker's restart: a new one goes on where it was
            self._consumer.close()
            self._consumer = self._reader()
            end = self._consumer.end_offsets([self._partition])[self._partition]
        deadline = time.monotonic() + 30
        while self._consumer.position(self._partition) < end:
            assert time.monotonic() < deadline, f"{self.name} cannot be read to its end"
            for records in self._consumer.poll(timeout_ms=200).values():
                self._records += records
        return self._records

    def close(self) -> None:
        self._consumer.close()


class MqttInlet:
    """The camera gives each message its id in MQTT 5; in 3.1.1 it can say nothing beside the payload.

    It sends again what was not confirmed when the broker went, as paho does by itself.
    """

    HEADERS = (("line", "größe"), ("line", "2"))

    def __init__(self, broker: Mosquitto, source: str, client_id: str, protocol: Literal["5", "3.1.1"]) -> None:
        self._protocol = protocol
        self.topic = fresh(source)
        self.table = {"kind": "mqtt", "url": broker.url, "topics": [self.topic], "client_id": client_id, "protocol": protocol, "max_in_flight": 64}
        self._options = MqttSourceOptions.model_validate({key: value for key, value in self.table.items() if key != "kind"})
        self._in_session(lambda connection: connection.subscribe([self.topic], 1))  # from now on the broker keeps what is sent
        self._told = threading.Condition()
        self._taken: set[int] = set()
        self._client = Client(CallbackAPIVersion.VERSION2, client_id=fresh("camera"), protocol=MQTTv5)
        self._client.on_publish = self._on_publish
        self._client.reconnect_delay_set(1, 1)
        self._client.connect(broker.host, broker.port)
        self._client.loop_start()

    def send(self, payload: bytes, stream: str, **more: str) -> Confirmed:
        properties, headers = Properties(PacketTypes.PUBLISH), ()
        if self._protocol == "5":
            texts = (*self.HEADERS, ("stream", stream), ("id", str(uuid.uuid4())), *more.items())
            properties.UserProperty = list(texts)
            headers = tuple((name, text.encode()) for name, text in texts)
        mid = self._client.publish(self.topic, payload, qos=1, properties=properties).mid

        def confirmed() -> tuple[str, Headers]:
            with self._told:
                assert self._told.wait_for(lambda: mid in self._taken, _PATIENCE), f"{self.topic}: a message is not confirmed"
            return position(self.topic, headers, payload), headers

        return confirmed

    def unsettled(self) -> int:
        """Takes the session over: a daemon that has it must come back."""
        mark = uuid.uuid4().bytes

        def count(connection: Connection) -> int:
            connection.publish(self.topic, mark)
            end = time.monotonic() + _PATIENCE
            while all(message.payload != mark for message in connection.messages):
                assert time.monotonic() < end, f"{self.topic} cannot be read to its end"
                connection.step(0.5)
            acknowledged = [message.mid for message in connection.messages if message.payload == mark]
            connection.acknowledge(acknowledged[0])
            return len(connection.messages) - 1

        return self._in_session(count)

    def _in_session(self, act: Callable[[Connection], Any]) -> Any:
        connection = Connection(self._options, self._options.client_id, session_expiry=self._options.session_expiry, receive_maximum=65_535)
        try:
            connection.open()
            return act(connection)
        finally:
            connection.close()

    def _on_publish(self, _: object, __: object, mid: int, *___: object) -> None:
        with self._told:
            self._taken.add(mid)
            self._told.notify_all()

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class MqttOutlet:
    def __init__(self, broker: Mosquitto, name: str, topic: str) -> None:
        prefix = fresh(name)
        self.address = {"kind": "mqtt", "url": broker.url, "topic": f"{prefix}/{topic}"}
        self._reader = Reader(broker, prefix)
        self._records: list[Letter] = []

    def look(self) -> Sequence[Record]:
        for message in self._reader.look()[len(self._records) :]:
            letter = letter_of(bytes(message.payload), getattr(message.properties, "UserProperty", ()))
            self._records.append(replace(letter, headers=letter.headers + letter.facts))
        return self._records

    def close(self) -> None:
        self._reader.close()
