"""Events to a real Mosquitto: confirmed, in order, too large, refused, while it is away; dead letters; both versions of MQTT."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from paho.mqtt.client import MQTTMessage
from pydantic import ValidationError

from connectors.cloudevents import STRUCTURED
from connectors.mqtt.dead_letter import MqttDeadLetter, letter_of
from connectors.mqtt.options import MqttDeadLetterOptions, MqttSinkOptions
from connectors.mqtt.receiver import MqttReceiver
from connectors.mqtt.sink import MqttSink
from connectors.mqtt.text import topic_levels
from kafka_plant import Reports, fresh
from monitor.errors import Disconnected, Rejected
from monitor.ports import Context
from monitor.types import Event
from mosquitto import Mosquitto
from mqtt_reader import Reader
from mqtt_script import CONNACK_5, CONNACK_311, a_broker, puback
from some_events import alert, letter

pytestmark = pytest.mark.anyio

both_versions = pytest.mark.parametrize("protocol", ["5", "3.1.1"])
NewMosquitto = Callable[..., Mosquitto]


def options(broker: Mosquitto, prefix: str, **more: Any) -> MqttSinkOptions:
    return MqttSinkOptions(**{"url": broker.url, "topic": f"{prefix}/{{stream}}", "connect_timeout": 3.0, "delivery_timeout": 3.0, **more})


def made(options: MqttSinkOptions, reports: Reports | None = None) -> MqttSink:
    return MqttSink(options, Context(name="alerts", report=(reports or Reports()).report))


def buried(options: MqttDeadLetterOptions, reports: Reports | None = None) -> MqttDeadLetter:
    return MqttDeadLetter(options, Context(name="dead_letter", report=(reports or Reports()).report))


def spilled_at(path: str) -> bytes:
    return Path(path).read_bytes()


def number(message: MQTTMessage) -> int:
    found: int = json.loads(message.payload)["data"]["number"]
    return found


async def patiently(sink: MqttSink, events: list[Event]) -> None:
    """As the daemon sends: again until it is confirmed."""
    with anyio.fail_after(60):
        while True:
            try:
                return await sink.send(events)
            except Disconnected:
                await anyio.sleep(0.1)


@both_versions
async def test_the_message_is_a_cloud_event_on_the_topic_of_its_stream(mosquitto: Mosquitto, protocol: str) -> None:
    prefix = fresh("alerts")
    reader = Reader(mosquitto, prefix)
    async with made(options(mosquitto, prefix, protocol=protocol)) as sink:
        await sink.send([alert(1), alert(2, key="a+b/#/%/\N{SNOWMAN}//\n"), alert(3, key="/".join("x" * 250))])
    messages = reader.look()
    reader.close()
    assert messages[0].topic == f"{prefix}/press/7/cam"
    assert messages[1].topic == f"{prefix}/a%2Bb/%23/%25/\N{SNOWMAN}/%/%0A"
    assert [number(message) for message in messages] == [1, 2, 3]
    assert [message.retain for message in messages] == [False] * 3
    assert getattr(messages[0].properties, "ContentType", None) == (STRUCTURED if protocol == "5" else None)


def test_streams_become_topics_of_their_own() -> None:
    streams = ["a/b", "a%2Fb", "a//b", "a/%/b", "", "%", "+", "#", "a\0", "\ud800", "/", "x/" * 63, "x/" * 64, "x/" * 65]
    topics = [topic_levels(stream) for stream in streams]
    assert len(set(topics)) == len(streams)
    for topic in topics:
        assert topic.isprintable()
        assert not {"+", "#"} & set(topic)
        assert len(topic.split("/")) <= 64
        assert "" not in topic.split("/")


@both_versions
async def test_the_order_holds_where_the_broker_lets_us_have_only_a_few_out(mosquitto_with: NewMosquitto, protocol: str) -> None:
    broker = mosquitto_with(max_inflight_messages=10)
    reader = Reader(broker, "t")
    async with made(options(broker, "t", protocol=protocol)) as sink:
        await sink.send([alert(one, key=f"cam{one % 5}") for one in range(500)])
    messages = reader.look()
    reader.close()
    for camera in range(5):
        assert [number(message) for message in messages if message.topic == f"t/cam{camera}"] == list(range(camera, 500, 5))


async def test_a_batch_is_one_round_trip() -> None:
    """A broker that answers the first PUBLISH, and then none until it has twenty."""
    waiting: list[bytes] = []
    enough = 1

    def publish(body: bytes) -> bytes | None:
        nonlocal enough
        waiting.append(puback(body))
        if len(waiting) < enough:
            return None
        answer, enough = b"".join(waiting), 20
        waiting.clear()
        return answer

    async with a_broker(CONNACK_311, publish) as url, made(MqttSinkOptions(url=url, topic="t", protocol="3.1.1", delivery_timeout=60.0)) as sink:
        with anyio.fail_after(60):
            await sink.send([alert(0, note="the largest goes alone")])
            await sink.send([alert(one) for one in range(20)])


@pytest.mark.parametrize("reason", [0x83, 0x89, 0x8B, 0x8E, 0x93, 0x96, 0x97, 0x98, 0x9D], ids=hex)
async def test_a_broker_that_ends_the_connection_for_another_reason_has_refused_nothing(reason: int) -> None:
    """Busy, shutting down, too many messages: DISCONNECT of MQTT 5 upon a PUBLISH."""
    async with a_broker(CONNACK_5, lambda _: bytes((0xE0, 2, reason, 0))) as url, made(MqttSinkOptions(url=url, topic="t")) as sink:
        with pytest.raises(Disconnected):
            await sink.send([alert(1)])


@pytest.mark.parametrize("reason", [0x90, 0x95, 0x99], ids=hex)
async def test_a_broker_that_ends_the_connection_for_a_message_has_refused_it(reason: int) -> None:
    async with a_broker(CONNACK_5, lambda _: bytes((0xE0, 2, reason, 0))) as url, made(MqttSinkOptions(url=url, topic="t")) as sink:
        with pytest.raises(Rejected):
            await sink.send([alert(1)])


async def test_a_broker_that_takes_less_than_before_refuses_what_it_had_taken() -> None:
    """Without a word, as in MQTT 3.1.1: the sink does not wait for ever for what was once taken to be taken again."""
    most = 100_000

    def publish(body: bytes) -> bytes:
        return puback(body) if len(body) <= most else b""

    async with a_broker(CONNACK_311, publish) as url, made(MqttSinkOptions(url=url, topic="t", protocol="3.1.1")) as sink:
        await sink.send([alert(1, note="x" * 50_000)])
        most = 20_000
        with pytest.raises(Rejected), anyio.fail_after(60):
            await patiently(sink, [alert(2, note="x" * 40_000)])
        await sink.send([alert(3)])


async def test_a_broker_that_confirms_nothing_is_no_broker_for_a_sink() -> None:
    async with a_broker(b"\x20\x05\0\0\x02\x24\0", puback) as url, made(MqttSinkOptions(url=url, topic="t")) as sink:  # maximum QoS 0
        with pytest.raises(Disconnected, match="QoS 0 only") as caught:
            await sink.send([alert(1)])
        assert caught.value.cause == "refused"


@pytest.mark.parametrize(
    ("protocol", "limit"),
    [("5", "max_packet_size"), ("3.1.1", "max_packet_size"), ("5", "message_size_limit")],
    ids=["5, told when connecting", "3.1.1, told by no word", "5, told in a way that paho-mqtt does not know"],
)
async def test_what_the_broker_refuses_goes_without_its_map_and_the_order_holds(mosquitto_with: NewMosquitto, protocol: str, limit: str) -> None:
    broker = mosquitto_with(**{limit: 20_000})
    reader, reports = Reader(broker, "t"), Reports()
    events = [alert(1), alert(2, side=200), alert(3), alert(4, note="x" * 30_000), alert(5, side=20), alert(6)]
    async with made(options(broker, "t", protocol=protocol), reports) as sink:
        with pytest.raises(Rejected) as caught:
            await patiently(sink, events)
        await sink.send([alert(7)])
    messages = {number(message): message for message in reader.look()}
    reader.close()
    assert caught.value.events == ((alert(4).type, alert(4).id),)
    assert list(messages) == [1, 2, 3, 5, 6, 7]
    assert [("map" in json.loads(message.payload)["data"]) for message in messages.values()] == [False, False, False, True, False, False]
    assert reports.count("map_dropped") >= 1


async def test_an_event_that_nobody_hears_is_told_once_per_topic(mosquitto: Mosquitto) -> None:
    prefix, reports = fresh("unheard"), Reports()
    async with made(options(mosquitto, prefix), reports) as sink:
        await sink.send([alert(1), alert(2), alert(3, key="other")])
        reader = Reader(mosquitto, prefix)
        await sink.send([alert(4)])
        reader.close()
    told = [(facts["topic"], facts["quiet"]) for facts in reports.facts("event_unheard")]
    assert told == [(f"{prefix}/press/7/cam", False), (f"{prefix}/press/7/cam", True), (f"{prefix}/other", False)]


async def test_a_wrong_password_an_unknown_authority_a_missing_certificate_and_a_forbidden_topic_are_told_apart(
    mosquitto_with: NewMosquitto, tmp_path: Path
) -> None:
    broker = mosquitto_with(acl="topic read open/#\nuser alice\ntopic readwrite open/#\nuser press\ntopic write open/#\n")
    (tmp_path / "right").write_text(f"{broker.password}\n")
    (tmp_path / "wrong").write_text("not-hers\n")
    alice = {"username": broker.user, "password_file": tmp_path / "right"}
    mutual = {"url": broker.mutual, "ca_file": broker.ca, "cert_file": broker.cert, "key_file": broker.key}
    for wrong, cause in [
        ({**alice, "password_file": tmp_path / "wrong"}, "not_authorised"),
        ({"url": broker.tls}, "unknown_ca"),
        ({**mutual, "cert_file": None, "key_file": None}, "tls"),
        ({"url": broker.tls.replace("mqtts", "mqtt")}, "tls"),
        ({}, "not_authorised"),  # nobody may write without a name
        ({**alice, "topic": "closed"}, "not_authorised"),
    ]:
        async with made(options(broker, "open", **wrong)) as sink:
            with pytest.raises(Disconnected) as caught:
                await sink.send([alert(1)])
            assert caught.value.cause == cause, (wrong, caught.value)
            assert "not-hers" not in str(caught.value)
    for right in (alice, {**alice, "url": broker.tls, "ca_file": broker.ca}, mutual):
        async with made(options(broker, "open", **right)) as sink:
            await sink.send([alert(1)])


@both_versions
async def test_a_broker_that_goes_and_comes_back(own_mosquitto: Mosquitto, protocol: str) -> None:
    """Disconnected within bounded time, with its cause; sent again, nothing is lost and the order holds."""
    reader = Reader(own_mosquitto, "t")
    async with made(options(own_mosquitto, "t", protocol=protocol)) as sink:
        await sink.send([alert(one) for one in range(10)])
        own_mosquitto.stop()
        for _ in range(2):
            with pytest.raises(Disconnected) as caught:
                await sink.send([alert(one) for one in range(10, 20)])
            assert caught.value.cause == "refused"
        own_mosquitto.start()
        await patiently(sink, [alert(one) for one in range(10, 20)])
        own_mosquitto.stop()
        own_mosquitto.start()
        await sink.send([alert(20)])  # a broker that was away between two sends is no matter
    got = [number(message) for message in reader.look()]
    reader.close()
    assert list(dict.fromkeys(got)) == list(range(21))


@both_versions
async def test_killed_while_sending(own_mosquitto: Mosquitto, protocol: str) -> None:
    """What is confirmed was taken, in order; what was not is sent again. What a killed broker had not passed on is gone with it."""
    reader = Reader(own_mosquitto, "t")
    confirmed = 0
    killed = threading.Event()

    def kill() -> None:
        own_mosquitto.kill()
        killed.set()

    async with made(options(own_mosquitto, "t", protocol=protocol)) as sink:
        after = 0
        killer = threading.Timer(0.5, kill)
        killer.start()
        with anyio.fail_after(90):
            while after < 200:
                try:
                    await sink.send([alert(one) for one in range(confirmed, confirmed + 20)])
                except Disconnected:
                    if killed.is_set() and not after:
                        own_mosquitto.start()
                        reader.look()  # it has subscribed again
                        after = 1
                    await anyio.sleep(0.05)
                else:
                    confirmed += 20
                    after += 20 if after else 0
    got = list(dict.fromkeys(number(message) for message in reader.look()))
    reader.close()
    assert got == sorted(got)
    assert got[-200:] == list(range(confirmed - 200, confirmed))


async def test_a_broker_that_stands_still_is_given_up_in_time_and_nothing_arrives_out_of_order(own_mosquitto: Mosquitto) -> None:
    reader = Reader(own_mosquitto, "t")
    async with made(options(own_mosquitto, "t", delivery_timeout=1.0, connect_timeout=1.0)) as sink:
        await sink.send([alert(0)])
        own_mosquitto.suspend()
        for _ in range(2):
            with pytest.raises(Disconnected) as caught:
                await sink.send([alert(one) for one in range(1, 50)])
            assert caught.value.cause == "timeout"
        own_mosquitto.resume()
        await patiently(sink, [alert(one) for one in range(1, 50)])
        await patiently(sink, [alert(50)])
    got = [number(message) for message in reader.look()]
    reader.close()
    assert list(dict.fromkeys(got)) == list(range(51))


async def test_a_send_that_hangs_is_cancelled_at_once(own_mosquitto: Mosquitto) -> None:
    """As by a second SIGTERM: the broker stands still with its connections open."""
    async with made(options(own_mosquitto, "t", delivery_timeout=300.0)) as sink:
        await sink.send([alert(1)])
        own_mosquitto.suspend()
        with anyio.move_on_after(0.5) as scope:
            await sink.send([alert(2)])
        assert scope.cancelled_caught
    own_mosquitto.resume()  # the sink was left before it answered


async def test_an_idle_connection_is_made_anew(mosquitto: Mosquitto) -> None:
    prefix = fresh("idle")
    reader = Reader(mosquitto, prefix)
    async with made(options(mosquitto, prefix, keepalive=1.0)) as sink:
        await sink.send([alert(1)])
        await anyio.sleep(2.5)  # Mosquitto has ended it by now, or it is too old
        await sink.send([alert(2)])
    assert [number(message) for message in reader.look()] == [1, 2]
    reader.close()


async def test_dead_letters_keep_key_and_headers_of_any_bytes_or_spill_them(mosquitto_with: NewMosquitto, tmp_path: Path) -> None:
    """Payloads within max_bytes, but not within what the broker takes; and headers that alone are too much."""
    broker = mosquitto_with(max_packet_size=20_000)
    reader, reports = Reader(broker, "dead"), Reports()
    payload = bytes(range(256)) * 100
    plain = (("content-type", b"image/png"), ("x", "größe".encode()), ("x", b""))
    strange = (("content-type", b"image/png"), ("x", b"\xff\0"), ("line\n", b"\x01"))
    chosen = MqttDeadLetterOptions(url=broker.url, topic="dead/letters", spill=tmp_path / "spill", max_bytes=50_000)
    events = [
        letter(b"fits", headers=plain),
        letter(payload, key=b"\xfe cam", headers=strange),
        letter(b"tiny", headers=(*plain, ("long", b"\xff" * 60_000))),
        letter(b"", error="of two\nlines"),
    ]
    async with buried(chosen, reports) as dead, MqttReceiver(chosen) as receiver:
        await dead.send(events)
        heard: list[Any] = []
        with anyio.fail_after(20):
            async for event in receiver:
                heard.append(event)
                if len(heard) == len(events):
                    break
    messages = reader.look()
    reader.close()
    letters = [letter_of(bytes(message.payload), message.properties.UserProperty) for message in messages]  # type: ignore[union-attr]
    fits, spilled, headed, last = letters
    own = [one.headers for one in letters]
    assert (fits.value, fits.key, own[0]) == (b"fits", None, plain)
    assert messages[0].properties.ContentType == "image/png"  # type: ignore[union-attr]
    facts = json.loads(spilled.value)
    assert (spilled_at(facts["path"]), facts["size"], spilled.key, own[1]) == (payload, 25_600, b"\xfe cam", strange)
    beside = json.loads(spilled_at(dict(headed.facts)["monitor-headers-spilled"].decode()))
    assert [name for name, _ in beside["headers"]] == ["content-type", "x", "x", "long"]
    assert (last.value, dict(last.facts)["monitor-error"].decode()) == (b"", "of two\N{REPLACEMENT CHARACTER}lines")
    assert reports.count("payload_spilled") >= 2
    assert heard[0]["data"]["payload"] == "Zml0cw=="
    assert heard[1]["data"]["spilled"]["size"] == 25_600
    assert heard[1]["data"]["headers"][2] == {"name": "line\n", "text": "\x01"}


async def test_a_dead_letter_that_nobody_would_keep_holds(mosquitto: Mosquitto, tmp_path: Path) -> None:
    prefix = fresh("dead")
    async with buried(MqttDeadLetterOptions(url=mosquitto.url, topic=f"{prefix}/letters", spill=tmp_path)) as dead:
        with pytest.raises(Disconnected, match="nobody has subscribed"):
            await dead.send([letter(b"x")])
        reader = Reader(mosquitto, prefix)
        await dead.send([letter(b"x")])
    assert [bytes(message.payload) for message in reader.look()] == [b"x"]
    reader.close()


async def test_what_others_write_ends_no_listener(mosquitto: Mosquitto) -> None:
    prefix = fresh("foreign")
    reader = Reader(mosquitto, prefix)
    async with MqttReceiver(options(mosquitto, prefix)) as receiver:
        for payload in (b"\xff no JSON", b"[1]", b'{"a": 1}'):
            reader.publish("strange", payload)
        reader.publish("strange", b"x", [("monitor-source", "me")])
        reader.publish("strange", b"x", [("monitor-source", "me"), ("monitor-headers", "1")])
        heard = []
        with anyio.fail_after(20):
            async for event in receiver:
                heard.append(event)
                if len(heard) == 5:
                    break
    reader.close()
    where = f"mqtt:{prefix}/strange"
    assert heard[:3] == [{"error": f"{where} is no JSON object"}, {"error": f"{where} is no JSON object"}, {"a": 1}]
    assert all(str(event["error"]).startswith(f"{where} is no dead letter") for event in heard[3:])


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"topic": "a/+"}, "wildcard"),
        ({"topic": "{stream}"}, "ends in /{stream}"),
        ({"topic": "a/{stream}/b"}, "ends in /{stream}"),
        ({"topic": "$SYS/x"}, r"belong to the broker"),
        ({"maps": {"topic": "maps"}}, "keeps no maps"),
    ],
)
def test_mistakes_in_the_options_of_a_sink(more: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words.replace("{", r"\{").replace("}", r"\}")):
        MqttSinkOptions(**{"url": "mqtt://broker", "topic": "t", **more})


def test_a_dead_letter_needs_mqtt_5() -> None:
    with pytest.raises(ValidationError, match=r"needs MQTT 5"):
        MqttDeadLetterOptions(url="mqtt://broker", topic="t", protocol="3.1.1")


def test_a_dead_letter_has_one_topic() -> None:
    """Else anybody who names a stream would choose a topic that nobody has subscribed to."""
    with pytest.raises(ValidationError, match="has one topic"):
        MqttDeadLetterOptions(url="mqtt://broker", topic="dead/{stream}")
