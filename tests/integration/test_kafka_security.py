"""Who is let in, and what an operator reads when we are not. Every answer comes within seconds."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from brokers import Broker
from connectors.kafka.diagnosis import probe
from connectors.kafka.options import KafkaSinkOptions
from connectors.kafka.sink import KafkaSink
from kafka_home import free_ports
from kafka_plant import Reports, make_topic, produce, reading, source_options, take, until
from monitor.errors import ConfigError, Disconnected
from monitor.ports import Context
from monitor.types import Event

pytestmark = pytest.mark.anyio

SASL = {"security_protocol": "SASL_PLAINTEXT", "username": "alice"}
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


@pytest.fixture
def secured(kafka_with: Callable[[str], Broker]) -> Broker:
    return kafka_with("security")


def event() -> Event:
    return Event(id="e", type="monitor.alert.v1", source="/s/d", key="cam", time=1.0, data={})


async def passes(broker: Broker, **security: Any) -> None:
    """A source and a sink work over this connection."""
    topic = make_topic(broker, "secure")
    produce(broker, topic, [b"x"])
    options = source_options(broker, topic, **security)
    await probe(options)
    async with reading(options) as (_, deliveries):
        await take(deliveries, 1, settle=True)
    sink = KafkaSinkOptions(topic=topic, **security)
    async with KafkaSink(sink, Context(name="alerts", report=Reports().report)) as alerts:
        await alerts.send([event()])


async def refused(broker: Broker, cause: str, *says: str, **security: Any) -> None:
    """Probe, source and sink agree on the cause, and the text names these."""
    options = source_options(broker, "images", **security)
    began = time.monotonic()
    with pytest.raises(Disconnected) as caught:
        await probe(options)
    assert time.monotonic() - began < 5
    assert caught.value.cause == cause
    for text in says:
        assert text in str(caught.value)
    reports = Reports()
    async with reading(options, reports):
        await until(lambda: reports.count("source_disconnected"))
        await anyio.sleep(1)  # it tries again, and says nothing new
    assert [facts["cause"] for facts in reports.facts("source_disconnected")] == [cause]
    sink = KafkaSinkOptions(topic="alerts", connect_timeout=2.0, **security)
    async with KafkaSink(sink, Context(name="alerts", report=reports.report)) as alerts:
        with pytest.raises(Disconnected) as sending:
            await alerts.send([event()])
    assert sending.value.cause == cause


@pytest.mark.parametrize("mechanism", MECHANISMS)
async def test_the_password_lets_in(secured: Broker, mechanism: str, tmp_path: Path) -> None:
    (tmp_path / "password").write_text(secured.password + "\n")
    await passes(secured, bootstrap_servers=secured.sasl, sasl_mechanism=mechanism, password_file=tmp_path / "password", **SASL)


async def test_tls_with_our_authority(secured: Broker) -> None:
    await passes(secured, bootstrap_servers=secured.tls, security_protocol="SSL", ca_file=secured.ca)


async def test_mutual_tls(secured: Broker) -> None:
    own = secured.ca.parent / "server.pem"  # any certificate that the broker's authority signed
    await passes(secured, bootstrap_servers=secured.tls, security_protocol="SSL", ca_file=secured.ca, cert_file=own)


@pytest.mark.parametrize("mechanism", MECHANISMS)
async def test_a_wrong_password(secured: Broker, mechanism: str) -> None:
    says = (secured.sasl, "does not accept user 'alice'", mechanism)
    await refused(secured, "not_authorised", *says, bootstrap_servers=secured.sasl, sasl_mechanism=mechanism, password="wrong", **SASL)


async def test_an_unknown_authority(secured: Broker) -> None:
    await refused(secured, "unknown_ca", secured.tls, "did not sign", bootstrap_servers=secured.tls, security_protocol="SSL")


async def test_a_certificate_for_another_host(secured: Broker) -> None:
    other = secured.tls.replace("localhost", "127.1")  # another way to write 127.0.0.1, which the certificate does not name
    await refused(secured, "tls", "127.1", "for another host", bootstrap_servers=other, security_protocol="SSL", ca_file=secured.ca)


async def test_a_refused_connection(secured: Broker) -> None:
    (port,) = free_ports(1)
    await refused(secured, "refused", f"127.0.0.1:{port}", "is the broker running?", bootstrap_servers=f"127.0.0.1:{port}")


async def test_plain_text_to_a_tls_port(secured: Broker) -> None:
    await refused(secured, "tls", secured.tls, "does this port expect TLS", bootstrap_servers=secured.tls)


async def test_tls_to_a_plain_port(secured: Broker) -> None:
    await refused(secured, "tls", "does not speak TLS", bootstrap_servers=secured.plain, security_protocol="SSL", ca_file=secured.ca)


async def test_no_user_to_a_sasl_port(secured: Broker) -> None:
    await refused(secured, "not_authorised", secured.sasl, "does this port expect SASL?", bootstrap_servers=secured.sasl)


async def test_a_user_to_a_plain_port(secured: Broker) -> None:
    wrong = {"bootstrap_servers": secured.plain, "sasl_mechanism": "PLAIN", "password": "x", **SASL}
    await refused(secured, "not_authorised", secured.plain, "asks for no user", **wrong)


async def test_a_broker_that_says_nothing(kafka: Broker) -> None:
    """A port that accepts and is silent: bounded by connect_timeout."""

    async def hold(stream: anyio.abc.ByteStream) -> None:
        async with stream:
            await anyio.sleep_forever()

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        tasks.start_soon(listener.serve, hold)
        began = time.monotonic()
        with pytest.raises(Disconnected, match=r"no answer within 0\.5 s") as caught:
            await probe(source_options(kafka, "images", bootstrap_servers=f"127.0.0.1:{port}", connect_timeout=0.5))
        assert caught.value.cause == "timeout"
        assert time.monotonic() - began < 3
        tasks.cancel_scope.cancel()


async def test_one_of_several_brokers_is_enough_and_the_telling_cause_wins(secured: Broker) -> None:
    (port,) = free_ports(1)
    away = f"127.0.0.1:{port}"
    await probe(source_options(secured, "images", bootstrap_servers=f"{away},{secured.plain}"))
    with pytest.raises(Disconnected) as caught:
        await probe(source_options(secured, "images", bootstrap_servers=f"{away},{secured.sasl}"))
    assert caught.value.cause == "not_authorised"
    assert away in str(caught.value)
    assert secured.sasl in str(caught.value)


async def test_a_password_that_is_put_right_while_we_wait(secured: Broker, tmp_path: Path) -> None:
    """The file is read again at every try."""
    topic = make_topic(secured, "rotated")
    produce(secured, topic, [b"x"])
    password = tmp_path / "password"
    password.write_text("wrong")
    options = source_options(secured, topic, bootstrap_servers=secured.sasl, sasl_mechanism="SCRAM-SHA-256", password_file=password, **SASL)
    reports = Reports()
    async with reading(options, reports) as (_, deliveries):
        await until(lambda: reports.count("source_disconnected", "not_authorised"))
        password.write_text(secured.password)
        await take(deliveries, 1, settle=True)
    assert reports.count("source_connected") == 1


@pytest.mark.parametrize("missing", ["ca_file", "password_file", "cert_file"])
async def test_files_that_cannot_be_read_refuse_to_start(missing: str, kafka: Broker, tmp_path: Path) -> None:
    files = {"ca_file": None, "cert_file": None, missing: tmp_path / "missing"}
    if missing != "password_file":
        (tmp_path / "password").write_text("x")
        files["password_file"] = tmp_path / "password"
    options = source_options(kafka, "images", security_protocol="SASL_SSL", sasl_mechanism="PLAIN", username="alice", **files)
    with pytest.raises(ConfigError, match=missing):
        async with reading(options):
            pass
