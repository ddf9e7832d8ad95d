"""What an operator may write of an MQTT source, topic templates, what a PUBLISH holds, and the order of acknowledgements."""

import random
import socket
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from pydantic import ValidationError

from connectors.mqtt import records
from connectors.mqtt.connection import Connection
from connectors.mqtt.options import MqttSourceOptions
from connectors.mqtt.publish import Arrived, read_publish
from connectors.mqtt.topics import Topic, overlap
from connectors.mqtt.window import Window
from monitor.errors import ConfigError, Disconnected
from monitor.types import Message


def source(**more: Any) -> MqttSourceOptions:
    return MqttSourceOptions(**{"url": "mqtt://broker", "topics": ["a"], "client_id": "monitor-1", **more})


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("mqtt://broker", ("broker", 1883, False)),
        ("mqtts://broker", ("broker", 8883, True)),
        ("mqtts://broker:18883/", ("broker", 18883, True)),
        ("mqtt://[::1]:1884", ("::1", 1884, False)),
    ],
)
def test_urls(url: str, place: tuple[str, int, bool]) -> None:
    options = source(url=url)
    assert (options.host, options.port, options.tls) == place


@pytest.mark.parametrize(
    ("mistake", "says"),
    [
        ({"url": "broker:1883"}, "expected mqtt://host[:port] or mqtts://host[:port], got 'broker:1883'"),
        ({"url": "ws://broker"}, "expected mqtt://host[:port]"),
        ({"url": "mqtt://broker:99999"}, "expected mqtt://host[:port]"),
        ({"url": "mqtt://broker/topic"}, "expected mqtt://host[:port]"),
        ({"url": "mqtt://alice:secret@broker"}, "no user and password in the url"),
        ({"ca_file": "ca.pem"}, "ca_file: only with url mqtts://"),
        ({"url": "mqtts://broker", "key_file": "key.pem"}, "key_file needs cert_file"),
        ({"password_file": "p"}, "password_file needs username"),
        ({"qos": 0}, "write lossy = true"),
        ({"lossy": True}, "lossy = true: only with qos = 0"),
        ({"qos": 2}, "Input should be 0 or 1"),
        ({"protocol": "3.1.1", "session_expiry": 60}, "session_expiry: only with protocol 5"),
        ({"protocol": "3.1"}, "Input should be '5' or '3.1.1'"),
        ({"max_in_flight": 65_536}, "less than or equal to 65535"),
        ({"client_id": ""}, "should match pattern"),
        ({"share_group": "a/b"}, "should match pattern"),
        ({"topics": []}, "at least 1"),
        ({"topics": [""]}, "it is empty"),
        ({"topics": ["a/b#"]}, "a wildcard (+ or #) is a level of its own"),
        ({"topics": ["a/#/b"]}, "# stands at the end only"),
        ({"topics": ["cam{stream}/x"]}, "only {stream} may stand in braces, as a level of its own"),
        ({"topics": ["a/{camera}"]}, "only {stream} may stand in braces"),
        ({"topics": ["{stream}/{stream}"]}, "{stream} stands twice"),
        ({"topics": ["$share/group/a"]}, "a shared subscription is written as share_group"),
        ({"topics": ["a\n"]}, "control characters"),
        ({"topics": ["a/\uffff"]}, "others that MQTT does not take as text"),
        ({"topics": ["/" * 100]}, "more than 100 levels"),
        ({"topics": ["a/{stream}", "a/b"]}, "'a/{stream}' and 'a/b' overlap"),
        ({"surprise": 1}, "Extra inputs are not permitted"),
    ],
)
def test_mistakes_are_told_in_words(mistake: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        source(**mistake)
    assert says in str(caught.value)


def test_the_password_and_what_only_one_may_have(tmp_path: Path) -> None:
    (tmp_path / "pw").write_text(" from a file \r\n")
    options = source(username="alice", password_file=tmp_path / "pw")
    assert options.secret("password") == " from a file "
    assert options.sole == "client_id 'monitor-1' at broker:1883"
    assert (source(protocol="3.1.1").stock_window, source().stock_window) == (20, None)


def test_a_paho_without_what_we_replace_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mqtt.Client, "_handle_publish")
    connection = Connection(source(), "x")
    with pytest.raises(ConfigError, match="lacks _handle_publish"):
        connection.open()
    connection.close()


