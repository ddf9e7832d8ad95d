"""TIFFs of floats: depth and xyz as a 3D camera saves them, and what must be refused before memory is taken for it."""

import io
import struct
from collections.abc import Sequence

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from monitor.decoding import decode
from monitor.errors import BadSample
from monitor.ports import SourceOptions
from monitor.types import Message, Sample

LIMITS = SourceOptions(max_pixels=1_000_000)
XYZ = np.random.default_rng(3).random((30, 41, 3), np.float32)  # (H, W, 3)
XYZ[4, 5, 2] = np.nan
XYZ[6:9, 7] = 0
Z = np.ascontiguousarray(XYZ[..., 2])

UPRIGHT = {
    1: Z,
    2: np.fliplr(Z),
    3: np.rot90(Z, 2),
    4: np.flipud(Z),
    5: Z.T,
    6: np.rot90(Z, -1),
    7: np.rot90(Z, 2).T,
    8: np.rot90(Z),
}


def message(payload: bytes) -> Message:
    return Message(source="scanner", topic="press", position="0-1", payload=payload, received=5.0)


def decoded(payload: bytes) -> Sample:
    return decode(message(payload), LIMITS)


def refused(payload: bytes, limits: SourceOptions = LIMITS) -> str:
    with pytest.raises(BadSample) as caught:
        decode(message(payload), limits)
    assert str(caught.value)
    return caught.value.reason


def tiff(array: NDArray[np.generic] = XYZ, *, order: str = "<", big: bool = False, strip: bytes | None = None, **named: Sequence[int]) -> bytes:
    """An uncompressed TIFF, one strip, written here tag by tag so that any of them can lie: `tiff(t256=(9, 9))` writes 9 twice."""
    shape = array.shape
    samples = shape[2] if array.ndim == 3 else 1
    pixels = array.astype(array.dtype.newbyteorder(order)).tobytes() if strip is None else strip
    head = 16 if big else 8
    tags: dict[int, Sequence[int]] = {
        256: (shape[1],),
        257: (shape[0],),
        258: (8 * array.dtype.itemsize,) * samples,
        259: (1,),
        262: (1,),
        273: (head,),
        277: (samples,),
        278: (shape[0],),
        279: (len(pixels),),
        284: (1,),
        339: (3 if array.dtype.kind == "f" else 1,) * samples,
        **{int(name[1:]): value for name, value in named.items()},
    }
    entries, outside = [], b""
    size, inline = (20, 8) if big else (12, 4)
    at = head + len(pixels)
    behind = at + (8 if big else 2) + size * len(tags) + (8 if big else 4)
    for tag, values in sorted(tags.items()):
        content = struct.pack(f"{order}{len(values)}I", *values)
        if len(content) > inline:
            place = struct.pack(order + ("Q" if big else "I"), behind + len(outside))
            outside += content
            content = place
        entries.append(struct.pack(order + ("HHQ" if big else "HHI"), tag, 4, len(values)) + content.ljust(inline, b"\0"))
    letters = b"II" if order == "<" else b"MM"
    header = letters + (struct.pack(order + "HHHQ", 43, 8, 0, at) if big else struct.pack(order + "HI", 42, at))
    count = struct.pack(order + ("Q" if big else "H"), len(tags))
    return header + pixels + count + b"".join(entries) + bytes(8 if big else 4) + outside


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_xyz_becomes_depth_and_nothing_else(order: str, big: bool) -> None:
    sample = decoded(tiff(order=order, big=big))
    assert sample.image is None
    assert sample.modality == "rgbd"
    assert sample.depth is not None
    assert (sample.depth.dtype, sample.depth.flags.c_contiguous) == (np.float32, True)
    np.testing.assert_array_equal(sample.depth, Z)  # NaN and 0, which say "not measured", stay what they are
    np.testing.assert_array_equal(decoded(tiff(Z, order=order, big=big)).depth, Z)


def test_what_others_write_is_read_too() -> None:
    np.testing.assert_array_equal(decoded(cv2.imencode(".tiff", XYZ[..., ::-1])[1].tobytes()).depth, Z)
    for compression in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits"):
        file = io.BytesIO()
        Image.fromarray(Z).save(file, "TIFF", compression=compression)
        np.testing.assert_array_equal(decoded(file.getvalue()).depth, Z, err_msg=str(compression))


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_rotated_scan_is_turned_upright_as_a_picture_is(orientation: int) -> None:
    np.testing.assert_array_equal(decoded(tiff(t274=(orientation,))).depth, UPRIGHT[orientation])


