"""Payloads -> samples: images, scans, NumPy arrays, sound. Sizes are read from the header before anything is decoded.

Alpha is dropped, not composited: the colours are what the sensor saw, a background would be our invention.
"""

import io
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from connectors.arrays import read_archive, read_array
from connectors.scans import float_tags, read_float_tiff, z_of
from connectors.sound import read_sound
from monitor.errors import BadSample
from monitor.ports import SourceOptions
from monitor.types import Envelope, Message, Sample

Pixels = NDArray[np.uint8] | NDArray[np.uint16]

Image.MAX_IMAGE_PIXELS = None  # each source has its own max_pixels, checked below
warnings.filterwarnings("ignore", module=r"PIL\.")  # Pillow only reads headers here; odd ones are not worth a line on stderr
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what it cannot decode is reported as BadSample

_ORIENTATION = 0x0112
_BITS_PER_SAMPLE = 0x0102
_UPRIGHT: dict[int, Callable[[Any], Any]] = {  # EXIF orientation -> what turns the picture upright
    2: np.fliplr,
    3: lambda image: np.rot90(image, 2),
    4: np.flipud,
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: np.rot90(image, 2).swapaxes(0, 1),
    8: np.rot90,
}
_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "I;16", "I;16B", "I;16L", "CMYK", "YCbCr"})


class ImageFormat:
    """JPEG, PNG, TIFF, BMP, WebP -> (H, W, 1 or 3) uint8 or uint16, upright, RGB. One picture per message.

    A TIFF of 32-bit floats is a scan: one value per pixel is depth, three are x, y and z; depth without an image comes of it.
    """

    _by_name: ClassVar = {
        "JPEG": frozenset({"image/jpeg", "image/jpg", "image/pjpeg"}),
        "PNG": frozenset({"image/png", "image/x-png"}),
        "TIFF": frozenset({"image/tiff", "image/tif", "image/x-tiff"}),
        "BMP": frozenset({"image/bmp", "image/x-bmp", "image/x-ms-bmp"}),
        "WEBP": frozenset({"image/webp"}),
    }
    media_types = frozenset().union(*_by_name.values())

    def sniff(self, payload: bytes) -> frozenset[str]:
        name = _image_name(payload)
        return self._by_name[name] if name else frozenset()

    def decode(self, message: Message, envelope: Envelope, limits: SourceOptions) -> Sample:
        payload = envelope.payload
        name = _image_name(payload)
        if name is None:
            raise BadSample("undecodable", "not an image")
        if name == "TIFF" and (tags := float_tags(payload)) is not None:
            return sample(message, envelope, depth=read_float_tiff(payload, tags, limits.max_pixels))
        if name == "WEBP":
            _check_pixels(*_webp_size(payload), limits)  # Pillow reserves memory for the whole canvas when it opens one
        try:
            with Image.open(io.BytesIO(payload), formats=[name]) as header:
                width, height = header.size
                mode = header.mode
                pages = getattr(header, "n_frames", 1) if name in ("TIFF", "PNG", "WEBP") else 1
                orientation = _orientation(header)
                deep = name == "TIFF" and max(header.tag_v2.get(_BITS_PER_SAMPLE, (1,))) > 8  # type: ignore[attr-defined]
        except Exception as error:  # Pillow raises nearly anything for broken bytes
            why = "none that can be read" if isinstance(error, UnidentifiedImageError) else error  # whose words are an address in memory
            raise BadSample("undecodable", f"broken {name} header: {why}") from error
        _check_pixels(width, height, limits)
        if pages > 1:
            raise BadSample("unsupported", f"{name} with {pages} pictures; one message holds one")
        if mode not in _MODES or (mode == "CMYK" and name != "JPEG"):
            raise BadSample("unsupported", f"{name} with pixels of mode {mode}; 8 or 16 bit grey or colour is read")
        if name == "JPEG" and not _jpeg_ends(payload):
            raise BadSample("undecodable", "truncated JPEG: no end marker behind its first scan")
        if name == "PNG" and not _png_ends(payload):
            raise BadSample("undecodable", "broken or truncated PNG: its chunks do not lead to its end")
        image = _tiff_pixels(payload) if name == "TIFF" and not deep else _pixels(payload, name, mode)
        if image.shape[:2] != (height, width):
            raise BadSample("undecodable", f"{name} header says {width} x {height}, decoded are {image.shape[1]} x {image.shape[0]}")
        turn = _UPRIGHT.get(orientation)
        return sample(message, envelope, image=image if turn is None else np.ascontiguousarray(turn(image)))


