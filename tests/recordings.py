"""Recordings as a microphone sends them: WAV chunks with what each says of its place."""

import io
from collections.abc import Iterator, Sequence

import numpy as np
import soundfile

from monitor.types import FloatArray

RATE = 100
"""Hz: enough for a detector that only sums."""


def noise(number: int, seconds: float, *, rate: int = RATE, channels: int = 1, loud: float = 0.1) -> FloatArray:
    """(channels, T), another for every number; each value is one of 16 bits."""
    values = np.random.default_rng(number).uniform(-loud, loud, (channels, round(seconds * rate)))
    return np.asarray(np.round(values * 32768) / 32768, np.float32)


def wav(waveform: FloatArray, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, waveform.T, rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def cuts(samples: int, chunk: int) -> list[tuple[int, int]]:
    """Begin and end of chunks of `chunk` samples; the last may be shorter."""
    return [(begin, min(begin + chunk, samples)) for begin in range(0, samples, chunk)]


def chunks(
    waveform: FloatArray, where: Sequence[tuple[int, int]], *, recording: str = "shift 1", last: bool = True, rate: int = RATE, stream: str = "mic"
) -> Iterator[tuple[bytes, dict[str, str]]]:
    """Payload and headers of each; `last` ends the recording with the last of them."""
    for number, (begin, end) in enumerate(where):
        headers = {"stream": stream, "recording": recording, "offset": str(begin), "captured": str(1_700_000_000_000 + 1000 * begin // rate)}
        if last and number == len(where) - 1:
            headers["last"] = "true"
        yield wav(waveform[:, begin:end], rate), headers