def test_a_host_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "create_connection", unknown)
    connection = Connection(source(), "x")
    with pytest.raises(Disconnected, match="broker is no known host") as caught:
        connection.open()
    connection.close()
    assert caught.value.cause == "refused"


@pytest.mark.parametrize(
    ("template", "topic", "stream"),
    [
        ("plant/{stream}/sound", "plant/press 7/sound", "press 7"),
        ("{stream}/+/#", "cam/x/y/z", "cam"),
        ("plant/{stream}", "plant/", None),  # an empty level names nothing
        ("a.b/{stream}", "a.b/ö\nx", "ö\nx"),
    ],
)
def test_a_template_names_the_stream(template: str, topic: str, stream: str | None) -> None:
    assert Topic(template).matches(topic)
    assert Topic(template).stream(topic) == stream


@pytest.mark.parametrize(
    ("template", "topic", "matches"),
    [
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("a/#", "ab", False),
        ("a/+", "a/b/c", False),
        ("+/b", "/b", True),
        ("#", "a/b", True),
        ("#", "$SYS/x", False),
        ("+/x", "$SYS/x", False),
        ("{stream}/x", "$SYS/x", False),
        ("$SYS/#", "$SYS/x", True),
        ("a.b", "aXb", False),
    ],
)
def test_what_a_topic_matches(template: str, topic: str, matches: bool) -> None:
    """MQTT 5.0, 4.7."""
    assert Topic(template).matches(topic) is matches


@pytest.mark.parametrize(
    ("one", "other", "overlaps"),
    [
        ("a/b", "a/b", True),
        ("a/+", "+/b", True),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("{stream}/b", "a/{stream}", True),
        ("a/+", "a/b/c", False),
        ("a/{stream}/image", "a/{stream}/sound", False),
        ("a/b/#", "a/c/#", False),
    ],
)
def test_topics_that_overlap(one: str, other: str, overlaps: bool) -> None:
    assert (overlap([one, other]) is not None) is (overlap([other, one]) is not None) is overlaps


def test_publishing_fills_the_template() -> None:
    assert Topic("plant/{stream}/sound").fill("press 7") == "plant/press 7/sound"
    assert Topic("plant/x").fill("ignored") == "plant/x"
    for topic, stream in (("a/{stream}", None), ("a/{stream}", "b/c"), ("a/{stream}", "#"), ("a/{stream}", "x\n"), ("a/+", "b"), ("a/#", "b")):
        with pytest.raises(ValueError, match=r"stream|wildcards"):
            Topic(topic).fill(stream)


def test_ids_are_plain_or_hashed() -> None:
    def position(*headers: tuple[str, bytes], topic: str = "a", payload: bytes = b"x") -> str:
        return records.position(topic, headers, payload)

    assert position(("id", b"boot-1:17")) == "boot-1:17"
    assert position(("ID", b"one"), ("id", b"two")) == "two"
    for strange in (b"a/b", b"\xff", b"a b", b"\x00", b"x" * 129, "ö".encode()):
        assert position(("id", strange)) == position(("id", strange), topic="b", payload=b"y")
        assert position(("id", strange)).isalnum()
        assert len(position(("id", strange))) == 32
    assert position() == position(("id", b"")) == position()
    assert len({position(), position(topic="b"), position(payload=b"y"), position(("captured", b"1")), position(("time", b"2"))}) == 5
    assert position(topic="ab", payload=b"c") != position(topic="a", payload=b"bc")


