"""Configuration of the Kafka kind. Names are the broker's own, with underscores; times are float seconds."""

import re
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from connectors.options import MapsInFolder, TlsOptions
from monitor.ports import SinkOptions, SourceOptions

_TOPIC = r"^[A-Za-z0-9._-]{1,249}$"


class KafkaConnectionOptions(TlsOptions):
    """How the brokers are reached, and as whom."""

    bootstrap_servers: str
    """`host:port` of one broker or more, separated by commas."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """SSL: encrypted. SASL_PLAINTEXT: user and password, in the clear unless SCRAM. SASL_SSL: both."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = None
    """How the password is proved; needed with SASL."""
    username: str | None = None
    """Needed with SASL."""
    password: SecretStr | None = None
    """From the environment only; or `password_file`."""
    password_file: Path | None = None
    """File that holds the password; read again at every reconnect."""
    connect_timeout: float = Field(default=5.0, gt=0, le=60)
    """Seconds that a broker has to answer when it is first spoken to."""

    @field_validator("bootstrap_servers")
    @classmethod
    def _servers(cls, value: str) -> str:
        for server in value.split(","):
            host, port = _split(server)
            if not host or not port.isdecimal() or not 0 < int(port) < 65536:
                raise ValueError(f"expected host:port, got {server.strip()!r}")
        return value

    @model_validator(mode="after")
    def _security(self) -> Self:
        sasl, tls = self.security_protocol.startswith("SASL"), self.security_protocol.endswith("SSL")
        mistakes = []
        if sasl:
            missing = [name for name in ("sasl_mechanism", "username") if not getattr(self, name)]
            if self.password is None and self.password_file is None:
                missing.append("password_file (or the password from the environment)")
            if missing:
                mistakes.append(f"security_protocol {self.security_protocol} needs {', '.join(missing)}")
        else:
            idle = [name for name in ("sasl_mechanism", "username", "password", "password_file") if getattr(self, name) is not None]
            if idle:
                mistakes.append(f"{', '.join(idle)}: only with security_protocol SASL_SSL or SASL_PLAINTEXT, not {self.security_protocol}")
        mistakes += self.tls_mistakes(tls, f"security_protocol SSL or SASL_SSL, not {self.security_protocol}")
        if mistakes:
            raise ValueError("; ".join(mistakes))
        return self

    @property
    def brokers(self) -> list[tuple[str, int]]:
        """(host, port) of each bootstrap server."""
        return [(host, int(port)) for host, port in map(_split, self.bootstrap_servers.split(","))]


class KafkaSourceOptions(KafkaConnectionOptions, SourceOptions):
    """Messages from topics, as a member of a consumer group. Producers MUST key by stream where a topic has several partitions."""

    implementation: ClassVar[str] = "connectors.kafka.source:KafkaSource"
    sender: ClassVar[str] = "connectors.kafka.sender:KafkaSender"
    probe: ClassVar[str] = "connectors.kafka.diagnosis:probe"

    topics: tuple[str, ...] = Field(min_length=1)
    """Topics to read."""
    group_id: str = Field(min_length=1)
    """Consumer group: its members share the partitions, and its committed offsets say where to go on."""
    group_instance_id: str | None = Field(default=None, pattern=_TOPIC)
    """Name of this member that outlives a restart: within `session_timeout` its partitions wait for it. Unique in the group."""
    auto_offset_reset: Literal["earliest", "latest"] = "earliest"
    """Where to begin in a partition that the group has never committed. Latest loses what came before."""
    drain: float = Field(default=5.0, ge=0)
    """Seconds to wait for messages in flight when a rebalance takes their partition away; what is left comes again elsewhere."""
    commit_interval: float = Field(default=1.0, gt=0, le=60)
    """Seconds between commits of what is settled."""
    session_timeout: float = Field(default=45.0, ge=1)
    """Seconds without a heartbeat after which the group gives our partitions to others."""
    max_poll_interval: float = Field(default=300.0, ge=2)
    """Seconds that a rebalance waits for us."""
    fetch_max_wait: float = Field(default=0.02, gt=0, le=5)
    """Seconds that the broker may hold an empty fetch. Long waits stall a busy partition beside idle ones."""
    fetch_max_bytes: int = Field(default=50 * 1024 * 1024, ge=1024)
    """Bytes that one fetch holds at most."""
    max_partition_fetch_bytes: int = Field(default=1024 * 1024, ge=1024)
    """Bytes of one partition in a fetch; a larger message still comes, alone."""
    metadata_max_age: float = Field(default=30.0, gt=0)
    """Seconds after which new topics and partitions are noticed."""

    @field_validator("topics")
    @classmethod
    def _topics(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for topic in value:
            if not re.fullmatch(_TOPIC, topic):
                raise ValueError(f"{topic!r} is no Kafka topic: letters, digits, '.', '_' and '-', at most 249")
        return value

    @model_validator(mode="after")
    def _times(self) -> Self:
        if self.drain > self.max_poll_interval / 2:
            raise ValueError(f"drain = {self.drain} must be at most half of max_poll_interval = {self.max_poll_interval}, which bounds a rebalance")
        return self


class MapsInTopic(BaseModel):
    """Maps that are too large to stand inline become records."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    topic: str = Field(pattern=_TOPIC)
    """Topic of the same brokers."""


class KafkaProducerOptions(KafkaConnectionOptions, SinkOptions):
    """What a Kafka sink and a Kafka dead letter share."""

    receiver: ClassVar[str] = "connectors.kafka.receiver:KafkaReceiver"
    probe: ClassVar[str] = "connectors.kafka.diagnosis:probe"

    topic: str = Field(pattern=_TOPIC)
    """Topic to write."""
    delivery_timeout: float = Field(default=10.0, ge=0.5, le=600)
    """Seconds after which an unconfirmed record counts as not delivered: the sink is away, and its sources hold."""

    def feeds(self, source: SourceOptions) -> str | None:
        if not isinstance(source, KafkaSourceOptions) or not set(source.brokers) & set(self.brokers):
            return None
        return next((topic for topic in self.written if topic in source.topics), None)

    @property
    def written(self) -> tuple[str, ...]:
        """Topics that it writes to."""
        return (self.topic,)


class KafkaSinkOptions(KafkaProducerOptions):
    """Events as CloudEvents JSON, keyed by stream, so that one partition keeps one stream's order."""

    implementation: ClassVar[str] = "connectors.kafka.sink:KafkaSink"

    maps: MapsInFolder | MapsInTopic | None = None
    """Where maps beyond 64 KiB go: `{ path = "var/maps" }` or `{ topic = "monitor.maps" }`; by default they are halved until they fit."""

    @property
    def written(self) -> tuple[str, ...]:
        return (self.topic, self.maps.topic) if isinstance(self.maps, MapsInTopic) else (self.topic,)


class KafkaDeadLetterOptions(KafkaProducerOptions):
    """Messages that could not be scored, byte for byte, with their key and headers and why."""

    implementation: ClassVar[str] = "connectors.kafka.dead_letter:KafkaDeadLetter"

    spill: Path = Path("var/dead_letter")
    """Folder for payloads beyond `max_bytes`."""


def _split(server: str) -> tuple[str, str]:
    """`[::1]:9092` -> ("::1", "9092")."""
    host, _, port = server.strip().rpartition(":")
    return host.removeprefix("[").removesuffix("]"), port
