"""What messages say of their payload, in every way that interfaces.md lists, and when they lie."""

import base64
import dataclasses
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from connectors.cloudevents import encode, structured, unwrap
from connectors.maps import place_in, read_map
from monitor.errors import BadSample, Disconnected, MonitorError, Rejected
from monitor.telemetry import Telemetry
from monitor.types import Event, Message

STRUCTURED = b"application/cloudevents+json"
MINUTE = 1_767_225_600.0  # 2026-01-01T00:00:00Z


def message(payload: bytes = b"x", key: bytes | None = None, timestamp: float | None = 7.0, **headers: bytes) -> Message:
    named = tuple((name.replace("_", "-") if name == "content_type" else name, value) for name, value in headers.items())
    return Message(source="s", topic="press", position="0-1", payload=payload, received=9.0, key=key, timestamp=timestamp, headers=named)


def event(**attributes: Any) -> bytes:
    return json.dumps({"specversion": "1.0", "id": "1", "source": "/cam", "type": "image", **attributes}).encode()


def reason(bad: Message) -> str:
    with pytest.raises(BadSample) as caught:
        unwrap(bad)
    assert str(caught.value)
    return caught.value.reason


def test_stream_by_header_subject_key_topic() -> None:
    assert unwrap(message(key=b"k", stream=b"cam", ce_subject=b"subject")).stream == "cam"
    assert unwrap(message(key=b"k", ce_subject=b"press/7")).stream == "press/7"
    assert unwrap(message(key="schön".encode())).stream == "schön"
    assert unwrap(message(key=b"")).stream == "press"
    assert unwrap(message()).stream == "press"


def test_captured_by_header_event_broker_arrival() -> None:
    assert unwrap(message(captured=b"2026-01-01T01:00:00+01:00", ce_time=b"2025-01-01T00:00:00Z")).captured == MINUTE
    assert unwrap(message(ce_time=b"2026-01-01t00:00:00.250z")).captured == MINUTE + 0.25
    assert unwrap(message(captured=b"1767225600250")).captured == MINUTE + 0.25
    assert unwrap(message(captured=b"2026-01-01T00:00:00.123456789Z")).captured == pytest.approx(MINUTE + 0.123456)
    assert unwrap(message()).captured == 7.0
    assert unwrap(message(timestamp=None)).captured == 9.0
    for other_unit in (1_767_225_600_000.0, 1_767_225_600_000_000.0, -1.0, float("nan")):
        assert unwrap(message(timestamp=other_unit)).captured == 9.0


def test_only_the_attributes_of_its_binding_count() -> None:
    """On MQTT they have no prefix; a plain `subject` on Kafka says nothing, nor does a `ce_subject` on MQTT."""
    plain = message(key=b"k", subject=b"press/7", time=b"2026-01-01T00:00:00Z")
    assert (unwrap(plain).stream, unwrap(plain).captured) == ("k", 7.0)
    mqtt = dataclasses.replace(plain, cloudevents_prefix="")
    assert (unwrap(mqtt).stream, unwrap(mqtt).captured) == ("press/7", MINUTE)
    kafkas = dataclasses.replace(message(key=b"k", ce_subject=b"press/7"), cloudevents_prefix="")
    assert unwrap(kafkas).stream == "k"
    both = dataclasses.replace(message(stream=b"cam", subject=b"press/7"), cloudevents_prefix="")
    assert unwrap(both).stream == "cam"


def test_content_type_is_a_bare_media_type() -> None:
    assert unwrap(message(content_type=b"Image/JPEG; quality=90")).content_type == "image/jpeg"
    assert unwrap(message(content_type=b"")).content_type is None
    assert unwrap(message()).content_type is None


@pytest.mark.parametrize(
    "text",
    [b"yesterday", b"2026-01-01", b"2026-01-01T00:00:00", b"2026-13-01T00:00:00Z", b"-5", b"1e9", b"9" * 15, b"NaN", "٣".encode(), b"\xff\xfe"],
)
def test_a_time_that_is_none_is_a_lying_header(text: bytes) -> None:
    assert reason(message(captured=text)) == "lying_header"
    assert reason(message(ce_time=text)) == "lying_header"


def test_other_lies() -> None:
    assert reason(message(key=b"\xff\x00")) == "lying_header"
    assert unwrap(message(key=b"\xff\x00", stream=b"cam")).stream == "cam"
    assert reason(message(stream=b"\xff")) == "lying_header"
    assert reason(message(stream=b"x" * 1000)) == "lying_header"
    assert reason(message(content_type=b"\xff")) == "lying_header"


