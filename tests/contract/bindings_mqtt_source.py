"""MQTT in the contract suites: a topic and a client id of its own for each test, on the Mosquitto that the session started."""

from pathlib import Path
from typing import Any, Literal

import pytest

from connectors.mqtt.options import MqttSourceOptions
from contract.bindings import SourceBinding
from kafka_plant import fresh
from mqtt_plant import keep_session


class _Place:
    def __init__(self, request: pytest.FixtureRequest, tmp_path: Path) -> None:
        self.broker = request.getfixturevalue("mosquitto")
        self.topic = fresh("contract") + "/x"
        self.folder = tmp_path


class Mqtt5SourceBinding(_Place):
    protocol: Literal["5", "3.1.1"] = "5"
    in_order = True
    key = None  # the stream stands in the topic or in a header
    headers = (("x", "größe".encode()), ("x", b"second"), ("empty", b""), ("id", b"one"), ("content-type", b"image/png"))

    def __init__(self, request: pytest.FixtureRequest, tmp_path: Path) -> None:
        super().__init__(request, tmp_path)
        self.client_id = fresh("contract")
        keep_session(self.options())

    def options(self, **more: Any) -> MqttSourceOptions:
        return MqttSourceOptions(url=self.broker.url, topics=(self.topic,), client_id=self.client_id, protocol=self.protocol, **more)


class Mqtt311SourceBinding(Mqtt5SourceBinding):
    protocol = "3.1.1"
    headers = ()  # it carries none


SOURCES: dict[str, type[SourceBinding]] = {"mqtt": Mqtt5SourceBinding, "mqtt 3.1.1": Mqtt311SourceBinding}
