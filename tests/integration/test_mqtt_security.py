"""Who is let in, and what an operator reads when an MQTT source is not. Every answer comes within seconds."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import anyio.to_thread
import pytest

from connectors.mqtt.options import MqttSourceOptions
from connectors.mqtt.probe import probe_source
from kafka_home import free_ports
from kafka_plant import Reports
from monitor.errors import ConfigError, Disconnected
from mosquitto import Mosquitto
from mqtt_plant import dynamic_security, keep_session, publish, reading, source_options, take, until

pytestmark = pytest.mark.anyio

both_versions = pytest.mark.parametrize("protocol", ["5", "3.1.1"])


async def passes(broker: Mosquitto, **security: Any) -> None:
    options, reports = source_options(broker, "let/in", **security), Reports()
    assert await probe_source(options) == []
    keep_session(options)
    publish(broker, "let/in", [b"x"], id="1")
    async with reading(options, reports) as (_, deliveries):
        await take(deliveries, 1, settle=True)
    assert reports.count("source_disconnected") == 0


async def refused(broker: Mosquitto, cause: str, *says: str, **more: Any) -> None:
    """Probe and source agree on the cause, and the text names these."""
    options = source_options(broker, "images", **more)
    with pytest.raises(Disconnected) as caught:
        await probe_source(options)
    reports = Reports()
    async with reading(options, reports):
        await until(lambda: reports.count("source_disconnected"))
        await anyio.sleep(0.5)  # it tries again, and says nothing new
    assert [facts["cause"] for facts in reports.facts("source_disconnected")] == [caught.value.cause] == [cause]
    for text in says:
        assert text in str(caught.value)
        assert text in reports.facts("source_disconnected")[0]["error"]


@both_versions
async def test_the_password_lets_in(mosquitto: Mosquitto, protocol: str, tmp_path: Path) -> None:
    (tmp_path / "password").write_text(mosquitto.password + "\n")
    await passes(mosquitto, protocol=protocol, username=mosquitto.user, password_file=tmp_path / "password")


@both_versions
async def test_tls_with_our_authority(mosquitto: Mosquitto, protocol: str) -> None:
    await passes(mosquitto, protocol=protocol, url=mosquitto.tls, ca_file=mosquitto.ca)


@both_versions
async def test_mutual_tls(mosquitto: Mosquitto, protocol: str) -> None:
    await passes(mosquitto, protocol=protocol, url=mosquitto.mutual, ca_file=mosquitto.ca, cert_file=mosquitto.cert, key_file=mosquitto.key)


@both_versions
async def test_a_wrong_password(mosquitto: Mosquitto, protocol: str) -> None:
    await refused(mosquitto, "not_authorised", "does not let us in as user 'alice'", protocol=protocol, username=mosquitto.user, password="wrong")


@both_versions
async def test_an_unknown_authority(mosquitto: Mosquitto, protocol: str) -> None:
    await refused(mosquitto, "unknown_ca", "did not sign", "ca_file", protocol=protocol, url=mosquitto.tls)


async def test_a_certificate_for_another_host(mosquitto: Mosquitto) -> None:
    other = mosquitto.tls.replace("localhost", "127.1")  # another way to write 127.0.0.1, which the certificate does not name
    await refused(mosquitto, "tls", "127.1", "for another host", url=other, ca_file=mosquitto.ca)


@both_versions
async def test_without_a_certificate_where_one_is_asked_for(mosquitto: Mosquitto, protocol: str) -> None:
    await refused(mosquitto, "tls", "a certificate (cert_file)", protocol=protocol, url=mosquitto.mutual, ca_file=mosquitto.ca)


async def test_plain_text_to_a_tls_port(mosquitto: Mosquitto) -> None:
    await refused(mosquitto, "tls", "does this port expect TLS (mqtts://)?", url=mosquitto.tls.replace("mqtts", "mqtt"))


async def test_tls_to_a_plain_port(mosquitto: Mosquitto) -> None:
    url = mosquitto.url.replace("mqtt", "mqtts")
    await refused(mosquitto, "tls", "does not speak TLS", "is this a port for mqtt://?", url=url, ca_file=mosquitto.ca)


async def test_a_refused_connection(mosquitto: Mosquitto) -> None:
    (port,) = free_ports(1)
    await refused(mosquitto, "refused", f"127.0.0.1:{port}", "is the broker running?", url=f"mqtt://127.0.0.1:{port}")


@both_versions
async def test_a_subscription_that_we_may_not_have(mosquitto_with: Callable[..., Mosquitto], protocol: str, tmp_path: Path) -> None:
    broker = mosquitto_with(**dynamic_security(tmp_path, subscribe=False))
    await refused(broker, "not_authorised", "the subscription to images", protocol=protocol)


async def test_a_broker_that_is_not_there_yet(mosquitto_new: Callable[..., Mosquitto]) -> None:
    broker, reports = mosquitto_new(), Reports()
    options = source_options(broker, "late/x")
    try:
        async with reading(options, reports) as (_, deliveries):
            await until(lambda: reports.count("source_disconnected", "refused"))
            await anyio.to_thread.run_sync(broker.start)
            await until(lambda: reports.count("source_connected"))
            publish(broker, "late/x", [b"x"])
            await take(deliveries, 1, settle=True)
    finally:
        broker.stop()


async def test_a_broker_that_stands_still(own_mosquitto: Mosquitto) -> None:
    """Only keepalive notices it; and it goes on where it was."""
    options, reports = source_options(own_mosquitto, "still/x", keepalive=2, connect_timeout=5), Reports()
    keep_session(options)
    publish(own_mosquitto, "still/x", [b"1", b"2"])
    async with reading(options, reports) as (_, deliveries):
        first = await take(deliveries, 2)
        own_mosquitto.suspend()
        try:
            await until(lambda: reports.count("source_disconnected", "timeout"))
        finally:
            own_mosquitto.resume()
        again = await take(deliveries, 2, settle=True)
        assert [delivery.message.id for delivery in again] == [delivery.message.id for delivery in first]
    assert reports.count("session_lost") == 0


@pytest.mark.parametrize("missing", ["ca_file", "password_file", "cert_file"])
async def test_files_that_cannot_be_read_refuse_to_start(missing: str, mosquitto: Mosquitto, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("x")
    files = {"password_file": tmp_path / "password", missing: tmp_path / "missing"}
    options = source_options(mosquitto, "images", url=mosquitto.tls, username="alice", **files)
    with pytest.raises(ConfigError, match=missing):
        async with reading(options):
            pass
    with pytest.raises(ConfigError, match=missing):
        await probe_source(options)


Answer = Callable[[anyio.abc.SocketStream], Awaitable[None]]


@asynccontextmanager
async def a_port(answer: Answer) -> AsyncIterator[str]:
    """The URL of a port where that answers."""

    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await answer(stream)

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        yield f"mqtt://127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}"
        tasks.cancel_scope.cancel()


def scripted(*answers: str) -> Answer:
    """After each packet of ours the next of these, in hexadecimal; then the connection is closed."""

    async def answer(stream: anyio.abc.SocketStream) -> None:
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError):  # the source leaves when it has told
            for packet in answers:
                await stream.receive()
                await stream.send(bytes.fromhex(packet))

    return answer


CONNACK_5, CONNACK_311 = "20 03 00 00 00", "20 02 00 00"
PUBLISH_WITHOUT_END = "32 05 ff ff 61 00 01"


@pytest.mark.parametrize(
    ("protocol", "answers", "cause", "says"),
    [
        ("5", ["20 03 00 84 00"], "refused", "with MQTT 5: Unsupported protocol version"),
        ("5", ["20 02 00 01"], "refused", "with MQTT 5: Unsupported protocol version"),  # a broker of 3.1.1
        ("3.1.1", ["20 02 00 01"], "tls", "does not answer as an MQTT 3.1.1 broker"),
        ("3.1.1", ["20 02 00 04"], "not_authorised", "Bad user name or password"),
        ("5", ["20 03 00 8a 00"], "not_authorised", "Banned"),
        ("5", ["20 03 00 88 00"], "refused", "Server unavailable"),
        ("5", ["485454502f312e3120343030204261642052657175657374"], "tls", "does not answer as an MQTT 5 broker"),  # HTTP/1.1 400
        ("5", ["20 02 00"], "tls", "does not answer as an MQTT 5 broker"),
        ("5", [CONNACK_5, "90 04 00 01 00 97"], "refused", "the subscription to images (Quota exceeded)"),
        ("5", [CONNACK_5, "90 04 00 01 00 87"], "not_authorised", "the subscription to images (Not authorized)"),
        ("3.1.1", [CONNACK_311, "90 03 00 01 80"], "not_authorised", "the subscription to images"),
        ("5", [CONNACK_5, "90 05 00 01 00 01 01"], "lost", "2 answers to 1 subscriptions"),
        ("5", [CONNACK_5, "90 03 00 01 00"], "lost", "0 answers to 1 subscriptions"),
        ("3.1.1", [CONNACK_311, "90 04 00 01 01 01"], "lost", "2 answers to 1 subscriptions"),
        ("3.1.1", [CONNACK_311, "90 02 00 01"], "lost", "0 answers to 1 subscriptions"),
        ("5", [CONNACK_5, "90 04 00 01 00 00"], "refused", "grants less than qos = 1 for images"),
        ("3.1.1", [CONNACK_311, "90 03 00 01 00"], "refused", "grants less than qos = 1 for images"),
        ("5", [CONNACK_5, "90 04 00 01 00 01 34 06 00 01 61 00 01 00"], "refused", "sends a message with QoS 2, which we have not asked for"),
        ("5", [CONNACK_5, "90 04 00 01 00 01 e0 02 8e 00"], "lost", "another client with client_id 'scripted' took over our session"),
        ("5", [CONNACK_5, "90 04 00 01 00 01 e0 02 8b 00"], "lost", "ends the connection of client_id 'scripted': Server shutting down"),
        ("5", [CONNACK_5, f"90 04 00 01 00 01 {PUBLISH_WITHOUT_END}"], "lost", "sends what is no MQTT 5"),
        ("3.1.1", [CONNACK_311, f"90 03 00 01 01 {PUBLISH_WITHOUT_END}"], "lost", "sends what is no MQTT 3.1.1"),
        ("5", [CONNACK_5, "90 04 00 01 00 01 f0 01"], "lost", "127.0.0.1"),  # AUTH, which nobody asked for
        ("5", [CONNACK_5, "90 04 00 01 00 01"], "lost", "has closed the connection"),
    ],
)
async def test_what_a_broker_may_answer(protocol: str, answers: list[str], cause: str, says: str) -> None:
    """None of it ends the daemon: it tries again."""
    reports = Reports()
    more: dict[str, Any] = {"protocol": protocol, "client_id": "scripted", "connect_timeout": 20.0}
    async with a_port(scripted(*answers)) as url, reading(MqttSourceOptions(url=url, topics=("images",), **more), reports):
        await until(lambda: reports.count("source_disconnected"))
    facts = reports.facts("source_disconnected")[0]
    assert says in facts["error"]
    assert facts["cause"] == cause


async def test_check_tells_of_a_broker_that_keeps_a_session_for_less() -> None:
    connack = "20 08 00 00 05 11 00 00 00 3c"  # session expiry interval 60
    async with a_port(scripted(connack, "90 04 00 01 00 01")) as url:
        doubts = await probe_source(MqttSourceOptions(url=url, topics=("a",), client_id="x", connect_timeout=20.0))
    assert len(doubts) == 1
    assert "keeps a session for 60 s only, session_expiry = 86400.0" in doubts[0]


async def test_a_broker_that_says_nothing_for_longer_than_keepalive() -> None:
    async def silence(_: anyio.abc.SocketStream) -> None:
        await anyio.sleep_forever()

    reports = Reports()
    async with a_port(silence) as url, reading(MqttSourceOptions(url=url, topics=("a",), client_id="x", keepalive=1, connect_timeout=3), reports):
        await until(lambda: reports.count("source_disconnected"))
    assert reports.facts("source_disconnected")[0]["cause"] == "timeout"
    assert "silent for longer than keepalive" in reports.facts("source_disconnected")[0]["error"]


async def test_a_broker_that_says_nothing(mosquitto: Mosquitto) -> None:
    """A port that accepts and is silent: bounded by connect_timeout."""

    async def silence(_: anyio.abc.SocketStream) -> None:
        await anyio.sleep_forever()

    async with a_port(silence) as url:
        for at, link in ((url, {}), (url.replace("mqtt", "mqtts"), {"ca_file": mosquitto.ca})):
            with pytest.raises(Disconnected, match=r"no answer.* within 0\.5 s") as caught:
                await probe_source(source_options(mosquitto, "images", url=at, connect_timeout=0.5, **link))
            assert caught.value.cause == "timeout"