def test_structured_mode() -> None:
    payload = bytes(range(256))
    raw = event(datacontenttype="image/png", subject="cam", time="2026-01-01T00:00:00Z", data_base64=base64.b64encode(payload).decode())
    envelope = unwrap(message(raw, content_type=STRUCTURED + b"; charset=utf-8"))
    assert (envelope.payload, envelope.content_type, envelope.stream, envelope.captured) == (payload, "image/png", "cam", MINUTE)
    assert unwrap(message(raw, content_type=STRUCTURED, stream=b"header first")).stream == "header first"
    assert unwrap(message(event(data={"a": 1}), content_type=STRUCTURED)).payload == b'{"a": 1}'
    assert unwrap(message(event(data="text", datacontenttype="text/plain"), content_type=STRUCTURED)).payload == b"text"
    assert unwrap(message(event(), content_type=STRUCTURED)).payload == b""


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", "undecodable"),
        (b"{", "undecodable"),
        (b"[1]", "undecodable"),
        (b"\xff\xfe", "undecodable"),
        (b"[" * 100_000, "undecodable"),
        (b'{"specversion": ' + b"9" * 10_000 + b"}", "undecodable"),
        (b"{}", "undecodable"),
        (event(specversion="2.0"), "unsupported"),
        (event(data_base64="!!!"), "undecodable"),
        (event(data_base64="abc"), "undecodable"),
        (event(data_base64="é"), "undecodable"),
        (event(data_base64=5), "undecodable"),
        (event(subject=5), "undecodable"),
        (event(time=5), "undecodable"),
        (event(time="noon"), "lying_header"),
        (event(subject="cam\ud800"), "lying_header"),
        (event(data="\ud800", datacontenttype="text/plain"), "undecodable"),
    ],
)
def test_broken_structured_events(raw: bytes, expected: str) -> None:
    assert reason(message(raw, content_type=STRUCTURED)) == expected


def alert(side: int = 0, **data: Any) -> Event:
    rng = np.random.default_rng(3)
    scores = rng.random((side, side + 10), np.float32) if side else None
    return Event(id="a:s/t/0-1", type="monitor.alert.v1", source="/site/a", key="cam", time=MINUTE + 0.25, data={"score": 1.5, **data}, map=scores)


def test_events_are_structured_json() -> None:
    found = json.loads(structured(alert()))
    assert found == {
        "specversion": "1.0",
        "id": "a:s/t/0-1",
        "source": "/site/a",
        "type": "monitor.alert.v1",
        "subject": "cam",
        "time": "2026-01-01T00:00:00.250000Z",
        "datacontenttype": "application/json",
        "data": {"score": 1.5},
    }
    with pytest.raises(ValueError, match="JSON"):
        structured(alert(bad=float("nan")))