class NumpyFormat:
    """NPY: `image` as (H, W), (H, W, 1), (H, W, 3 or 4) uint8 or uint16. NPZ: that with `depth` (H, W) or `xyz` (H, W, 3) float.

    Depth is z; NaN in it means "not measured" and is kept, as 0 is. Other arrays of an NPZ are not read.
    """

    _npy = frozenset({"application/x-npy", "application/npy", "application/x-numpy"})
    _npz = frozenset({"application/x-npz", "application/npz", "application/zip"})
    media_types = _npy | _npz

    def sniff(self, payload: bytes) -> frozenset[str]:
        if payload.startswith(b"\x93NUMPY"):
            return self._npy
        return self._npz if payload.startswith(b"PK\x03\x04") else frozenset()

    def decode(self, message: Message, envelope: Envelope, limits: SourceOptions) -> Sample:
        if envelope.payload.startswith(b"\x93NUMPY"):
            image = read_array(envelope.payload, limits.max_pixels)
            return sample(message, envelope, image=_as_image(image))
        arrays = read_archive(envelope.payload, ("image", "depth", "xyz"), limits.max_pixels)
        if "image" not in arrays:
            raise BadSample("unsupported", "NPZ without an array called image; depth alone is read as TIFF of 32-bit floats")
        if "depth" in arrays and "xyz" in arrays:
            raise BadSample("unsupported", "NPZ with both depth and xyz; one of them is taken")
        image, depth = _as_image(arrays["image"]), None
        if "depth" in arrays or "xyz" in arrays:
            depth = z_of(arrays["depth"], grid=False) if "depth" in arrays else z_of(arrays["xyz"], grid=True)
            if depth.shape != image.shape[:2]:
                raise BadSample("undecodable", f"depth of shape {depth.shape} beside an image of shape {image.shape}")
        return sample(message, envelope, image=image, depth=depth)


class SoundFormat:
    """WAV, FLAC, OGG (Vorbis, Opus) -> (channels, T) float32 at the rate of the file. One whole recording per message."""

    _wav = frozenset({"audio/wav", "audio/x-wav", "audio/wave", "audio/vnd.wave"})
    _flac = frozenset({"audio/flac", "audio/x-flac"})
    _ogg = frozenset({"audio/ogg", "application/ogg", "audio/vorbis", "audio/opus"})
    media_types = _wav | _flac | _ogg

    def sniff(self, payload: bytes) -> frozenset[str]:
        if payload[:4] in (b"RIFF", b"RF64") and payload[8:12] == b"WAVE":
            return self._wav
        if payload.startswith(b"fLaC"):
            return self._flac
        return self._ogg if payload.startswith(b"OggS") else frozenset()

    def decode(self, message: Message, envelope: Envelope, limits: SourceOptions) -> Sample:
        waveform, rate = read_sound(envelope.payload, limits.max_seconds)
        return sample(message, envelope, waveform=waveform, rate=rate)


def sample(message: Message, envelope: Envelope, **sensors: Any) -> Sample:
    return Sample(
        source=message.source,
        topic=message.topic,
        position=message.position,
        stream=envelope.stream,
        captured=envelope.captured,
        received=message.received,
        **sensors,
    )


