"""The demo's microphones: one at each of several pumps, whose sound goes out in chunks of a second as it is recorded."""

import io
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread
import numpy as np
import soundfile

from monitor.demo.books import Outcome, map_values, png
from monitor.evaluation.drawing import Scale, overlay
from monitor.evaluation.spectrogram import framed, spectrogram
from monitor.ports import Progress, Sender
from monitor.simulation import plan
from monitor.simulation.hums import HUM_FAULTS, Hum, Place, hum
from monitor.types import Axes, FloatArray, Message, Sample

DETECTOR, SOURCE = "pump", "microphones"
STREAMS = tuple(f"pump-{number}" for number in range(1, 7))
GOOD = 340
"""Clips to train on: three tenths calibrate, and a threshold for 1 % needs 99 of them."""
SEGMENT, CHUNK = 5.0, 1.0
"""Seconds of a clip to train on, which is what sound is scored in, and of a message."""
RATE = 16000
_ONE_IN = 5
"""So many segments to a faulty one, roughly."""
_AUDIBLE = 0.5
"""The least severity of the faults: that of a loud one."""
_VARIETY = 0.1
"""The pumps stand in a quiet hall, and their microphones are fixed."""
_TRAINING_SEED, _LINE_SEED = 20261, 416


@dataclass(eq=False, kw_only=True)
class HumOutcome(Outcome):
    """A segment of a pump's recording, which begins at `begin` seconds of it."""

    hum: Hum
    begin: float

    @property
    def place(self) -> Place | None:
        """Of the planted fault, in seconds of the recording."""
        here = self.hum.place
        return None if here is None else Place(start=self.begin + here.start, end=self.begin + here.end, low=here.low, high=here.high)

    @property
    def planted(self) -> str:
        here = self.place
        return super().planted if here is None else f"{super().planted}, {_words(here)}"

    def touched(self, region: Mapping[str, float]) -> bool:
        here, found = self.place, _place(region)
        assert here is not None
        return found.start < here.end and here.start < found.end and found.low < here.high and here.low < found.high

    def where(self, region: Mapping[str, float]) -> str:
        """In seconds of the recording and kilohertz."""
        return _words(_place(region))

    def picture(self, map_threshold: float) -> bytes:
        """Below each other: the spectrogram, the planted fault outlined in it, and what the map shows, if it was alerted."""
        spectrum, place = spectrogram(_sample(self.hum)), self.hum.place
        mask = np.zeros(spectrum.pixels.shape[:2], np.bool_)
        if place is not None:
            rows, columns = (
                (place.low <= spectrum.hertz) & (spectrum.hertz <= place.high),
                (place.start <= spectrum.seconds) & (spectrum.seconds <= place.end),
            )
            mask = rows[:, None] & columns
        panels = [spectrum.pixels, overlay(spectrum.pixels, np.zeros(mask.shape, np.float32), mask)]
        if self.map is not None and self.alert is not None:
            lies = self.alert["map"]["axes"]
            values = map_values(self.map, self.alert["map"])
            seconds = np.linspace(lies["start"] - self.begin, lies["end"] - self.begin, values.shape[1] + 1, dtype=np.float32)
            heat = spectrum.spread(Scale(map_threshold).heat(values), Axes(seconds=seconds, hertz=np.array(lies["hertz"], np.float32)))
            panels.append(overlay(spectrum.pixels, heat, np.zeros_like(mask)))
        return png(framed(spectrum, *panels, begin=self.begin))


class Microphones:
    """See Feed: of each pump one recording; a sample is a segment of it, which is a hum of its own."""

    detector, source, good = DETECTOR, SOURCE, GOOD
    samples, how = "segments of sound", f"of {len(STREAMS)} pumps, {SEGMENT:g} s each, in messages of {CHUNK:g} s"

    def __init__(self, seconds: float) -> None:
        self._segments = max(1, int(seconds // SEGMENT))
        self.expected = len(STREAMS) * self._segments
        self.faulty = max(2, round(self.expected / _ONE_IN))

    def write_good(self, folder: Path, progress: Progress) -> None:
        """Clips to train on."""
        random = np.random.default_rng(_TRAINING_SEED)
        for number in range(GOOD):
            (folder / f"{number:04}.wav").write_bytes(_wav(hum(random, seconds=SEGMENT, rate=RATE, variety=_VARIETY).waveform))
            progress("good hums", number + 1, GOOD, {})

    async def publish(self, sender: Sender, outcomes: dict[str, Outcome]) -> None:
        run = uuid.uuid4().hex[:8]
        recordings = await anyio.to_thread.run_sync(self._record)
        for stream, segments in recordings.items():
            outcomes |= {f"{run}-{stream}/{number}": outcome for number, outcome in enumerate(segments)}
        sound = {stream: np.hstack([outcome.hum.waveform for outcome in segments]) for stream, segments in recordings.items()}
        chunks = round(self._segments * SEGMENT / CHUNK)
        begun, clock = anyio.current_time(), time.time()
        for number in range(chunks):
            await anyio.sleep(max(0.0, begun + (number + 1) * CHUNK - anyio.current_time()))
            for segments in recordings.values():
                segments[int(number * CHUNK / SEGMENT)].sent = time.time()
            await sender.send(
                [_chunk(f"{run}-{stream}", stream, waveform, number, clock, last=number == chunks - 1) for stream, waveform in sound.items()]
            )

    def _record(self) -> dict[str, list[HumOutcome]]:
        random = np.random.default_rng(_LINE_SEED)
        faults = iter(plan(random, HUM_FAULTS, self.expected, self.faulty))
        recordings: dict[str, list[HumOutcome]] = {stream: [] for stream in STREAMS}
        for number in range(self._segments):
            for stream, segments in recordings.items():
                one = hum(random, next(faults), seconds=SEGMENT, rate=RATE, severity=random.uniform(_AUDIBLE, 1), variety=_VARIETY)
                begin = number * SEGMENT
                segments.append(
                    HumOutcome(detector=DETECTOR, name=f"{stream} {number:02}", fault=one.fault, severity=one.severity, hum=one, begin=begin)
                )
        return recordings


def _chunk(recording: str, stream: str, waveform: FloatArray, number: int, clock: float, *, last: bool) -> Message:
    """A second of a recording that began at `clock`; waveform: (1, T), all of it."""
    size = round(CHUNK * RATE)
    position, captured = f"{recording}-{number:04}", clock + number * CHUNK
    headers = [
        ("id", position.encode()),
        ("content-type", b"audio/wav"),
        ("captured", b"%d" % round(1000 * captured)),
        ("recording", recording.encode()),
        ("offset", b"%d" % (number * size)),
    ]
    if last:
        headers.append(("last", b"true"))
    payload = _wav(waveform[:, number * size : (number + 1) * size])
    return Message(source="", topic="", position=position, payload=payload, received=time.time(), key=stream.encode(), headers=tuple(headers))


def _wav(waveform: FloatArray) -> bytes:
    """(1, T) -> PCM of 16 bit."""
    file = io.BytesIO()
    soundfile.write(file, waveform.T, RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


def _place(region: Mapping[str, float]) -> Place:
    return Place(start=region["start"], end=region["end"], low=region["low_hz"], high=region["high_hz"])


def _words(place: Place) -> str:
    return f"{place.start:.1f}-{place.end:.1f} s, {place.low / 1000:.2f}-{place.high / 1000:.2f} kHz"


def _sample(one: Hum) -> Sample:
    return Sample(source="", topic="", position="", stream="", captured=0.0, received=0.0, waveform=one.waveform, rate=one.rate)
