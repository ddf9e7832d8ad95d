"""WAV, FLAC and OGG -> waveform. Length, rate and channels are read from the header before memory is taken."""

import io
import struct

import numpy as np
import soundfile

from monitor.errors import BadSample
from monitor.types import FloatArray

_FASTEST = 384_000  # Hz; above it no microphone samples
_DENSEST = 192_000  # values per second of max_seconds, all channels together: stereo at 96 kHz
_UNKNOWN_SIZE = (0xFFFFFFFF,)  # written by recorders that stream: RF64, and ffmpeg into a pipe


def read_sound(payload: bytes, max_seconds: float) -> tuple[FloatArray, int]:
    """(channels, T) float32, the rate in Hz. Integer PCM is in [-1, 1]; float files may go beyond. Raises BadSample."""
    if payload[:4] == b"RIFF":
        _check_wav(payload)
    elif payload[:4] == b"OggS":
        _check_ogg(payload)
    try:
        with soundfile.SoundFile(io.BytesIO(payload)) as file:
            frames, rate, channels = file.frames, file.samplerate, file.channels
            _check(frames, rate, channels, max_seconds)
            values: FloatArray = file.read(frames, dtype="float32", always_2d=True)  # (T, channels)
    except BadSample:
        raise
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        text = error.error_string if isinstance(error, soundfile.LibsndfileError) else str(error)
        raise BadSample("undecodable", f"broken sound file: {text}") from error
    if len(values) != frames:
        raise BadSample("undecodable", f"truncated sound file: {len(values)} of {frames} samples could be read")
    if not np.isfinite(values).all():
        raise BadSample("undecodable", "sound with samples that are NaN or infinite")
    return np.ascontiguousarray(values.T), rate


def _check(frames: int, rate: int, channels: int, max_seconds: float) -> None:
    if not 0 < rate <= _FASTEST:
        raise BadSample("lying_header", f"sound at {rate} Hz; 1 to {_FASTEST} is believed")
    if frames <= 0 or channels <= 0:
        raise BadSample("empty", f"sound with {frames} samples in {channels} channels")
    if frames > max_seconds * rate:
        raise BadSample("too_large", f"sound of {frames / rate:.1f} s, this source takes at most {max_seconds} s")
    if frames * channels > max_seconds * _DENSEST:
        raise BadSample("too_large", f"sound of {frames} samples in {channels} channels, more than {max_seconds} s hold at 96 kHz stereo")


def _check_wav(payload: bytes) -> None:
    """The data chunk must be all there (libsndfile takes what is left of it) and the format must agree with itself."""
    offset, rate = 12, None
    while offset + 8 <= len(payload):
        name, size = struct.unpack_from("<4sI", payload, offset)
        if name == b"fmt " and offset + 24 <= len(payload):
            _, channels, rate, bytes_per_second, block, _ = struct.unpack_from("<HHIIHH", payload, offset + 8)
            if rate == 0 or channels == 0 or rate > _FASTEST:
                raise BadSample("lying_header", f"WAV with {channels} channels at {rate} Hz")
            if struct.unpack_from("<H", payload, offset + 8)[0] in (1, 3) and bytes_per_second != rate * block:
                raise BadSample("lying_header", f"WAV at {rate} Hz in frames of {block} bytes says {bytes_per_second} bytes per second")
        if name == b"data":
            left = len(payload) - offset - 8
            if size > left and size not in _UNKNOWN_SIZE:
                raise BadSample("undecodable", f"truncated WAV: it says {size} bytes of sound, there are {left}")
            return
        offset += 8 + size + size % 2
    raise BadSample("undecodable", "truncated WAV: it has no sound data")


def _check_ogg(payload: bytes) -> None:
    """The last page must be whole and say that it is the last (libsndfile takes what comes before it)."""
    last = payload.rfind(b"OggS")
    head = payload[last : last + 27]
    ends = len(head) == 27 and head[5] & 4
    segments = payload[last + 27 : last + 27 + head[26]] if ends else b""
    if not ends or len(segments) != head[26] or len(payload) < last + 27 + len(segments) + sum(segments):
        raise BadSample("undecodable", "truncated OGG: its last page is missing")
