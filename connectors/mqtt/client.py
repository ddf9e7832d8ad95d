"""paho's client as it is used here.

Source: paho-mqtt 2.2, whose methods _create_socket and _handle_publish are replaced. They are no part of its interface, so another
version may lack them: pyproject.toml allows those that were tried, and `new_client` looks.
"""

import logging
import ssl
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode

from connectors.mqtt.options import MqttConnectionOptions
from connectors.mqtt.publish import Arrived, read_publish
from connectors.tls import encrypted, reach, tls_context
from monitor.errors import ConfigError


class Client(mqtt.Client):
    """The socket is opened by us: its failures then have a cause, and none is left half open. So is a PUBLISH read by us."""

    options: MqttConnectionOptions
    tls: ssl.SSLContext | None
    arrived: Callable[[Arrived], None]

    def _handle_publish(self) -> MQTTErrorCode:
        self.arrived(read_publish(self._in_packet["command"], self._in_packet["packet"], v5=self._protocol == mqtt.MQTTv5))
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _create_socket(self) -> Any:
        where = self.options.host, self.options.port
        plain = reach(*where, self.options.connect_timeout)
        if self.tls is None:
            return plain
        return encrypted(plain, self.tls, where, self.options.ca_file, hint="is this a port for mqtt://?")


def _check_paho(client: mqtt.Client) -> None:
    """Without them a connection would not fail, but read and connect in paho's own way. Raises ConfigError."""
    methods = [name for name in ("_create_socket", "_handle_publish") if not hasattr(mqtt.Client, name)]
    fields = [name for name in ("_in_packet", "_protocol") if not hasattr(client, name)]
    if missing := methods + fields:
        raise ConfigError(f"this version of paho-mqtt lacks {', '.join(missing)}: install one that plant-monitor asks for")


def new_client(options: MqttConnectionOptions, client_id: str, *, clean: bool) -> Client:
    """Reads secrets and certificates now, so that rotated ones are used. Raises ConfigError."""
    v5 = options.protocol == "5"
    client = Client(
        CallbackAPIVersion.VERSION2,
        client_id,
        clean_session=None if v5 else clean,
        protocol=mqtt.MQTTv5 if v5 else mqtt.MQTTv311,
        reconnect_on_failure=False,  # we do; and paho would try MQTT 3.1 by itself
        manual_ack=True,
    )
    _check_paho(client)
    client.max_inflight_messages = 0  # else paho keeps what exceeds 20, and tells nobody whether it was sent
    client.options = options
    client.tls, password = credentials(options)
    if options.username is not None:
        client.username_pw_set(options.username, password)
    return client


def credentials(options: MqttConnectionOptions) -> tuple[ssl.SSLContext | None, str | None]:
    """TLS and password. Raises ConfigError for files that cannot be used."""
    try:
        password = options.secret("password")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"password_file: {error}") from error
    return tls_context(options) if options.tls else None, password


class LastError(logging.Handler):
    """What paho said last: it logs why a socket failed, and tells it nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.said = ""
        self.logger = logging.Logger("paho", logging.ERROR)
        self.logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.said = f": {record.getMessage()}"