def test_headers_there_and_back() -> None:
    headers = (("x", "größe".encode()), ("x", b"2"), ("empty", b""), ("content-type", b"image/png"))
    properties = Properties(PacketTypes.PUBLISH)
    properties.ContentType, user_properties = records.as_text(headers)
    properties.UserProperty = list(user_properties)
    arrived = read_publish(0x32, b"\0\1a\0\7" + properties.pack() + b"payload", v5=True)
    assert arrived == Arrived("a", b"payload", 7, 1, False, b"image/png", headers[:3])
    assert records.headers(arrived) == headers
    for wrong in (b"\xff", b"a\0b", b"x" * 65_536):
        with pytest.raises(ValueError, match="header 'x'"):
            records.as_text([("x", wrong)])


def test_every_property_of_a_publish_is_passed_over_or_read() -> None:
    fixed = "01 01  02 00000001  23 0001  08 0001 72  09 0002 ffff  0b 8001  0b 7f"
    properties = bytes.fromhex(f"{fixed} 03 0003 efbbbf 26 0004 efbbbf61 0003 efbbbf")  # byte order marks
    packet = b"\0\3a/b" + bytes([len(properties)]) + properties + b"\0payload"
    assert read_publish(0x31, packet, v5=True) == Arrived("a/b", b"\0payload", 0, 0, True, "\ufeff".encode(), (("\ufeffa", "\ufeff".encode()),))
    assert read_publish(0x30, b"\0\1\xffpayload", v5=False) == Arrived("\ufffd", b"payload", 0, 0, False)


@pytest.mark.parametrize(
    ("first", "packet"),
    [
        (0x32, ""),
        (0x32, "0001"),
        (0x32, "000161"),
        (0x32, "ffff61"),
        (0x32, "0000 0001 00"),  # no topic
        (0x32, "000161 0000 00"),  # packet id 0
        (0x34, "000161 0000 00"),  # QoS 2, packet id 0
        (0x36, "000161 0001 00"),  # QoS 3
        (0x32, "000161 0001 05 26"),
        (0x32, "000161 0001 ffffffff01"),
        (0x32, "000161 0001 02 2c00"),  # no property of a PUBLISH
        (0x32, "000161 0001 04 26000561"),
        (0x32, "000161 0001 01 03"),
        (0x32, "000161 0001 02 0200 70617974"),  # a property that runs into the payload
    ],
)
def test_what_is_no_publish(first: int, packet: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        read_publish(first, bytes.fromhex(packet), v5=True)


def test_any_bytes_are_read_or_refused() -> None:
    chance = random.Random(7)
    read = 0
    for _ in range(20_000):
        packet = chance.randbytes(chance.randrange(40))
        packet = b"\0\1a\0\1" + bytes([chance.randrange(20)]) + packet if chance.random() < 0.8 else packet
        try:
            read_publish(0x32, packet, v5=True)
            read += 1
        except ValueError:
            pass
    assert 0 < read < 20_000


def test_acknowledgements_keep_the_order_and_die_with_their_connection() -> None:
    woken: list[int] = []
    window = Window(lambda: woken.append(1))
    numbers = [window.arrived(mid) for mid in (7, 3, 9, 4)]
    window.settle(numbers[2])
    window.settle(numbers[1])
    assert (list(window.released), woken, window.taken) == ([], [], 4)
    window.settle(numbers[0])
    assert (list(window.released), woken, window.taken) == ([7, 3, 9], [1], 1)
    message = Message(source="s", topic="t", position="1", payload=b"", received=0.0)
    window.waiting.extend([(window.arrived(5), message), (None, message)])
    assert window.taken == 0  # none for sure, as one may be that with QoS 0
    assert window.kill() == 1  # what waits comes again, but for QoS 0
    assert list(window.waiting) == [(None, message)]
    window.settle(numbers[3])
    assert list(window.released) == [7, 3, 9]
    with pytest.raises(ValueError, match="settled twice"):
        window.settle(numbers[3])


@pytest.mark.parametrize(("more", "why"), [({"protocol": "3.1.1"}, "carries no headers"), ({"share_group": "g"}, "dealt the chunks in turn")])
def test_where_no_recording_can_come_in_chunks(more: dict[str, str], why: str) -> None:
    assert why in (source(**more).refuses_chunks or "")
    assert source().refuses_chunks is None