@pytest.mark.parametrize("poison", [np.inf, -np.inf])
def test_infinite_depth_is_refused(poison: float) -> None:
    array = XYZ.copy()
    array[1, 1, 0] = poison  # x is not read
    assert decoded(tiff(array)).depth is not None
    array[1, 1, 2] = poison
    assert refused(tiff(array)) == "undecodable"


def test_floats_that_no_scanner_sends() -> None:
    assert refused(tiff(XYZ.astype(np.float64))) == "unsupported"
    assert refused(tiff(XYZ.astype(np.float16))) == "unsupported"
    assert refused(tiff(XYZ[..., :2])) == "unsupported"
    assert refused(tiff(np.dstack([XYZ, Z]))) == "unsupported"
    assert refused(tiff(t284=(2,))) == "unsupported"  # OpenCV would mix up the planes without a word
    assert refused(tiff(t339=(3, 1, 1))) == "unsupported"
    assert refused(tiff(t259=(34887,))) == "unsupported"
    assert refused(tiff(t256=(0,))) == "empty"
    file = io.BytesIO()
    Image.fromarray(Z).save(file, "TIFF", save_all=True, append_images=[Image.fromarray(Z)])
    assert refused(file.getvalue()) == "unsupported"


@pytest.fixture
def nothing_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr("cv2.imdecode", decode)


LARGE = {
    "picture": {"t256": (40_000,), "t257": (40_000,)},
    "width of 32 bits": {"t256": (2**32 - 1,), "t257": (2**32 - 1,)},
    "strip": {"t278": (100_000,)},
    "tile": {"t322": (65_536,), "t323": (65_536,)},
}


@pytest.mark.parametrize("what", LARGE)
@pytest.mark.usefixtures("nothing_is_decoded")
def test_what_is_too_large_is_refused_before_it_is_decoded(what: str) -> None:
    assert refused(tiff(**LARGE[what])) == "too_large"


@pytest.mark.usefixtures("nothing_is_decoded")
def test_a_size_that_is_said_twice_is_refused_before_it_is_decoded() -> None:
    payload = tiff()
    height = payload.index(struct.pack("<HHI", 257, 4, 1), 8 + XYZ.nbytes)
    twice = payload[:height] + struct.pack("<H", 256) + payload[height + 2 :]
    assert refused(twice) == "undecodable"
    odd = tiff(t256=(41,) * 5).replace(struct.pack("<HHI", 257, 4, 1), struct.pack("<HHI", 256, 4, 1))  # the first is none that counts
    assert refused(odd) == "undecodable"


@pytest.mark.usefixtures("nothing_is_decoded")
def test_a_negative_size_is_refused_before_it_is_decoded() -> None:
    payload = tiff(t278=(100_000,), t322=(2**32 - 1,), t323=(16,))
    assert refused(payload.replace(struct.pack("<HHI", 322, 4, 1), struct.pack("<HHI", 322, 9, 1))) == "undecodable"


@pytest.mark.parametrize("kind", [4, 9])  # LONG, SLONG
@pytest.mark.usefixtures("nothing_is_decoded")
def test_a_large_tile_is_refused_in_whatever_type_it_is_said(kind: int) -> None:
    payload = tiff(t322=(16_384,), t323=(16_384,))
    for tag in (322, 323):
        payload = payload.replace(struct.pack("<HHI", tag, 4, 1), struct.pack("<HHI", tag, kind, 1))
    assert refused(payload) == "too_large"


def test_one_strip_may_be_said_by_the_largest_number() -> None:
    np.testing.assert_array_equal(decoded(tiff(t278=(2**32 - 1,))).depth, Z)


@pytest.mark.parametrize("share", [0.001, 0.2, 0.5, 0.9, 0.999])
def test_a_truncated_scan_is_refused(share: float) -> None:
    whole = cv2.imencode(".tiff", XYZ)[1].tobytes()  # its directory is at the end
    assert refused(whole[: int(len(whole) * share)]) == "undecodable"
    assert refused(tiff()[: int(len(tiff()) * share)]) == "undecodable"


def test_a_scan_without_all_of_its_pixels_is_refused() -> None:
    assert refused(tiff(strip=XYZ.tobytes()[:-4000])) == "undecodable"
    assert refused(tiff(t273=(10**9,))) == "undecodable"


def test_directories_that_lead_nowhere() -> None:
    for at in (0, 3, 10**6, 2**32 - 1):
        assert refused(b"II*\0" + struct.pack("<I", at) + bytes(100)) == "undecodable"
    assert refused(b"II+\0\x08\0\0\0" + struct.pack("<Q", 2**64 - 1) + bytes(100)) == "undecodable"
    assert refused(b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**63) + bytes(100)) == "undecodable"
