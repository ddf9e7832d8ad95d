"""Configuration of the MQTT kind. Names are MQTT's own, with underscores; times are float seconds."""

from pathlib import Path
from typing import ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from connectors.mqtt.topics import PLACE, Topic, mistake, overlap
from connectors.options import MapsInFolder, TlsOptions
from monitor.ports import SinkOptions, SourceOptions

_CLIENT_ID = r"^[^\x00-\x1f\x7f-\x9f/+#]{1,128}$"
MOST_OUT = 65_535
"""The largest receive maximum: packet ids have 16 bits."""
_STOCK_WINDOW = 20
"""Unacknowledged messages that a stock Mosquitto gives a 3.1.1 client (max_inflight_messages)."""


class MqttConnectionOptions(TlsOptions):
    """How the broker is reached, and as whom."""

    url: str
    """`mqtt://host[:port]`, or `mqtts://host[:port]` for TLS. Ports 1883 and 8883 by default."""
    protocol: Literal["5", "3.1.1"] = "5"
    """Version of MQTT. 3.1.1 has no user properties, no content type and no receive maximum."""
    username: str | None = Field(default=None, min_length=1)
    """As whom we connect; by default without a name."""
    password: SecretStr | None = None
    """From the environment only; or `password_file`."""
    password_file: Path | None = None
    """File that holds the password; read again at every reconnect."""
    keepalive: float = Field(default=30.0, ge=1, le=65_535)
    """Seconds without traffic after which each side asks whether the other is still there."""
    connect_timeout: float = Field(default=5.0, gt=0, le=60)
    """Seconds that the broker has to let us in."""

    @field_validator("url")
    @classmethod
    def _url(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            port = parts.port
        except ValueError as error:
            raise ValueError(f"expected mqtt://host[:port] or mqtts://host[:port], got {value!r}: {error}") from None
        if parts.username is not None or parts.password is not None:
            raise ValueError("no user and password in the url: username and password_file are there for them")
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or port == 0 or parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ValueError(f"expected mqtt://host[:port] or mqtts://host[:port], got {value!r}")
        return value

    @model_validator(mode="after")
    def _security(self) -> Self:
        mistakes = self.tls_mistakes(self.tls, "url mqtts://")
        secret = [name for name in ("password", "password_file") if getattr(self, name) is not None]
        if secret and self.username is None:
            mistakes.append(f"{secret[0]} needs username")
        if mistakes:
            raise ValueError("; ".join(mistakes))
        return self

    @property
    def sole(self) -> str | None:
        name = getattr(self, "client_id", None)
        return None if name is None else f"client_id {name!r} at {self.host}:{self.port}"

    @property
    def as_whom(self) -> str:
        """In words."""
        return "without a username" if self.username is None else f"as user {self.username!r}"

    @property
    def tls(self) -> bool:
        return urlsplit(self.url).scheme == "mqtts"

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or (8883 if self.tls else 1883)


class MqttSourceOptions(MqttConnectionOptions, SourceOptions):
    """Messages from topics, in a session that the broker keeps while we are away."""

    implementation: ClassVar[str] = "connectors.mqtt.source:MqttSource"
    sender: ClassVar[str] = "connectors.mqtt.sender:MqttSender"
    probe: ClassVar[str] = "connectors.mqtt.probe:probe_source"

    topics: tuple[str, ...] = Field(min_length=1)
    """Topics to read. In `plant/{stream}/sound` one level names the stream; `+` and `#` are MQTT's wildcards."""
    client_id: str = Field(pattern=_CLIENT_ID)
    """Our name at the broker, which keeps our session under it: stable over restarts, and nobody else's."""
    share_group: str | None = Field(default=None, pattern=r"^[^\x00-\x1f\x7f-\x9f/+#]{1,128}$")
    """Name of a shared subscription: its members are dealt the messages in turn, so that the order of a topic is lost."""
    session_expiry: float = Field(default=86_400.0, ge=1, le=2**32 - 2)
    """Seconds that the broker keeps our session, and what comes meanwhile, while we are away. MQTT 5 only: 3.1.1 leaves it to the broker."""
    qos: Literal[0, 1] = 1
    """1: what is not settled comes again. 0: at most once; needs `lossy`."""
    lossy: bool = False
    """Says that messages may be lost, which `qos = 0` means."""
    retained: bool = False
    """Whether messages are taken that the broker retained from before we subscribed; else they are skipped and counted."""
    max_in_flight: int = Field(default=256, ge=1, le=MOST_OUT)
    """Unsettled messages that the source hands out at most; when all are out, the broker holds (MQTT 5: it is the receive maximum)."""

    @field_validator("topics")
    @classmethod
    def _topics(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [f"{topic!r} is no MQTT topic: {why}" for topic in value if (why := mistake(topic))]
        if wrong:
            raise ValueError("; ".join(wrong))
        if two := overlap(value):
            raise ValueError(f"{two[0]!r} and {two[1]!r} overlap: the broker would send a message that matches both twice")
        return value

    @model_validator(mode="after")
    def _session(self) -> Self:
        if self.qos == 0 and not self.lossy:
            raise ValueError("qos = 0 loses messages whenever we are away or slow: write lossy = true where that is meant")
        if self.lossy and self.qos == 1:
            raise ValueError("lossy = true: only with qos = 0")
        if self.protocol == "3.1.1" and "session_expiry" in self.model_fields_set:
            raise ValueError("session_expiry: only with protocol 5; 3.1.1 leaves it to the broker (Mosquitto: persistent_client_expiration)")
        return self

    @property
    def parsed_topics(self) -> tuple[Topic, ...]:
        return tuple(Topic(text) for text in self.topics)

    @property
    def refuses_chunks(self) -> str | None:
        if self.protocol == "3.1.1":
            return "MQTT 3.1.1 carries no headers, so that no message can say which recording it belongs to"
        if self.share_group is not None:
            return "the members of a shared subscription are dealt the chunks in turn, so that none has a whole recording"
        return None

    @property
    def stock_window(self) -> int | None:
        return _STOCK_WINDOW if self.protocol == "3.1.1" else None


class MqttProducerOptions(MqttConnectionOptions, SinkOptions):
    """What an MQTT sink and an MQTT dead letter share."""

    receiver: ClassVar[str] = "connectors.mqtt.receiver:MqttReceiver"
    probe: ClassVar[str] = "connectors.mqtt.probe:probe_producer"

    topic: str
    """Topic to write, e.g. `monitor/alerts/{stream}`. The slashes of a stream's name are levels; what a topic cannot hold stands there as `%XX`."""
    client_id: str | None = Field(default=None, pattern=_CLIENT_ID)
    """Our name at the broker, and nobody else's; by default a new one for each connection."""
    delivery_timeout: float = Field(default=10.0, ge=0.5, le=600)
    """Seconds after which an unconfirmed message counts as not delivered: the sink is away, and its sources hold."""

    @field_validator("topic")
    @classmethod
    def _topic(cls, value: str) -> str:
        if wrong := mistake(value) or ("a sink writes to no wildcards" if Topic(value).has_wildcards else None):
            raise ValueError(f"{value!r} is no MQTT topic: {wrong}")
        if PLACE in value and not value.endswith(f"/{PLACE}"):
            raise ValueError(f"{value!r}: what is written to ends in /{PLACE}, since the slashes of a stream's name are levels")
        if value.startswith("$"):
            raise ValueError(f"{value!r}: topics that begin with $ belong to the broker")
        return value

    def feeds(self, source: SourceOptions) -> str | None:
        if not isinstance(source, MqttSourceOptions) or (source.host, source.port) != (self.host, self.port):
            return None
        ours = self.topic.replace(PLACE, "#")
        return self.topic if any(overlap((ours, topic)) for topic in source.topics) else None


class MqttSinkOptions(MqttProducerOptions):
    """Events as CloudEvents JSON, with QoS 1."""

    implementation: ClassVar[str] = "connectors.mqtt.sink:MqttSink"

    maps: MapsInFolder | None = None
    """Where maps beyond 64 KiB go: `{ path = "var/maps" }`; by default they are halved until they fit. No topic: a broker keeps nothing
    that could be followed there later."""

    @field_validator("maps", mode="before")
    @classmethod
    def _maps(cls, value: object) -> object:
        if isinstance(value, dict) and "topic" in value:
            raise ValueError("an MQTT topic keeps no maps that could be followed later: give a folder, { path = ... }, or leave them inline")
        return value


class MqttDeadLetterOptions(MqttProducerOptions):
    """Messages that could not be scored, byte for byte, with their key and headers and why. MQTT 5 only; it holds until somebody has subscribed."""

    implementation: ClassVar[str] = "connectors.mqtt.dead_letter:MqttDeadLetter"

    spill: Path = Path("var/dead_letter")
    """Folder for payloads beyond `max_bytes`."""

    @field_validator("topic")
    @classmethod
    def _one_topic(cls, value: str) -> str:
        if PLACE in value:
            raise ValueError(
                f"{value!r}: a dead letter has one topic, without {PLACE}: it holds while nobody has subscribed, "
                "and streams are named by whoever sends: with a name of his own anybody could stop all sources"
            )
        return value

    @field_validator("protocol")
    @classmethod
    def _protocol(cls, value: str) -> str:
        if value != "5":
            raise ValueError("a dead letter needs MQTT 5: 3.1.1 carries no headers, and does not tell when nobody has subscribed; or use kind folder")
        return value
