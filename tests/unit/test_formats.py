"""Payloads as sensors send them, and as they should not: decoded right, or refused as a BadSample with its reason."""

import io
import struct
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import soundfile
from PIL import Image

from monitor.decoding import decode
from monitor.errors import BadSample
from monitor.ports import SourceOptions
from monitor.types import Message, Sample

LIMITS = SourceOptions(max_pixels=1_000_000, max_seconds=10)
RNG = np.random.default_rng(7)
SCENE = cv2.GaussianBlur(RNG.integers(0, 255, (60, 80, 3)).astype(np.uint8), (0, 0), 3)  # (60, 80, 3) RGB
SCENE16 = SCENE.astype(np.uint16) * 257
TONE = (0.2 * np.sin(np.arange(8000) / 9)).astype(np.float32)  # half a second at 16 kHz


def message(payload: bytes, content_type: str | None = None, **headers: str) -> Message:
    named = {**({"content-type": content_type} if content_type else {}), **headers}
    return Message(
        source="cameras",
        topic="press",
        position="0-1",
        payload=payload,
        received=5.0,
        headers=tuple((name, value.encode()) for name, value in named.items()),
    )


def decoded(payload: bytes, content_type: str | None = None) -> Sample:
    return decode(message(payload, content_type), LIMITS)


def refused(payload: bytes, content_type: str | None = None, limits: SourceOptions = LIMITS) -> str:
    with pytest.raises(BadSample) as caught:
        decode(message(payload, content_type), limits)
    assert str(caught.value)
    return caught.value.reason


def pillow(image: Image.Image, name: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def picture(mode: str = "RGB", name: str = "PNG", **options: object) -> bytes:
    return pillow(Image.fromarray(SCENE).convert(mode), name, **options)


def array(value: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, value, allow_pickle=True)
    return file.getvalue()


def archive(**values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **values)  # type: ignore[arg-type]
    return file.getvalue()


def sound(values: np.ndarray = TONE, name: str = "WAV", rate: int = 16000, subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, values, rate, format=name, subtype=subtype)
    return file.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


IMAGES = {name: picture(name=name) for name in ("JPEG", "PNG", "TIFF", "BMP", "WEBP")}


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_is_rgb_and_keeps_its_size(name: str) -> None:
    sample = decoded(IMAGES[name])
    assert sample.image is not None
    assert sample.image.shape == (60, 80, 3)
    assert sample.image.dtype == np.uint8
    assert sample.modality == "image"
    # lossy formats are near it, red and blue exchanged would be far
    assert np.abs(sample.image.astype(int) - SCENE.astype(int)).mean() < (3 if name in ("JPEG", "WEBP") else 0.01)
    assert (sample.id, sample.stream, sample.captured) == ("cameras/press/0-1", "press", 5.0)


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
@pytest.mark.parametrize("name", ["PNG", "TIFF"])
def test_grey_stays_one_channel(name: str, mode: str) -> None:
    sample = decoded(picture(mode, name))
    assert sample.image is not None
    assert sample.image.shape == (60, 80, 1)
    expected = np.asarray(Image.fromarray(SCENE).convert(mode).convert("L"))
    assert np.abs(sample.image[..., 0].astype(int) - expected.astype(int)).max() == 0


def test_grey_jpeg_stays_one_channel() -> None:
    assert decoded(picture("L", "JPEG")).image.shape == (60, 80, 1)  # type: ignore[union-attr]


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("colour", [True, False])
def test_sixteen_bit_is_kept(suffix: str, colour: bool) -> None:
    stored = cv2.cvtColor(SCENE16, cv2.COLOR_RGB2BGR) if colour else SCENE16[..., 0]
    sample = decoded(cv2.imencode(suffix, stored)[1].tobytes())
    assert sample.image is not None
    assert sample.image.dtype == np.uint16
    np.testing.assert_array_equal(sample.image, SCENE16 if colour else SCENE16[..., :1])


@pytest.mark.parametrize("name", ["PNG", "TIFF", "BMP"])
def test_alpha_is_dropped_and_colours_kept(name: str) -> None:
    image = Image.fromarray(SCENE).convert("RGBA")
    image.putalpha(100)
    np.testing.assert_array_equal(decoded(pillow(image, name)).image, SCENE)


@pytest.mark.parametrize("name", ["PNG", "BMP", "TIFF"])
def test_palettes_become_colours(name: str) -> None:
    expected = np.asarray(Image.fromarray(SCENE).convert("P").convert("RGB"))
    np.testing.assert_array_equal(decoded(picture("P", name)).image, expected)


def test_cmyk_jpeg_becomes_rgb() -> None:
    image = decoded(picture("CMYK", "JPEG", quality=95)).image
    assert image is not None
    assert np.abs(image.astype(int) - SCENE.astype(int)).mean() < 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_rotated_pictures_are_turned_upright(name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    payload = pillow(Image.fromarray(SCENE), name, exif=exif)
    from PIL import ImageOps

    with Image.open(io.BytesIO(payload)) as opened:
        upright = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    image = decoded(payload).image
    assert image is not None
    assert image.shape == upright.shape
    assert np.abs(image.astype(int) - upright.astype(int)).mean() < 3


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9, 0.99])
def test_a_truncated_image_is_refused(name: str, share: float) -> None:
    payload = IMAGES[name]
    assert refused(payload[: int(len(payload) * share)]) == "undecodable"


