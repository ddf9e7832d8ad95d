"""Synthetic faults on the sound of a normal clip: to choose without labels which score tells what is strange."""

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from monitor.types import FloatArray

KINDS = ("tone", "knocks", "noise", "loss", "speed")
QUIETEST, LOUDEST = -25.0, 0.0
"""Decibels of what is added, in the mean over its time, against the clip."""

Sound = NDArray[np.float64]


def fault(clip: FloatArray, rate: int, random: Generator) -> FloatArray:
    """A normal clip (T,) at `rate` Hz with one fault, in a part of it or all along.

    tone: a whistle with overtones that wanders. knocks: rings at a steady pace. noise: in one band. loss: one band becomes fainter.
    speed: all becomes somewhat faster or slower.
    """
    kind = random.choice(KINDS)
    length = len(clip)
    sound = clip.astype(np.float64)
    if kind == "speed":
        faster = np.exp(random.choice((-1, 1)) * random.uniform(0.02, 0.12))
        at = np.abs((np.arange(length) * faster + length) % (2 * length) - length)  # mirrored at the end
        return np.asarray(np.interp(at, np.arange(length), sound), np.float32)
    part = _part(length, random)
    if kind == "loss":
        low, high = _limits(rate, random)
        fainter = 1 - 10 ** (-random.uniform(6, 30) / 20)
        return np.asarray(sound - fainter * part * _band(sound, rate, low, high), np.float32)
    if kind == "tone":
        added = _tone(length, rate, random)
    elif kind == "knocks":
        added = _knocks(length, rate, random)
    else:
        added = _band(random.normal(size=length), rate, *_limits(rate, random))
    loudness = 10 ** (random.uniform(QUIETEST, LOUDEST) / 20) * np.sqrt(np.square(sound).mean())
    added *= loudness / max(float(np.sqrt(np.square(added).mean())), 1e-12)
    return np.asarray(sound + part * added, np.float32)


def _part(length: int, random: Generator) -> Sound:
    """(T,) from 0 to 1 and back within some milliseconds: when the fault is heard."""
    lasts = int(length * random.uniform(0.1, 1.0))
    begins = int(random.integers(0, length - lasts + 1))
    part = np.zeros(length)
    part[begins : begins + lasts] = 1
    soft = max(1, length // 1000)
    return np.convolve(part, np.full(soft, 1 / soft), mode="same")


def _limits(rate: int, random: Generator) -> tuple[float, float]:
    """Of a band in hertz, a sixth of an octave to two octaves wide."""
    middle, octaves = _pitch(rate, random), random.uniform(1 / 6, 2)
    return float(middle * 2 ** (-octaves / 2)), float(min(middle * 2 ** (octaves / 2), 0.49 * rate))


def _pitch(rate: int, random: Generator) -> float:
    return float(np.exp(random.uniform(np.log(80), np.log(0.4 * rate))))


def _tone(length: int, rate: int, random: Generator) -> Sound:
    wander = np.interp(np.linspace(0, 8, length), np.arange(9), random.normal(0, 0.01, 9))
    phase = 2 * np.pi * np.cumsum(_pitch(rate, random) * (1 + wander)) / rate
    loudness = random.uniform(0, 0.5)
    tone: Sound = np.sin(phase) + loudness * np.sin(2 * phase) + loudness**2 * np.sin(3 * phase)
    return tone


def _knocks(length: int, rate: int, random: Generator) -> Sound:
    every = rate / random.uniform(1, 40)
    places = (np.arange(random.uniform(0, every), length, every) * (1 + random.normal(0, 0.001))).astype(int)
    hits = np.zeros(length)
    places = places[places < length]
    hits[places] = random.uniform(0.6, 1.4, len(places))
    decay = random.uniform(0.001, 0.03)
    time = np.arange(int(5 * decay * rate) + 1) / rate
    ring = np.exp(-time / decay) * np.sin(2 * np.pi * _pitch(rate, random) * time)
    size = length + len(ring) - 1
    return np.fft.irfft(np.fft.rfft(hits, size) * np.fft.rfft(ring, size), size)[:length]


def _band(sound: Sound, rate: int, low: float, high: float) -> Sound:
    """What of it lies between two frequencies in hertz."""
    spectrum = np.fft.rfft(sound)
    frequencies = np.fft.rfftfreq(len(sound), 1 / rate)
    spectrum[(frequencies < low) | (frequencies > high)] = 0
    return np.fft.irfft(spectrum, len(sound))