def test_maps_inline_halved_and_placed(tmp_path: Path) -> None:
    telemetry = Telemetry()
    for side, halvings in ((50, 0), (600, 2)):
        found = json.loads(encode(alert(side), max_bytes=2**20, report=telemetry.report))
        facts = found["data"]["map"]
        assert (facts["height"], facts["width"]) == (-(-side // 2**halvings), -(-(side + 10) // 2**halvings))
        png = read_map(found)
        assert png is not None
        assert cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED).shape == (facts["height"], facts["width"])  # type: ignore[union-attr]
    folder = tmp_path / "my maps"
    place = place_in(folder)
    found, again = (json.loads(encode(alert(600), max_bytes=2**20, report=telemetry.report, place=place)) for _ in range(2))
    assert found == again
    assert found["data"]["map"]["uri"].startswith("file:///")
    assert (found["data"]["map"]["width"], "base64" in found["data"]["map"]) == (610, False)
    (file,) = folder.iterdir()
    assert read_map(found) == file.read_bytes()
    file.write_bytes(b"changed")
    with pytest.raises(MonitorError, match="sha256"):
        read_map(found)
    file.unlink()
    with pytest.raises(MonitorError, match="cannot be read"):
        read_map(found)
    assert telemetry.count("map_dropped") == 0


def test_a_small_hot_spot_survives_halving() -> None:
    scores = np.random.default_rng(0).random((801, 801), np.float32)
    scores[800, 800] = 9.0
    spot = Event(id="1", type="monitor.alert.v1", source="/s/d", key="k", time=1.0, data={}, map=scores)
    found = json.loads(encode(spot, max_bytes=2**20, report=Telemetry().report))
    grey = cv2.imdecode(np.frombuffer(read_map(found) or b"", np.uint8), cv2.IMREAD_UNCHANGED)
    assert grey is not None
    assert grey[-1, -1] == 255
    assert found["data"]["map"]["white"] == 9.0


def test_a_flat_map() -> None:
    flat = Event(id="1", type="monitor.alert.v1", source="/s/d", key="k", time=1.0, data={}, map=np.full((4, 4), 2.5, np.float32))
    facts = json.loads(encode(flat, max_bytes=2**20, report=Telemetry().report))["data"]["map"]
    assert (facts["black"], facts["white"]) == (2.5, 2.5)


def test_uris_of_other_schemes_are_fetched_and_checked() -> None:
    inline = json.loads(encode(alert(20), max_bytes=2**20, report=Telemetry().report))
    png = read_map(inline)
    assert png is not None
    facts = inline["data"]["map"]
    del facts["base64"]
    facts["uri"] = "kafka:maps/0-7"
    assert read_map(inline, lambda uri: png if uri == "kafka:maps/0-7" else b"") == png
    with pytest.raises(MonitorError, match="nothing here follows"):
        read_map(inline)
    assert read_map({"data": {}}) is None


def test_too_large_events() -> None:
    telemetry = Telemetry()
    record = encode(alert(100), max_bytes=1024, report=telemetry.report)
    assert "map" not in json.loads(record)["data"]
    assert telemetry.count("map_dropped") == 1
    with pytest.raises(Rejected) as caught:
        encode(alert(note="x" * 2000), max_bytes=1024, report=telemetry.report)
    assert caught.value.events == ((alert().type, alert().id),)

    def never(_: Event, __: bytes) -> str:
        raise Rejected("the topic takes no such map")

    assert "map" not in json.loads(encode(alert(600), max_bytes=2**20, place=never, report=telemetry.report))["data"]
    assert telemetry.count("map_dropped") == 2


def test_maps_that_cannot_be_placed_now(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Disconnected):
        encode(alert(600), max_bytes=2**20, place=place_in(tmp_path / "file" / "maps"), report=Telemetry().report)


def test_a_chunk_by_header_or_attribute() -> None:
    whole = unwrap(message())
    assert (whole.recording, whole.offset, whole.last) == (None, 0, False)
    chunk = unwrap(message(recording=b"Schicht 1", offset=b"16000"))
    assert (chunk.recording, chunk.offset, chunk.last) == ("Schicht 1", 16000, False)
    for said, last in ((b"true", True), (b"1", True), (b"True", True), (b"false", False), (b"0", False)):
        assert unwrap(message(recording=b"r", offset=b"0", last=said)).last is last
    binary = unwrap(message(ce_recording=b"r", ce_offset=b"7", ce_last=b"true"))
    assert (binary.recording, binary.offset, binary.last) == ("r", 7, True)
    for attributes in ({"recording": "r", "offset": 7, "last": True}, {"recording": "r", "offset": "7", "last": "true"}):
        said = unwrap(message(event(datacontenttype="audio/wav", data_base64="eA==", **attributes), content_type=STRUCTURED))
        assert (said.recording, said.offset, said.last) == ("r", 7, True)
    assert unwrap(message(event(recording="r", offset=7), content_type=STRUCTURED, offset=b"8")).offset == 8


@pytest.mark.parametrize(
    "headers",
    [
        {"recording": b"r"},
        {"offset": b"0"},
        {"last": b"true"},
        {"recording": b"r", "offset": b"-1"},
        {"recording": b"r", "offset": b"1.5"},
        {"recording": b"r", "offset": b"1" * 16},
        {"recording": b"r", "offset": b"\xd9\xa1"},
        {"recording": b"r", "offset": b"0", "last": b"yes"},
        {"recording": b"r" * 513, "offset": b"0"},
        {"recording": b"\xff", "offset": b"0"},
    ],
)
def test_a_chunk_that_lies(headers: dict[str, bytes]) -> None:
    assert reason(message(**headers)) == "lying_header"


def test_attributes_of_a_chunk_that_are_no_such_thing() -> None:
    for attributes in ({"recording": 1, "offset": 0}, {"recording": "r", "offset": 1.5}, {"recording": "r", "offset": True}):
        assert reason(message(event(**attributes), content_type=STRUCTURED)) == "undecodable"
    assert reason(message(event(recording="r\ud800", offset=0), content_type=STRUCTURED)) == "lying_header"