def test_a_header_that_nothing_can_be_made_of_is_told_in_words() -> None:
    for name, payload in IMAGES.items():
        for size in range(12, len(payload) // 2, 40):
            with pytest.raises(BadSample) as caught:
                decoded(payload[:size])
            assert "object at" not in str(caught.value), name


def test_a_long_jpeg_cut_short_is_refused_and_not_finished_in_grey() -> None:
    noise = RNG.integers(0, 255, (600, 800, 3)).astype(np.uint8)
    for options in ({}, {"progressive": True}):
        payload = pillow(Image.fromarray(noise), "JPEG", **options)
        for cut in (len(payload) // 3, len(payload) // 2, len(payload) - 2):
            assert refused(payload[:cut]) == "undecodable"


def test_the_end_marker_of_a_thumbnail_does_not_count() -> None:
    exif = b"Exif\0\0" + picture(name="JPEG")  # any bytes with an end marker stand in for a thumbnail
    payload = pillow(Image.fromarray(SCENE), "JPEG", exif=exif)
    assert refused(payload[: len(payload) - 400]) == "undecodable"


@pytest.fixture
def nothing_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr("cv2.imdecode", decode)


@pytest.mark.usefixtures("nothing_is_decoded")
def test_a_png_chunk_that_claims_gigabytes_is_refused_before_it_is_decoded() -> None:
    payload = bytearray(picture())
    at = payload.index(b"IDAT") - 4
    payload[at] = 0xFF
    assert refused(bytes(payload)) == "undecodable"


def test_padding_after_the_end_of_a_jpeg_is_harmless() -> None:
    assert decoded(IMAGES["JPEG"] + bytes(100)).image is not None


@pytest.mark.parametrize(
    "payload", [png_of_size(30_000, 30_000), picture(name="BMP")[:18] + struct.pack("<ii", 40_000, 40_000) + picture(name="BMP")[26:]]
)
@pytest.mark.usefixtures("nothing_is_decoded")
def test_a_decompression_bomb_is_refused_before_it_is_decoded(payload: bytes) -> None:
    assert refused(payload) == "too_large"


def test_webp_and_jpeg_beyond_max_pixels_are_refused() -> None:
    large = Image.new("RGB", (2000, 1000))
    for payload in (
        pillow(large, "WEBP"),
        pillow(large, "WEBP", lossless=True),
        pillow(large, "JPEG"),
        pillow(large, "TIFF", compression="tiff_lzw"),
    ):
        assert refused(payload) == "too_large"


def test_empty_payloads_and_pictures() -> None:
    assert refused(b"") == "empty"
    assert refused(png_of_size(0, 10)) in ("empty", "undecodable")


def test_too_many_bytes() -> None:
    assert refused(IMAGES["PNG"], limits=SourceOptions(max_bytes=100)) == "too_large"


def test_the_content_type_must_not_lie() -> None:
    assert refused(IMAGES["JPEG"], "image/png") == "lying_header"
    assert refused(IMAGES["JPEG"], "audio/wav") == "lying_header"
    assert refused(sound(), "image/png") == "lying_header"
    assert refused(b"hello world", "image/png") == "undecodable"
    assert refused(b"hello world") == "undecodable"
    assert refused(IMAGES["JPEG"], "video/mp4") == "unsupported"
    assert decoded(IMAGES["JPEG"], "image/jpeg; quality=high").image is not None
    assert decoded(IMAGES["JPEG"], "Application/Octet-Stream").image is not None


def test_images_that_no_camera_sends() -> None:
    assert refused(picture("CMYK", "TIFF")) == "unsupported"
    assert refused(picture("I", "TIFF")) == "unsupported"
    again = [Image.fromarray(SCENE[::-1])]
    for name in ("TIFF", "WEBP", "PNG"):
        assert refused(picture(name=name, save_all=True, append_images=again)) == "unsupported", name


def test_npy_images() -> None:
    for value in (SCENE, SCENE16, SCENE[..., :1], np.asfortranarray(SCENE), SCENE16.astype(">u2")):
        image = decoded(array(value)).image
        np.testing.assert_array_equal(image, value)
        assert image is not None
        assert image.dtype.isnative
    assert decoded(array(SCENE[..., 0])).image.shape == (60, 80, 1)  # type: ignore[union-attr]


def test_npz_with_depth_or_xyz() -> None:
    depth = RNG.random((60, 80)).astype(np.float32)
    depth[0, 0] = np.nan
    np.testing.assert_array_equal(decoded(archive(image=SCENE, depth=depth)).depth, depth)
    xyz = np.stack([depth, depth + 1, depth + 2], axis=-1).astype(np.float64)
    sample = decoded(archive(image=SCENE, xyz=xyz, note=np.arange(5)))
    assert sample.modality == "rgbd"
    assert sample.depth is not None
    assert sample.depth.dtype == np.float32
    np.testing.assert_array_equal(sample.depth, xyz[..., 2].astype(np.float32))
    assert decoded(archive(image=SCENE)).modality == "image"


class _Explodes:
    def __reduce__(self) -> tuple[object, ...]:
        return (pytest.fail, ("a pickle was executed",))


def test_npy_that_must_not_be_read() -> None:
    nan = np.full((4, 4), np.nan, np.float32)
    assert refused(array(nan)) == "unsupported"
    assert refused(array(np.array([_Explodes()], dtype=object))) == "unsupported"
    assert refused(archive(image=np.array([[_Explodes()]], dtype=object))) == "unsupported"
    assert refused(array(np.zeros((2, 2), dtype=[("a", "u1")]))) == "unsupported"
    assert refused(array(np.zeros((3, 60, 80), np.uint8))) in ("unsupported", "too_large")
    assert refused(array(np.zeros((0, 4), np.uint8))) == "empty"
    assert refused(array(np.zeros((), np.uint8))) == "empty"
    assert refused(array(SCENE)[:-1]) == "undecodable"
    assert refused(array(SCENE) + b"x") == "undecodable"
    assert refused(b"\x93NUMPY\x01\x00\xff\xff{'descr'") == "undecodable"
    assert refused(b"\x93NUMPY\x01\x00\x10\x27" + b"(" * 10_000) == "undecodable"


def test_npy_header_that_claims_more_than_there_is() -> None:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (900, 900)})
    assert refused(file.getvalue() + bytes(100)) == "undecodable"
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (10**12, 10**12)})
    assert refused(file.getvalue() + bytes(100)) == "too_large"
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (-4, -4)})
    assert refused(file.getvalue() + bytes(16)) == "undecodable"


