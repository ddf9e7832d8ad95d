"""What tests read of an MQTT broker: every message of a filter, in the order in which the broker gives it."""

import threading
import time
import uuid
from collections.abc import Sequence
from typing import Any

from paho.mqtt.client import Client, MQTTMessage, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from mosquitto import Mosquitto

_PATIENCE = 60.0


class Reader:
    """Subscribed to `prefix/#` with MQTT 5, QoS 1 and a kept session, from the moment it is made until `close`."""

    def __init__(self, broker: Mosquitto, prefix: str) -> None:
        self._prefix = prefix
        self._told = threading.Condition()
        self._messages: list[MQTTMessage] = []
        self._markers: set[bytes] = set()
        self._subscribed = False
        self._client = Client(CallbackAPIVersion.VERSION2, client_id=f"reader-{uuid.uuid4().hex}", protocol=MQTTv5)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message
        self._client.reconnect_delay_set(1, 1)
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 3600
        self._client.connect(broker.host, broker.port, keepalive=20, clean_start=False, properties=properties)
        self._client.loop_start()
        self._wait(lambda: self._subscribed, "is not subscribed")

    def look(self) -> list[MQTTMessage]:
        """Every message so far: all that the broker had confirmed to anybody at the call."""
        marker = uuid.uuid4().bytes
        self._client.publish(f"{self._prefix}/marker", marker, qos=1)
        self._wait(lambda: marker in self._markers, "cannot be read to its end")
        with self._told:
            return list(self._messages)

    def publish(self, topic: str, payload: bytes, properties: Sequence[tuple[str, str]] = ()) -> None:
        """Below the prefix."""
        publish = Properties(PacketTypes.PUBLISH)
        publish.UserProperty = list(properties)
        self._client.publish(f"{self._prefix}/{topic}", payload, qos=1, properties=publish)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _wait(self, condition: Any, otherwise: str) -> None:
        end = time.monotonic() + _PATIENCE
        with self._told:
            while not condition():
                assert self._told.wait(end - time.monotonic()), f"{self._prefix} {otherwise}"

    def _on_connect(self, client: Client, *_: object) -> None:
        client.subscribe(f"{self._prefix}/#", options=SubscribeOptions(qos=1))

    def _on_subscribe(self, *_: object) -> None:
        with self._told:
            self._subscribed = True
            self._told.notify_all()

    def _on_message(self, _: object, __: object, message: MQTTMessage) -> None:
        with self._told:
            if message.topic == f"{self._prefix}/marker":
                self._markers.add(bytes(message.payload))
            else:
                self._messages.append(message)
            self._told.notify_all()
