"""Pumps as a microphone hears them: seeded, good or with a fault planted at a place in time and pitch.

Nothing here was measured on a machine. What differs between good ones (load, speed, loudness of each line, flow, the room, what happens
beside them, the microphone's distance) is drawn from `random` alone, so that a seed gives the same hum again.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from monitor.types import FloatArray

HumFault = Literal["bearing", "imbalance", "leak", "rattle", "whistle"]
HUM_FAULTS: tuple[HumFault, ...] = get_args(HumFault)
Loudness = Literal["quiet", "plain", "loud"]
LOUDNESSES: Mapping[Loudness, float] = {"quiet": 0.0, "plain": 0.25, "loud": 0.5}
"""The severity of each."""

FAINTEST, SPAN = 0.0, 24.0
"""A fault of severity 0 is FAINTEST decibels louder than the good machine in the fault's own band, while it lasts; one of severity 1 SPAN more."""
SHORTEST, LONGEST = 0.05, 0.3
"""How much of a clip a fault lasts."""
VANES = 5
_LINES = ((1, 0.03), (2, 0.015), (VANES, 0.06), (2 * VANES, 0.03), (3 * VANES, 0.015), (4 * VANES, 0.008))
"""Times the speed, amplitude."""
_EVENTS = 0.1
"""Innocent events a second."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """From `start` to `end` in seconds of the clip, from `low` to `high` in hertz."""

    start: float
    end: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Hum:
    """A pump. waveform: (1, T) float32 in [-1, 1] at `rate` Hz. place: where the fault sounds; None of a good one.

    severity: from 0 to 1, how loudly a fault of its kind was drawn; 0 of a good one.
    """

    waveform: FloatArray
    rate: int
    fault: HumFault | None
    severity: float
    place: Place | None


def hum(
    random: Generator, fault: HumFault | None = None, *, seconds: float = 10.0, rate: int = 16000, severity: float | None = None, variety: float = 1.0
) -> Hum:
    """One pump at about 24.5 turns a second with five vanes: lines of both, over the noise of what it pumps and of the room.

    bearing: a train of knocks, 3.57 in a turn, that ring at a resonance. imbalance: the first two lines of the turns are louder.
    leak: hiss in a broad band. rattle: bursts at odd times in a narrow band. whistle: a tone that wanders.
    Each begins somewhere in the clip and lasts for a part of it. severity: drawn from 0 to 1 by default. variety: how much good ones
    differ; 0 is always the same load in the same room, where nothing else is heard.
    """
    count = round(seconds * rate)
    turns, machine = _machine(random, count, rate, variety)
    events = _events(random, count, rate, variety)
    decibels, tilt = variety * random.uniform(-3, 3), variety * random.uniform(-0.2, 0.2)
    place = None
    if fault is not None:
        severity = random.uniform() if severity is None else severity
        lasting = round(random.uniform(SHORTEST, LONGEST) * count)
        first = int(random.integers(count - lasting))
        here = slice(first, first + lasting)
        sound, low, high = _fault_sound(fault, turns[here], rate, random)
        fading = np.clip(np.minimum(np.arange(lasting), np.arange(lasting)[::-1]) / (0.05 * rate), 0, 1)
        sound *= fading
        ratio = 10 ** ((FAINTEST + SPAN * severity) / 20) * _band(machine, rate, low, high)[here].std() / _band(sound, rate, low, high).std()
        machine[here] += ratio * sound
        place = Place(start=first / rate, end=(first + lasting) / rate, low=low, high=high)
    heard = _heard(machine + events, rate, decibels, tilt)
    return Hum(waveform=np.asarray(np.clip(heard, -1, 1), np.float32)[None], rate=rate, fault=fault, severity=severity or 0.0, place=place)


def _machine(random: Generator, count: int, rate: int, variety: float) -> tuple[Floats, Floats]:
    """(T,) turns of the shaft so far, and (T,) what the pump and its room sound like."""
    load = 1 + variety * random.uniform(-0.3, 0.3)
    turns = np.cumsum(25.2 - 0.7 * load + _wandering(random, count, 0.05)) / rate
    flow = 0.02 * load**2 * 10 ** (_wandering(random, count, variety) / 20)
    sound = flow * _level(_sloped(random.normal(size=count), rate, -1))
    sound += 0.008 * 10 ** (variety * random.uniform(-4, 4) / 20) * _room(random, count, rate, variety)
    for times, strength in _LINES:
        amplitude = strength * load * 10 ** (variety * random.normal(0, 1.5) / 20)
        sound += amplitude * np.sin(2 * np.pi * (times * turns + random.uniform()))
    return turns, sound


def _room(random: Generator, count: int, rate: int, variety: float) -> Floats:
    """(T,), deviation 1: what else runs there, other machines each time. Pink, each octave somewhat louder or quieter."""
    octaves = np.log2(np.maximum(np.fft.rfftfreq(count, 1 / rate), 50) / 50)
    decibels = np.interp(octaves, np.arange(9), variety * random.normal(0, 3, 9)) - 3 * octaves
    return _level(_floats(np.fft.irfft(np.fft.rfft(random.normal(size=count)) * 10 ** (decibels / 20), count)))


def _events(random: Generator, count: int, rate: int, variety: float) -> Floats:
    """(T,): what happens beside a good machine. Something is dropped, something drives by, a truck beeps as it backs up."""
    sound = np.zeros(count)
    time = np.arange(count) / rate
    for _ in range(random.poisson(_EVENTS * count / rate)):
        begin, loud = random.uniform(0, count / rate), variety * random.uniform(0.5, 1.5)
        since = time - begin
        match random.choice(("dropped", "passing", "beeping")):
            case "dropped":
                clank = _level(_band(random.normal(size=count), rate, 300, random.uniform(2000, 6000)))
                sound += 0.15 * loud * clank * np.where(since >= 0, np.exp(-np.maximum(since, 0) / 0.04), 0)
            case "passing":
                sound += 0.04 * loud * _level(_band(random.normal(size=count), rate, 60, 400)) * np.exp(-((since / 1.0) ** 2))
            case _:
                beeps = (since >= 0) & (since < 2) & (np.mod(since, 0.5) < 0.25)
                sound += 0.02 * loud * beeps * np.sin(2 * np.pi * 1250 * time)
    return sound


def _fault_sound(fault: HumFault, turns: Floats, rate: int, random: Generator) -> tuple[Floats, float, float]:
    """(N,) while it lasts, at any loudness; and the band in hertz that most of it lies in. turns: (N,) of the shaft."""
    count = len(turns)
    match fault:
        case "imbalance":
            return np.sin(2 * np.pi * turns) + 0.5 * np.sin(4 * np.pi * turns), 20.0, 55.0
        case "leak":
            low = random.uniform(2500, 5000)
            high = low + random.uniform(800, 2500)
            return _band(random.normal(size=count), rate, low, high), low, high
        case "whistle":
            middle = random.uniform(1000, 6000)
            pitch = middle * (1 + _wandering(random, count, 0.03))
            return np.sin(2 * np.pi * np.cumsum(pitch) / rate), float(pitch.min()) - 10, float(pitch.max()) + 10
        case "bearing":
            resonance, decay = random.uniform(2000, 6000), random.uniform(0.001, 0.002)
            knocks = np.flatnonzero(np.diff(np.floor(3.57 * turns)) > 0)
            width = 3 / (2 * math.pi * decay)  # four fifths of a ring's energy lie so near its pitch
            ring = np.sin(2 * np.pi * resonance * np.arange(round(6 * decay * rate)) / rate)
        case "rattle":
            resonance, decay, width = random.uniform(1500, 2500), 0.02, 200.0
            knocks = random.integers(0, count, max(3, round(8 * count / rate)))
            ring = _band(random.normal(size=round(6 * decay * rate)), rate, resonance - width, resonance + width)
    hits = np.zeros(count)
    hits[knocks] = random.uniform(0.7, 1.3, len(knocks))
    sound = np.convolve(hits, ring * np.exp(-np.arange(len(ring)) / (decay * rate)))[:count]
    return sound, resonance - width, resonance + width


def _heard(sound: Floats, rate: int, decibels: float, tilt: float) -> Floats:
    """By a microphone: louder or quieter, and with more or less of what is high."""
    return 10 ** (decibels / 20) * _sloped(sound, rate, tilt)


def _wandering(random: Generator, count: int, deviation: float) -> Floats:
    """(T,) around 0: another value about every tenth of the time, straight lines between."""
    return np.interp(np.linspace(0, 10, count), np.arange(11), random.normal(0, deviation, 11))


def _sloped(sound: Floats, rate: int, slope: float) -> Floats:
    """Amplitudes times (frequency / 1 kHz) ** slope; what lies below 50 Hz as at 50 Hz."""
    spectrum = np.fft.rfft(sound)
    frequencies = np.maximum(np.fft.rfftfreq(len(sound), 1 / rate), 50)
    return _floats(np.fft.irfft(spectrum * (frequencies / 1000) ** slope, len(sound)))


def _band(sound: Floats, rate: int, low: float, high: float) -> Floats:
    """What lies between two frequencies in hertz."""
    spectrum = np.fft.rfft(sound)
    frequencies = np.fft.rfftfreq(len(sound), 1 / rate)
    spectrum[(frequencies < low) | (frequencies > high)] = 0
    return _floats(np.fft.irfft(spectrum, len(sound)))


def _level(sound: Floats) -> Floats:
    """Brought to a standard deviation of 1."""
    return _floats(sound / sound.std())


def _floats(array: Any) -> Floats:
    return np.asarray(array, np.float64)