def test_npz_bombs_and_lies() -> None:
    zeros = np.zeros((40_000, 10_000), np.uint8)
    assert refused(archive(image=zeros[:2000])) == "too_large"
    honest = archive(image=np.zeros((900, 900), np.uint8))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("image.npy", array(np.zeros((10, 10), np.uint8)) + bytes(50_000_000))
    assert refused(file.getvalue()) == "undecodable"
    with zipfile.ZipFile(io.BytesIO(honest)) as opened:
        size = opened.getinfo("image.npy").file_size
    lying = honest.replace(struct.pack("<I", size), struct.pack("<I", 200))
    assert lying != honest
    assert refused(lying) == "undecodable"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_LZMA) as other:
        other.writestr("image.npy", array(SCENE))
    assert refused(file.getvalue()) == "unsupported"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as many:
        for index in range(70):
            many.writestr(f"{index}.npy", b"")
    assert refused(file.getvalue()) == "too_large"


def test_npz_of_the_wrong_things() -> None:
    depth = np.ones((60, 80), np.float32)
    assert refused(archive(depth=depth)) == "unsupported"
    assert refused(archive(image=SCENE, depth=depth[:-1])) == "undecodable"
    assert refused(archive(image=SCENE, depth=depth * np.inf)) == "undecodable"
    assert refused(archive(image=SCENE, depth=np.full((60, 80), 1e300))) == "undecodable"
    assert refused(archive(image=SCENE, depth=depth.astype(np.uint16))) == "unsupported"
    assert refused(archive(image=SCENE, xyz=depth)) == "unsupported"
    assert refused(archive(image=SCENE, depth=depth, xyz=np.dstack([depth] * 3))) == "unsupported"
    assert refused(archive(image=depth)) == "unsupported"