def _image_name(payload: bytes) -> str | None:
    """Pillow's name of the format that the bytes begin with."""
    if payload.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if payload.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if payload[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    if payload.startswith(b"BM") and payload[14:18] in (b"\x0c\0\0\0", b"\x28\0\0\0", b"\x34\0\0\0", b"\x38\0\0\0", b"\x6c\0\0\0", b"\x7c\0\0\0"):
        return "BMP"
    return "WEBP" if payload.startswith(b"RIFF") and payload[8:12] == b"WEBP" else None


def _webp_size(payload: bytes) -> tuple[int, int]:
    """Source: RFC 9649, sections 2.5 to 2.7."""
    kind, head = payload[12:16], payload[20:30]
    if len(head) == 10:
        if kind == b"VP8X":
            return int.from_bytes(head[4:7], "little") + 1, int.from_bytes(head[7:10], "little") + 1
        if kind == b"VP8 ":
            return int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(head[8:10], "little") & 0x3FFF
        if kind == b"VP8L":
            bits = int.from_bytes(head[1:5], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    raise BadSample("undecodable", f"broken WEBP header: first chunk {kind!r}")


def _check_pixels(width: int, height: int, limits: SourceOptions) -> None:
    if width <= 0 or height <= 0:
        raise BadSample("empty", f"the image is {width} x {height} pixels")
    if width * height > limits.max_pixels:
        raise BadSample("too_large", f"the image is {width} x {height} pixels, this source takes at most {limits.max_pixels}")


def _orientation(header: Image.Image) -> int:
    """1 to 8; 1 for a TIFF, which both decoders turn upright themselves.

    Not by getexif() alone: for a PNG without EXIF it decodes the picture to look for it at the end.
    """
    if "exif" in header.info and header.format != "TIFF":
        found = header.getexif().get(_ORIENTATION, 1)
        return found if isinstance(found, int) else 1
    return 1


def _jpeg_ends(payload: bytes) -> bool:
    """False for a JPEG that was cut short, which libjpeg fills up with grey. A thumbnail in the header has an end of its own."""
    at = 2
    while at + 4 <= len(payload) and payload[at] == 0xFF:
        marker = payload[at + 1]
        if marker == 0xDA:  # the first scan; within scans 0xFF is stuffed, so that no end marker can stand there by chance
            return payload.rfind(b"\xff\xd9", at) > 0
        at += 1 if marker == 0xFF else 2 + int.from_bytes(payload[at + 2 : at + 4], "big")
    return False


def _png_ends(payload: bytes) -> bool:
    """False where a chunk claims more than there is: OpenCV 5 takes the memory that it claims, 4 GB, before it looks."""
    at = 8
    while at + 12 <= len(payload):
        if payload[at + 4 : at + 8] == b"IEND":
            return True
        at += 12 + int.from_bytes(payload[at : at + 4], "big")
    return False


def _tiff_pixels(payload: bytes) -> Pixels:
    """(H, W, 1 or 3) uint8, upright. By Pillow: OpenCV multiplies the colours of a TIFF by its alpha."""
    try:
        with Image.open(io.BytesIO(payload), formats=["TIFF"]) as image:
            return np.atleast_3d(np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"), np.uint8))
    except Exception as error:  # Pillow raises nearly anything for broken bytes
        raise BadSample("undecodable", f"broken TIFF: {error}") from error


def _pixels(payload: bytes, name: str, mode: str) -> Pixels:
    """(H, W, 1) or (H, W, 3) in RGB order, as stored: not yet upright."""
    try:
        image: Any = cv2.imdecode(np.frombuffer(payload, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise BadSample("undecodable", f"broken {name}: {error.err}") from None
    if image is None:
        raise BadSample("undecodable", f"broken or truncated {name}")
    if image.dtype not in (np.uint8, np.uint16):
        raise BadSample("unsupported", f"{name} with pixels of {image.dtype}; 8 or 16 bit is read")
    if image.ndim == 2:
        if mode in ("P", "PA", "RGB", "RGBA", "RGBX"):
            raise BadSample("unsupported", f"{name} of mode {mode} whose colours cannot be read")
        return image[:, :, None]  # type: ignore[no-any-return]
    if mode == "LA":
        return np.ascontiguousarray(image[:, :, :1])
    return cv2.cvtColor(image, cv2.COLOR_BGRA2RGB if image.shape[2] == 4 else cv2.COLOR_BGR2RGB)  # type: ignore[no-any-return]


def _as_image(array: NDArray[Any]) -> Pixels:
    if array.dtype not in (np.uint8, np.uint16):
        raise BadSample("unsupported", f"image of {array.dtype}; uint8 or uint16 is read")
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise BadSample("unsupported", f"image of shape {array.shape}; (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) is read")
    return np.ascontiguousarray(array[:, :, : min(array.shape[2], 3)])
