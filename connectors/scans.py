"""Scans: what of a float array or of a float TIFF is depth. A scan is a grid of points (x, y, z); z is the depth.

TIFF's header is read here, because Pillow opens no TIFF of three floats per pixel; the pixels are OpenCV's (libtiff).
Source: TIFF 6.0, section 2 (the directory); Adobe PageMaker 6.0 TIFF Technical Notes (tiles); libtiff's BigTIFF design.
"""

import struct
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from monitor.errors import BadSample
from monitor.types import FloatArray

Tags = dict[int, tuple[int, ...]]

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _ORIENTATION, _SAMPLES, _ROWS, _PLANAR = 256, 257, 258, 259, 274, 277, 278, 284
_TILE_WIDTH, _TILE_HEIGHT, _SAMPLE_FORMAT = 322, 323, 339
_NAMED = frozenset({_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _ORIENTATION, _SAMPLES, _ROWS, _PLANAR, _TILE_WIDTH, _TILE_HEIGHT, _SAMPLE_FORMAT})
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 16: "Q", 17: "q"}  # all of TIFF's types that libtiff takes for a size
_FLOAT = 3
_NEXT = 0  # no tag of TIFF
_LOSSLESS = {1: "none", 5: "LZW", 8: "deflate", 32773: "PackBits", 32946: "deflate"}
_ALL_ROWS = 0xFFFFFFFF  # RowsPerStrip: the picture is one strip


def z_of(array: NDArray[Any], *, grid: bool) -> FloatArray:
    """Depth (H, W), or with `grid` points (H, W, 3) -> depth (H, W) float32. NaN, and 0, mean "not measured" and are kept. Raises BadSample."""
    shape_is_right = array.ndim == 3 and array.shape[2] == 3 if grid else array.ndim == 2
    if array.dtype.kind != "f" or not shape_is_right:
        expected = "xyz (H, W, 3)" if grid else "depth (H, W)"
        raise BadSample("unsupported", f"{array.dtype} of shape {array.shape} where float {expected} is read")
    z = array[:, :, 2] if grid else array
    with np.errstate(over="ignore"):
        z = np.ascontiguousarray(z, dtype=np.float32)
    if np.isinf(z).any():
        raise BadSample("undecodable", "infinite depth; NaN is what says that a pixel was not measured")
    return z


def float_tags(payload: bytes) -> Tags | None:
    """What the first directory of a TIFF says, where its pixels are floats; None of any other TIFF, and of a broken one. Raises BadSample.

    That is for a size which stands there twice or is negative: what is checked need not be what is decoded.
    """
    try:
        tags = _tags(payload)
    except (struct.error, OverflowError):  # its directory leads out of the bytes: Pillow finds the words for that
        return None
    return tags if _FLOAT in tags.get(_SAMPLE_FORMAT, ()) else None


def read_float_tiff(payload: bytes, tags: Tags, max_pixels: int) -> FloatArray:
    """One TIFF of 32-bit floats, (H, W) depth or (H, W, 3) xyz -> depth (H, W), upright. Raises BadSample."""
    width, height = _only(tags, _WIDTH), _only(tags, _HEIGHT)
    if not width or not height:
        raise BadSample("empty", f"the scan is {width} x {height} pixels")
    # libtiff unpacks a strip or a tile at a time, whatever of it lies outside of the picture
    rows = _only(tags, _ROWS, _ALL_ROWS)
    piece = _only(tags, _TILE_WIDTH) * _only(tags, _TILE_HEIGHT) if _TILE_WIDTH in tags else width * (1 if rows == _ALL_ROWS else rows)
    if max(width * height, piece) > max_pixels:
        raise BadSample("too_large", f"the scan is {width} x {height} pixels in pieces of {piece}, this source takes at most {max_pixels}")
    _check_kind(tags)
    try:
        found: Any = cv2.imdecode(np.frombuffer(payload, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise BadSample("undecodable", f"broken TIFF: {error.err}") from None
    upright = (height, width) if _only(tags, _ORIENTATION, 1) < 5 else (width, height)
    if found is None or found.dtype != np.float32 or found.shape[:2] != upright or found[..., None].shape[2] != _only(tags, _SAMPLES, 1):
        raise BadSample("undecodable", "broken or truncated TIFF of floats")
    return z_of(found[:, :, ::-1] if found.ndim == 3 else found, grid=found.ndim == 3)  # OpenCV's order is z, y, x


def _check_kind(tags: Tags) -> None:
    samples = _only(tags, _SAMPLES, 1)
    if samples not in (1, 3) or tags.get(_BITS) != (32,) * samples or set(tags[_SAMPLE_FORMAT]) != {_FLOAT}:
        bits = ", ".join(map(str, tags.get(_BITS, ())))
        raise BadSample("unsupported", f"TIFF with {samples} values per pixel of {bits} bits; one (depth) or three (xyz) floats of 32 bits are read")
    if samples == 3 and _only(tags, _PLANAR, 1) != 1:
        raise BadSample("unsupported", "TIFF of floats with x, y and z in planes of their own; pixel by pixel is read")
    if _only(tags, _COMPRESSION, 1) not in _LOSSLESS:
        known = ", ".join(sorted(set(_LOSSLESS.values())))
        raise BadSample("unsupported", f"TIFF of floats with compression {_only(tags, _COMPRESSION)}; {known} is read")
    if _only(tags, _NEXT):
        raise BadSample("unsupported", "TIFF of floats with several pictures; one message holds one")


def _only(tags: Tags, tag: int, default: int = 0) -> int:
    return tags.get(tag, (default,))[0]


def _tags(payload: bytes) -> Tags:
    """Tag -> values, of those named above; _NEXT -> where the next directory lies, or 0.

    Raises struct.error or OverflowError where it leads out of the bytes, and BadSample.
    """
    order = "<" if payload[:2] == b"II" else ">"
    big = struct.unpack_from(f"{order}H", payload, 2)[0] == 43
    offset, entry, most = ("Q", "HHQ8s", 8) if big else ("I", "HHI4s", 4)
    (at,) = struct.unpack_from(order + offset, payload, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), payload, at)
    at += 8 if big else 2
    if count > 4096:  # TIFF has a hundred tags
        raise BadSample("undecodable", f"TIFF whose directory has {count} entries")
    tags: Tags = {}
    seen: set[int] = set()
    size = struct.calcsize(order + entry)
    for _ in range(count):
        tag, kind, values, inline = struct.unpack_from(order + entry, payload, at)
        at += size
        if tag not in _NAMED:
            continue
        if tag in seen:
            raise BadSample("undecodable", f"TIFF with two tags {tag}")
        seen.add(tag)
        if kind not in _INTEGERS or not 0 < values <= 4:
            continue  # libtiff takes no such size either
        read = f"{order}{values}{_INTEGERS[kind]}"
        if struct.calcsize(read) <= most:
            tags[tag] = struct.unpack_from(read, inline)
        else:
            tags[tag] = struct.unpack_from(read, payload, struct.unpack(order + offset, inline)[0])
        if min(tags[tag]) < 0:
            raise BadSample("undecodable", f"TIFF whose tag {tag} is {min(tags[tag])}")
    tags[_NEXT] = struct.unpack_from(order + offset, payload, at)
    return tags