@pytest.mark.parametrize(
    ("name", "subtype"),
    [
        ("WAV", "PCM_16"),
        ("WAV", "PCM_24"),
        ("WAV", "FLOAT"),
        ("WAV", "PCM_U8"),
        ("WAVEX", "PCM_16"),
        ("RF64", "PCM_16"),
        ("FLAC", None),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
    ],
)
def test_sound_to_samples(name: str, subtype: str | None) -> None:
    stereo = np.stack([TONE, -TONE], axis=1)
    sample = decoded(sound(stereo, name, subtype=subtype))
    assert sample.waveform is not None
    assert (sample.waveform.shape, sample.rate, sample.modality) == ((2, 8000), 16000, "sound")
    assert np.abs(sample.waveform - stereo.T).mean() < 0.02
    assert sample.waveform.flags.c_contiguous


@pytest.mark.parametrize("name", ["WAV", "FLAC", "OGG"])
@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.99])
def test_truncated_sound_is_refused(name: str, share: float) -> None:
    payload = sound(np.tile(TONE, 4), name)
    assert refused(payload[: int(len(payload) * share)]) == "undecodable"


def test_sound_that_is_empty_too_long_or_not_finite() -> None:
    assert refused(sound(TONE[:0])) == "empty"
    assert refused(sound(np.tile(TONE, 25))) == "too_large"
    assert refused(sound(np.tile(TONE, 25), "FLAC")) == "too_large"
    assert refused(sound(np.zeros((16000 * 9, 30), np.float32)), limits=SourceOptions(max_seconds=10, max_bytes=10**8)) == "too_large"
    for poison in (np.nan, np.inf):
        values = TONE.copy()
        values[100] = poison
        assert refused(sound(values, subtype="FLOAT")) == "undecodable"


