"""A clip as a person reads it: pitch over time, and where its map is hot on the same axes."""

from dataclasses import dataclass

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from monitor.types import Axes, FloatArray, Sample

Pixels = NDArray[np.uint8]

ROWS, COLUMNS = 160, 640
WINDOW = 0.064
"""Seconds of sound in a column: 16 Hz are told apart."""
RANGE = 60.0
"""Decibels from black to white, which is the loudest of the clip."""
_TICKS = (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64)  # kHz


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spectrogram:
    """pixels: (ROWS, columns, 3) uint8 grey, high pitch at the top, rows evenly spaced in mel. seconds, hertz: the middles of columns and rows."""

    pixels: Pixels
    seconds: NDArray[np.float64]
    hertz: NDArray[np.float64]
    length: float
    highest: float

    def spread(self, heat: FloatArray, axes: Axes) -> FloatArray:
        """A map's heat (H, W) on these pixels, (ROWS, columns); 0 beyond the map."""
        rows = len(axes.hertz) - 1 - np.searchsorted(axes.hertz[::-1], self.hertz, side="right")  # hertz descend
        columns = np.searchsorted(axes.seconds, self.seconds, side="right") - 1
        framed = np.pad(heat, 1)  # whatever lies beyond finds a 0
        spread: FloatArray = framed[np.clip(rows, -1, heat.shape[0])[:, None] + 1, np.clip(columns, -1, heat.shape[1])[None] + 1]
        return spread


def spectrogram(sample: Sample) -> Spectrogram:
    """Of all channels together; the colours are on the clip's own scale."""
    assert sample.waveform is not None
    assert sample.rate is not None
    waveform, rate = sample.waveform.mean(axis=0, dtype=np.float64), sample.rate
    length = 2 * max(8, round(WINDOW * rate / 2))
    hop = max(length // 8, -(-len(waveform) // COLUMNS))
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(waveform, length // 2), length)[::hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(length))) ** 2  # (columns, length / 2 + 1)
    edges = _hertz(np.linspace(_mel(rate / 2), 0, ROWS + 1))
    below = np.concatenate([np.zeros((len(power), 1)), np.cumsum(power, axis=1)], axis=1)  # of all bins below a bin's lower edge
    places = np.clip(edges / rate * length + 0.5, 0, power.shape[1])
    summed = np.stack([np.interp(places, np.arange(below.shape[1]), one) for one in below], axis=1)  # (ROWS + 1, columns)
    band = -np.diff(summed, axis=0) / -np.diff(places)[:, None]
    decibels = 10 * np.log10(np.maximum(band, np.finfo(np.float64).tiny))
    grey = np.clip((decibels - decibels.max()) / RANGE + 1, 0, 1)
    return Spectrogram(
        pixels=np.repeat((grey * 255).round().astype(np.uint8)[..., None], 3, axis=2),
        seconds=np.arange(len(power)) * hop / rate,
        hertz=(edges[1:] + edges[:-1]) / 2,
        length=len(waveform) / rate,
        highest=rate / 2,
    )


def framed(spectrum: Spectrogram, *panels: Pixels, begin: float = 0.0) -> Pixels:
    """Panels of the spectrogram's size below each other, with their axes: (H, W, 3) uint8. begin: the second that the clip begins at."""
    figure = Figure(figsize=(4.6, 0.5 + 1.55 * len(panels)), dpi=160, layout="constrained")
    drawn = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axes, pixels in zip(drawn, panels, strict=True):
        axes.imshow(pixels, aspect="auto", interpolation="nearest", extent=(begin, begin + spectrum.length, 0, _mel(spectrum.highest)))
        ticks = [tick for tick in _TICKS if 1000 * tick <= spectrum.highest]
        axes.set_yticks([float(_mel(1000 * tick)) for tick in ticks], [f"{tick:g}" for tick in ticks])
        axes.tick_params(labelsize=8, length=3)
        axes.set_ylabel("kHz", fontsize=8)
    drawn[-1].set_xlabel("seconds", fontsize=8, labelpad=1)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])  # type: ignore[no-untyped-call]


def _mel(hertz: float | NDArray[np.float64]) -> NDArray[np.float64]:
    """O'Shaughnessy's: even steps are heard as even."""
    return np.asarray(2595 * np.log10(1 + np.asarray(hertz) / 700))


def _hertz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(700 * (10 ** (mel / 2595) - 1))
