"""A waveform -> its log-mel spectrogram in decibels, equal to librosa's within 1e-3 dB; and the one channel at one rate that this wants.

Source: librosa's documentation of melspectrogram and power_to_db (Slaney's scale and area normalisation); AEGAN-AD, arXiv 2303.17949.
"""

import math

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from monitor.errors import BadSample
from monitor.types import Axes, FloatArray, Sample

QUIETEST = 1e-10
"""Power below which nothing is told apart: -100 dB."""
DYNAMIC_RANGE = 80.0
"""Decibels below its own loudest value at which each clip is floored."""

_CPU_BLOCK = 128  # frames: their spectra stay in a core's cache, up to twice as fast as a batch at once
_GROUP = 64  # neighbouring bands hear few of the bins: by groups the product is half of the whole one
_DEVICE_BLOCK = 8192  # few launches, and memory that does not grow with the clip


class LogMel(nn.Module):
    """(B, T) waveforms at `rate` Hz -> (B, mels, frames) decibels, float32 in every precision. `n_fft` is even.

    Keep it out of what is cast to another precision. What it holds follows from its arguments and is not part of any state.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, rate: int, *, n_fft: int = 2048, hop: int = 512, mels: int = 128) -> None:
        super().__init__()
        self.rate, self.n_fft, self.hop, self.mels = rate, n_fft, hop, mels
        # beside a loud tone, the rounding of a float32 transform moves quiet bands by 0.002 dB: as librosa, in float64
        self.register_buffer("window", torch.hann_window(n_fft, periodic=True, dtype=torch.float64), persistent=False)
        filters = mel_filters(rate, n_fft, mels).T.copy()  # (bins, mels)
        self.register_buffer("filters", torch.from_numpy(filters), persistent=False)
        self._groups: list[tuple[slice, slice]] = []  # the bands of each, and the bins that they hear
        for first in range(0, mels, _GROUP):
            bands = slice(first, first + _GROUP)
            heard = np.flatnonzero(filters[:, bands].any(axis=1))
            if heard.size:
                self._groups.append((bands, slice(int(heard[0]), int(heard[-1]) + 1)))

    def frames(self, samples: int) -> int:
        """Columns of the spectrogram of a clip of so many samples: frame t is centred on sample t * hop."""
        return 1 + samples // self.hop

    def axes(self, samples: int) -> Axes:
        """Where a map of a clip of `samples` samples lies, which must be turned so that high is at the top: `map[::-1]`.

        A column reaches half a hop to each side of its frame's centre; a row, half way in mel to the peaks of its neighbours. The outer ones
        reach to the ends of the clip, to 0 Hz and to half the rate: nothing lies outside.
        """
        seconds = (np.arange(self.frames(samples) + 1) - 0.5) * self.hop / self.rate
        seconds[0], seconds[-1] = 0.0, samples / self.rate
        hertz = to_hertz((np.arange(self.mels + 1) + 0.5) * to_mel(self.rate / 2) / (self.mels + 1))
        hertz[0], hertz[-1] = 0.0, self.rate / 2
        return Axes(seconds=seconds.astype(np.float32), hertz=hertz[::-1].astype(np.float32))

    def forward(self, waveforms: Tensor) -> Tensor:
        """Row 0 is the lowest band. A clip alone and in any batch gives the same; one with a NaN gives NaN."""
        with torch.autocast(waveforms.device.type, enabled=False):
            padded = nn.functional.pad(waveforms.float(), (self.n_fft // 2, self.n_fft // 2))
            frames = padded.unfold(-1, self.n_fft, self.hop)  # (B, frames, n_fft), a view
            mel = frames.new_zeros(*frames.shape[:2], self.mels)  # zeros: of bands narrower than a bin some hear nothing
            block = _CPU_BLOCK if waveforms.device.type == "cpu" else _DEVICE_BLOCK
            for of_clip, mel_of_clip in zip(frames, mel, strict=True):
                for rows, out in zip(of_clip.split(block), mel_of_clip.split(block), strict=True):
                    spectrum = torch.fft.rfft(rows * self.window)  # (block, bins)
                    power = spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag).float()
                    for bands, bins in self._groups:
                        out[:, bands] = power[:, bins] @ self.filters[bins, bands]
            decibels = mel.clamp_min_(QUIETEST).log10_().mul_(10)
            loudest = decibels.amax((1, 2), keepdim=True)
            return torch.maximum(decibels, loudest - DYNAMIC_RANGE).transpose(1, 2)


def mel_filters(rate: int, n_fft: int, mels: int) -> FloatArray:
    """(mels, n_fft // 2 + 1): triangles between `mels` + 2 points that are equally far apart in mel, from 0 Hz to half the rate.

    Band m rises from point m to m + 1 and falls to m + 2; its area over hertz is 1 (Slaney).
    """
    points = to_hertz(np.linspace(0, to_mel(rate / 2), mels + 2))
    bins = np.arange(n_fft // 2 + 1) * rate / n_fft
    low, peak, high = points[:-2, None], points[1:-1, None], points[2:, None]
    triangles = np.maximum(0, np.minimum((bins - low) / (peak - low), (high - bins) / (high - peak)))
    return np.asarray(triangles * 2 / (high - low), np.float32)


_LINEAR_BELOW = 1000.0  # hertz
_MELS_PER_HERTZ = 3 / 200
_MELS_PER_LOG = 27 / math.log(6.4)


def to_mel(hertz: float) -> float:
    """Slaney's scale: linear below 1 kHz, logarithmic above."""
    if hertz < _LINEAR_BELOW:
        return hertz * _MELS_PER_HERTZ
    return _LINEAR_BELOW * _MELS_PER_HERTZ + _MELS_PER_LOG * math.log(hertz / _LINEAR_BELOW)


def to_hertz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of `to_mel`."""
    above = mel - _LINEAR_BELOW * _MELS_PER_HERTZ
    return np.where(above < 0, mel / _MELS_PER_HERTZ, _LINEAR_BELOW * np.exp(np.maximum(above, 0) / _MELS_PER_LOG))


def mono(sample: Sample, rate: int) -> FloatArray:
    """-> (T,) float32: the mean of the channels, resampled to `rate` Hz where the sample has a higher one. Safe in many threads.

    Raises BadSample where there is no sound, or what it was sampled at is lower: what a higher rate would show is not in it.
    """
    if sample.waveform is None or sample.rate is None:
        raise BadSample("unsupported", f"sound is needed, this is {sample.sensors}")
    if sample.rate < rate:
        raise BadSample("unsupported", f"sound at {sample.rate} Hz; this model was trained at {rate} Hz and takes no lower rate")
    if sample.waveform.size == 0:
        raise BadSample("empty", f"sound with {sample.waveform.shape[1]} samples in {sample.waveform.shape[0]} channels")
    mean: FloatArray = sample.waveform.mean(axis=0, dtype=np.float32)
    if sample.rate > rate:
        mean = np.asarray(soxr.resample(mean, sample.rate, rate), np.float32)
        if mean.size == 0:
            raise BadSample("empty", f"sound of {sample.waveform.shape[1]} samples at {sample.rate} Hz has none at {rate} Hz")
    return mean