def test_wav_headers_that_lie() -> None:
    payload = sound()
    rate = payload.index(b"fmt ") + 12
    data = payload.index(b"data") + 4
    for wrong in (0, 4_000_000_000, 500_000):
        assert refused(payload[:rate] + struct.pack("<I", wrong) + payload[rate + 4 :]) == "lying_header"
    assert refused(payload[:rate] + struct.pack("<I", 8000) + payload[rate + 4 :]) == "lying_header"
    assert refused(payload[:data] + struct.pack("<I", 10**9) + payload[data + 4 :]) == "undecodable"
    assert refused(payload[:data] + struct.pack("<I", 0)) == "empty"
    streamed = decoded(payload[:data] + struct.pack("<I", 0xFFFFFFFF) + payload[data + 4 :])
    assert streamed.waveform is not None
    assert streamed.waveform.shape == (1, 8000)


def test_flac_that_claims_a_year() -> None:
    payload = bytearray(sound(name="FLAC"))
    payload[21] |= 0x0F
    payload[22:26] = b"\xff\xff\xff\xff"
    assert refused(bytes(payload)) == "too_large"
    payload[21] &= 0xF0
    payload[22:26] = bytes(4)
    assert refused(bytes(payload)) == "too_large"


EVERY_KIND = {
    **IMAGES,
    "NPY": array(SCENE),
    "NPZ": archive(image=SCENE, depth=SCENE[..., 0].astype(np.float32)),
    "WAV": sound(),
    "FLAC": sound(name="FLAC"),
    "OGG": sound(name="OGG"),
    "PNG16": cv2.imencode(".png", SCENE16)[1].tobytes(),
    "TIFF_LZW": picture(name="TIFF", compression="tiff_lzw"),
    "TIFF_SCAN": cv2.imencode(".tiff", SCENE.astype(np.float32))[1].tobytes(),
    "TIFF_DEPTH": picture("F", "TIFF"),
    "TIFF_DEPTH_DEFLATE": picture("F", "TIFF", compression="tiff_adobe_deflate"),
}


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_broken_bytes_never_raise_anything_but_a_bad_sample(kind: str) -> None:
    payload = EVERY_KIND[kind]
    rng = np.random.default_rng(sum(kind.encode()))
    for round_ in range(250):
        broken = bytearray(payload)
        for _ in range(int(rng.integers(1, 6))):
            # every other round in the first 64 bytes, where the headers are
            at = int(rng.integers(0, min(64, len(broken)) if round_ % 2 else len(broken)))
            broken[at] = int(rng.integers(0, 256))
        if rng.random() < 0.3:
            del broken[int(rng.integers(0, len(broken))) :]
        try:
            sample = decode(message(bytes(broken)), LIMITS)
        except BadSample as error:
            assert error.reason in {"undecodable", "too_large", "empty", "unsupported", "lying_header"}  # noqa: PT017
        else:
            assert any(sensor is not None for sensor in (sample.image, sample.depth, sample.waveform))


def test_every_real_picture_and_sound_decodes(data: Path) -> None:
    """Whole, and not when its second half is missing."""
    files = [
        path
        for pattern in ("mvtec/*/test/*/*", "mvtec_layout/*/test/*/*", "textures/*", "dcase2020/dev_data/*/test/*")
        for path in _some(data, pattern)
    ]
    assert len(files) > 10
    for path in files:
        payload = path.read_bytes()
        sample = decode(message(payload), SourceOptions())
        if path.suffix == ".wav":
            assert sample.rate == 16000
        else:
            expected = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            assert sample.image is not None
            assert expected is not None
            assert sample.image.shape[:2] == expected.shape[:2]
        assert refused(payload[: len(payload) // 2], limits=SourceOptions()) == "undecodable"


def _some(data: Path, pattern: str) -> list[Path]:
    files = sorted(data.glob(pattern))
    return files[:: max(1, len(files) // 5)]
