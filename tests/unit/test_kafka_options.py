"""What is refused before any broker is asked."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from connectors.kafka.dead_letter import KafkaDeadLetter
from connectors.kafka.options import KafkaDeadLetterOptions, KafkaSinkOptions, KafkaSourceOptions
from monitor.errors import Disconnected
from monitor.ports import Context
from monitor.publishing import burial
from monitor.telemetry import Telemetry
from monitor.types import DeadLetter, Message


def source(**options: Any) -> KafkaSourceOptions:
    return KafkaSourceOptions(**{"bootstrap_servers": "127.0.0.1:9092", "topics": ["images"], "group_id": "monitor", **options})


def test_the_shipped_example() -> None:
    options = source(
        security_protocol="SASL_SSL", sasl_mechanism="SCRAM-SHA-512", username="monitor", password_file="/run/secrets/kafka", ca_file="/etc/ca.pem"
    )
    assert options.auto_offset_reset == "earliest"
    assert options.drain == 5.0
    assert options.brokers == [("127.0.0.1", 9092)]


def test_several_brokers_and_ipv6() -> None:
    assert source(bootstrap_servers="a.example:9092, [::1]:9093").brokers == [("a.example", 9092), ("::1", 9093)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"bootstrap_servers": "127.0.0.1"}, "expected host:port, got '127.0.0.1'"),
        ({"bootstrap_servers": "a:9092,b:99999"}, "expected host:port, got 'b:99999'"),
        ({"security_protocol": "SASL_SSL"}, r"needs sasl_mechanism, username, password_file \(or the password from the environment\)"),
        ({"username": "monitor"}, "username: only with security_protocol SASL_SSL or SASL_PLAINTEXT, not PLAINTEXT"),
        ({"ca_file": "ca.pem"}, "ca_file: only with security_protocol SSL or SASL_SSL, not PLAINTEXT"),
        ({"security_protocol": "SSL", "key_file": "key.pem"}, "key_file needs cert_file"),
        ({"key_password": "x"}, "key_password: only with security_protocol SSL or SASL_SSL, not PLAINTEXT"),
        ({"security_protocol": "SSL", "key_password_file": "pw"}, "key_password_file needs cert_file"),
        ({"topics": []}, "at least 1"),
        ({"topics": ["press images"]}, "'press images' is no Kafka topic"),
        ({"drain": 200.0}, "at most half of max_poll_interval = 300.0"),
        ({"auto_offset_reset": "none"}, "'earliest' or 'latest'"),
        ({"topic": "images"}, "Extra inputs"),
    ],
)
def test_mistakes_say_what_was_expected(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        source(**options)


def test_maps_go_to_a_folder_or_a_topic() -> None:
    sink = {"bootstrap_servers": "127.0.0.1:9092", "topic": "alerts"}
    assert KafkaSinkOptions(**sink).maps is None
    KafkaSinkOptions(**sink, maps={"path": "var/maps"})
    KafkaSinkOptions(**sink, maps={"topic": "maps"})
    with pytest.raises(ValidationError):
        KafkaSinkOptions(**sink, maps={"path": "var/maps", "topic": "maps"})
    with pytest.raises(ValidationError):
        KafkaDeadLetterOptions(**sink, maps={"topic": "maps"})


@pytest.mark.anyio
async def test_a_spill_folder_that_is_away_holds_the_dead_letter(tmp_path: Path) -> None:
    """Before any broker is asked."""
    (tmp_path / "file").write_bytes(b"")
    options = KafkaDeadLetterOptions(bootstrap_servers="127.0.0.1:1", topic="dead", spill=tmp_path / "file" / "spill", max_bytes=1024)
    message = Message(source="cameras", topic="press", position="0-1", payload=bytes(2000), received=1.0)
    letter = burial(DeadLetter(message=message, reason="undecodable", error="broken"), "site")
    async with KafkaDeadLetter(options, Context(name="dead_letter", report=Telemetry().report)) as sink:
        with pytest.raises(Disconnected, match="cannot be spilled") as caught:
            await sink.send([letter])
        assert caught.value.cause == "lost"


def test_a_password_does_not_show() -> None:
    options = source(security_protocol="SASL_PLAINTEXT", sasl_mechanism="PLAIN", username="monitor", password="hush")
    assert "hush" not in repr(options)
    assert options.secret("password") == "hush"


def test_the_environment_wins_over_a_file_and_only_line_ends_are_cut_off(tmp_path: Path) -> None:
    (tmp_path / "pw").write_text(" from a file \r\n")
    sasl = {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN", "username": "monitor", "password_file": tmp_path / "pw"}
    assert source(**sasl).secret("password") == " from a file "
    assert source(**sasl, password="from the environment").secret("password") == "from the environment"
