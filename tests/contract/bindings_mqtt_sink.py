"""MQTT's sink and dead letter in the contract suites: topics of their own for each test, on the Mosquitto of the session."""

import json
from pathlib import Path
from typing import Any, Literal

import pytest

from connectors.mqtt.dead_letter import letter_of
from connectors.mqtt.options import MqttDeadLetterOptions, MqttSinkOptions
from contract.bindings import Letter, as_found
from kafka_plant import fresh
from mqtt_reader import Reader


class _Place:
    def __init__(self, request: pytest.FixtureRequest, tmp_path: Path) -> None:
        self.broker = request.getfixturevalue("mosquitto")
        self.prefix = fresh("contract")
        self.folder = tmp_path
        self.reader = Reader(self.broker, self.prefix)
        request.addfinalizer(self.reader.close)


class Mqtt5SinkBinding(_Place):
    ordered = True
    protocol: Literal["5", "3.1.1"] = "5"

    def options(self, **more: Any) -> MqttSinkOptions:
        return MqttSinkOptions(url=self.broker.url, topic=f"{self.prefix}/{{stream}}", protocol=self.protocol, **more)

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(message.payload) for message in self.reader.look()]


class Mqtt311SinkBinding(Mqtt5SinkBinding):
    protocol = "3.1.1"


class MqttDeadLetterBinding(_Place):
    spills = True

    def options(self, **more: Any) -> MqttDeadLetterOptions:
        return MqttDeadLetterOptions(url=self.broker.url, topic=f"{self.prefix}/dead", spill=self.folder / "spill", **more)

    def letters(self) -> list[Letter]:
        return [as_found(letter_of(bytes(message.payload), getattr(message.properties, "UserProperty", ()))) for message in self.reader.look()]


SINKS = {"mqtt": Mqtt5SinkBinding, "mqtt 3.1.1": Mqtt311SinkBinding}
DEAD_LETTERS = {"mqtt": MqttDeadLetterBinding}
