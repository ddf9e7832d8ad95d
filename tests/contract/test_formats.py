"""What every registered format promises: one payload of each of its media types decodes, and the bytes decide."""

import io

import cv2
import numpy as np
import pytest
import soundfile

from monitor import registry
from monitor.decoding import decode
from monitor.errors import BadSample
from monitor.ports import Format, SourceOptions
from monitor.types import Message

LIMITS = SourceOptions()
IMAGE = np.arange(12 * 16 * 3, dtype=np.uint8).reshape(12, 16, 3)
TONE = np.sin(np.arange(4000) / 9).astype(np.float32) / 2


def _sound(name: str, subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, TONE, 8000, format=name, subtype=subtype)
    return file.getvalue()


def _numpy(archive: bool) -> bytes:
    file = io.BytesIO()
    if archive:
        np.savez(file, image=IMAGE)
    else:
        np.save(file, IMAGE)
    return file.getvalue()


PAYLOADS: dict[str, list[bytes]] = {
    "image": [
        *(cv2.imencode(suffix, IMAGE)[1].tobytes() for suffix in (".jpg", ".png", ".tiff", ".bmp", ".webp")),
        *(cv2.imencode(".tiff", scan)[1].tobytes() for scan in (IMAGE.astype(np.float32), IMAGE[..., 0].astype(np.float32))),
    ],
    "numpy": [_numpy(False), _numpy(True)],
    "sound": [_sound("WAV"), _sound("FLAC"), _sound("OGG", "VORBIS"), _sound("OGG", "OPUS")],
}
"""entry point -> at least one payload of every family of media types that it names."""


def message(payload: bytes, content_type: str | None = None) -> Message:
    headers = () if content_type is None else (("content-type", content_type.encode()),)
    return Message(source="s", topic="t", position="1", payload=payload, received=1.0, headers=headers)


@pytest.fixture(params=registry.kinds("formats"))
def case(request: pytest.FixtureRequest) -> tuple[Format, list[bytes]]:
    if request.param not in PAYLOADS:
        pytest.fail(f"format {request.param} has no payloads in tests/contract: what is not in the suite does not exist")
    return registry.formats()[registry.kinds("formats").index(request.param)], PAYLOADS[request.param]


def test_every_media_type_has_a_payload_and_decodes(case: tuple[Format, list[bytes]]) -> None:
    form, payloads = case
    seen: set[str] = set()
    for payload in payloads:
        types = form.sniff(payload)
        assert types
        assert types <= form.media_types
        seen |= types
        for content_type in (None, *sorted(types)):
            sample = decode(message(payload, content_type), LIMITS)
            assert any(sensor is not None for sensor in (sample.image, sample.depth, sample.waveform))
    assert seen == form.media_types


def test_no_format_takes_the_bytes_of_another(case: tuple[Format, list[bytes]]) -> None:
    form, payloads = case
    for other in registry.formats():
        for payload in payloads:
            assert bool(other.sniff(payload)) == (other is form)
            for content_type in other.media_types - form.media_types:
                with pytest.raises(BadSample) as caught:
                    decode(message(payload, content_type), LIMITS)
                assert caught.value.reason == "lying_header"


def test_nothing_but_a_bad_sample_for_any_beginning_of_a_payload(case: tuple[Format, list[bytes]]) -> None:
    _, payloads = case
    for payload in payloads:
        for size in (*range(min(64, len(payload))), len(payload) // 2, len(payload) - 5):
            with pytest.raises(BadSample):
                decode(message(payload[:size]), LIMITS)


def test_the_limits_of_the_source_hold(case: tuple[Format, list[bytes]]) -> None:
    _, payloads = case
    for payload in payloads:
        for limits in (SourceOptions(max_bytes=len(payload) - 1), SourceOptions(max_pixels=10, max_seconds=0.1)):
            with pytest.raises(BadSample) as caught:
                decode(message(payload), limits)
            assert caught.value.reason == "too_large"
