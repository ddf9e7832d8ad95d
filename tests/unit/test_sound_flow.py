"""Recordings in chunks through the whole flow: equal scores for every cut, nothing lost, nothing settled too early."""

import dataclasses
import io
import itertools
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import soundfile

from connectors.memory.channel import channel
from connectors.memory.options import MemoryDeadLetterOptions, MemorySinkOptions, MemorySourceOptions
from fake_detector import FakeOptions
from fake_listener import RAISES, ListenerOptions
from flow import running, until
from monitor.commands.listen import line_of
from monitor.evaluation.layouts import training_files
from monitor.settings import DetectorSettings, SinkSettings
from monitor.state import State
from monitor.store import ModelStore
from monitor.telemetry import Telemetry
from monitor.topology import PipelineSettings
from monitor.training import Job, train
from monitor.types import Message
from recordings import chunks, cuts, noise, wav
from trained_listener import train_listener, undivided, write_normals

pytestmark = pytest.mark.anyio
numbers = itertools.count()


@pytest.fixture(scope="module")
def store_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`store_of(hop_seconds=3.0)`: trained once."""
    stores: dict[str, Path] = {}

    def store(**options: Any) -> Path:
        name = repr(options)
        if name not in stores:
            stores[name] = train_listener(tmp_path_factory.mktemp("listener"), ListenerOptions(**options))
        return stores[name]

    return store


class Line:
    """One memory source of microphones into the detector `fan`; every score into one memory sink."""

    def __init__(self, home: Path, models: Path, *, max_in_flight: int = 256, options: dict[str, Any] | None = None, **source: Any) -> None:
        home.mkdir(exist_ok=True)
        self.home = home
        self.telemetry = Telemetry()
        self.said: list[tuple[str, dict[str, Any]]] = []
        name = f"sound {next(numbers)} of {home}"
        self.source, self.sink, self.dead = channel(f"{name} in"), channel(f"{name} out"), channel(f"{name} dead")
        fan = DetectorSettings(kind="listener", inputs=("mics",), max_batch_size=8, max_wait=0.01, options=ListenerOptions(**(options or {})))
        self.settings = PipelineSettings(
            sources={"mics": MemorySourceOptions(channel=self.source.name, max_in_flight=max_in_flight, **{"recording_timeout": 3600.0, **source})},
            detectors={"fan": fan},
            sinks={"all": SinkSettings(events=("score",), options=MemorySinkOptions(channel=self.sink.name))},
            dead_letter=MemoryDeadLetterOptions(channel=self.dead.name),
        )
        self.store = ModelStore(shutil.copytree(models, home / f"models {next(numbers)}"))

    def put(self, messages: Iterable[tuple[bytes, dict[str, str]]]) -> None:
        for payload, headers in messages:
            position = str(len(self.source.messages))
            raw = tuple((name, value.encode()) for name, value in headers.items())
            self.source.messages.append(Message(source="", topic="plant", position=position, payload=payload, received=1.0, headers=raw))

    @property
    def scores(self) -> dict[str, float]:
        """By id; whatever comes twice is the same."""
        scores: dict[str, float] = {}
        for event in self.sink.events:
            assert scores.setdefault(event["id"], event["data"]["score"]) == event["data"]["score"]
        return scores

    @property
    def pieces(self) -> list[dict[str, Any]]:
        return [event["data"]["sample"] for event in self.sink.events]

    @property
    def unsettled(self) -> set[str]:
        return {message.position for message in self.source.messages} - self.source.settled

    def running(self, *, unclean: bool = False):
        """A pipeline; drained at the end."""
        telemetry = self.telemetry.heard_by(lambda what, facts: self.said.append((what, dict(facts))))
        return running(self.settings, store=self.store, home=self.home, telemetry=telemetry, unclean=unclean)

    async def all_settled(self) -> None:
        async with self.running():
            await until(lambda: not self.unsettled)


async def scores_of(home: Path, models: Path, where: list[tuple[int, int]], waveform: np.ndarray, **options: Any) -> dict[str, float]:
    line = Line(home, models, options=options)
    line.put(chunks(waveform, where))
    await line.all_settled()
    assert line.dead.letters == []
    return line.scores


@pytest.mark.parametrize("options", [{}, {"hop_seconds": 3.0}])
async def test_scores_do_not_depend_on_how_a_recording_is_cut(tmp_path, store_of, options):
    waveform = noise(1, 34.5)
    models = store_of(**options)
    whole = await scores_of(tmp_path / "whole", models, [(0, 3450)], waveform, **options)
    assert next(iter(whole)) == "fan:mics/mic/shift%201/0"
    assert len(whole) == (11 if options else 4)
    for chunk in (100, 70):
        assert await scores_of(tmp_path / str(chunk), models, cuts(3450, chunk), waveform, **options) == whole


async def test_an_event_says_where_its_segment_lies(tmp_path, store_of):
    line = Line(tmp_path, store_of())
    line.put(chunks(noise(1, 15), cuts(1500, 100)))
    await line.all_settled()
    names = {"source": "mics", "topic": "plant", "recording": "shift 1"}
    assert line.pieces == [
        {**names, "position": "0", "segment": 0, "start": 0.0, "end": 10.0, "partial": False},
        {**names, "position": "10", "segment": 1, "start": 10.0, "end": 15.0, "partial": True},
    ]
    assert [", partial" in line_of(event) for event in line.sink.events] == [False, True]
    assert [event["time"] for event in line.sink.events] == ["2023-11-14T22:13:20.000000Z", "2023-11-14T22:13:30.000000Z"]
    assert line.said == [("model_loaded", line.said[0][1])]  # that a recording ends is no news, but counted
    assert line.telemetry.count("segment_partial", "ended") == 1


def interleaved(line: Line, *, seconds: int, chunk: int, streams: int = 30) -> dict[str, float]:
    """Recordings of so many streams, in turn. What their segments must score, each sent as a clip of its own."""
    recordings = [noise(100 + number, seconds) for number in range(streams)]
    parts = [list(chunks(recording, cuts(seconds * 100, chunk), stream=f"mic {number}")) for number, recording in enumerate(recordings)]
    line.put(message for together in itertools.zip_longest(*parts) for message in together if message is not None)
    expected = {}
    for number, recording in enumerate(recordings):
        for segment, score in enumerate(undivided(line.store, recording)):
            expected[f"fan:mics/mic {number}/shift%201/{segment}"] = score
    return expected


@pytest.mark.parametrize(("chunk", "max_in_flight"), [(200, 256), (200, 121), (100, 271), (70, 451)])
async def test_thirty_interleaved_streams_score_as_undivided_clips(tmp_path, store_of, chunk, max_in_flight):
    line = Line(tmp_path, store_of(), max_in_flight=max_in_flight)
    expected = interleaved(line, seconds=40 if chunk == 70 else 20, chunk=chunk)
    await line.all_settled()
    assert line.scores == expected
    assert not any(piece["partial"] for piece in line.pieces)


@pytest.mark.parametrize(("chunk", "max_in_flight", "needed"), [(100, 256, 271), (100, 270, 271), (200, 120, 121), (70, 450, 451)])
async def test_too_few_places_close_segments_as_partial_and_name_what_would_do(tmp_path, store_of, chunk, max_in_flight, needed):
    line = Line(tmp_path, store_of(), max_in_flight=max_in_flight)
    expected = interleaved(line, seconds=40 if chunk == 70 else 20, chunk=chunk)
    await line.all_settled()
    partial = [piece for piece in line.pieces if piece["partial"]]
    assert len(partial) == line.telemetry.count("segment_partial", "max_in_flight") > 0
    [said] = [facts for what, facts in line.said if what == "segment_partial"]
    assert said["max_in_flight"] == needed
    assert line.scores.keys() == expected.keys()
    whole = {name for name, score in line.scores.items() if score == expected[name]}
    assert len(whole) == len(expected) - len(partial)


@pytest.mark.parametrize("unclean", [False, True])
async def test_a_recording_goes_on_after_a_stop(tmp_path, store_of, unclean):
    """Drained again and again in the middle of segments; the last time what was open is all there."""
    line, waveform = Line(tmp_path, store_of()), noise(1, 40)
    parts = list(chunks(waveform, cuts(4000, 70)))
    for first in range(0, len(parts), 8):
        line.put(parts[first : first + 8])
        async with line.running(unclean=unclean) as pipeline:
            await until(lambda pipeline=pipeline: pipeline.unsettled == len(line.unsettled))
        assert pipeline.unsettled == len(line.unsettled)
    assert line.unsettled == set()
    assert line.scores == await scores_of(tmp_path / "whole", store_of(), [(0, 4000)], waveform)
    assert [piece["partial"] for piece in line.pieces] == [False] * 4
    assert line.telemetry.count("dead_lettered") == 0


async def test_the_chunks_of_a_segment_that_fails_go_to_the_dead_letter_once_each(tmp_path, store_of):
    line, waveform = Line(tmp_path, store_of(hop_seconds=5.0), options={"hop_seconds": 5.0}), noise(1, 40)
    waveform[0, 1250] = RAISES  # in segments 1 and 2: from 5 to 20 s
    line.put(chunks(waveform, cuts(4000, 250)))
    await line.all_settled()
    assert sorted(int(letter.message.position) for letter in line.dead.letters) == list(range(2, 8))
    assert {letter.reason for letter in line.dead.letters} == {"failed"}
    assert sorted(piece["segment"] for piece in line.pieces) == [0, 3, 4, 5, 6, 7]


async def test_the_chunks_of_a_segment_that_killed_the_process_go_to_the_dead_letter_at_its_third_death(tmp_path, store_of):
    line, waveform = Line(tmp_path, store_of()), noise(1, 30)
    line.put(chunks(waveform, cuts(3000, 250)))
    for _ in range(3):  # with segment 1 in work
        with State(tmp_path / "state.db") as state:
            for position in range(4, 8):
                state.begin(f"mics/plant/{position}")
    async with line.running(unclean=True):
        await until(lambda: not line.unsettled)
    assert sorted(letter.message.position for letter in line.dead.letters) == ["4", "5", "6", "7"]
    assert sorted(piece["segment"] for piece in line.pieces) == [0, 2]
    with State(tmp_path / "state.db") as state:
        assert [state.begin(f"mics/plant/{position}") for position in range(12)] == [0] * 12


async def test_a_recording_of_which_no_more_comes_ends(tmp_path, store_of):
    line = Line(tmp_path, store_of(), recording_timeout=2.0)
    line.put(chunks(noise(1, 15), cuts(1500, 100), last=False))
    await line.all_settled()
    assert [(piece["segment"], piece["end"], piece["partial"]) for piece in line.pieces] == [(0, 10.0, False), (1, 15.0, True)]


async def test_silence_within_a_segment_is_a_silent_stream(tmp_path, store_of):
    """Chunks that wait hold nothing back: the clock by which streams are silent goes on."""
    line = Line(tmp_path, store_of(), expect_every=0.5)
    line.put(chunks(noise(1, 3), cuts(300, 100), last=False))
    async with line.running():
        await until(lambda: line.telemetry.count("stream_silent"))
    assert [facts["stream"] for what, facts in line.said if what == "stream_silent"] == ["mic"]


async def test_a_chunk_with_another_rate_or_that_is_no_sound_goes_to_the_dead_letter(tmp_path, store_of):
    line, waveform = Line(tmp_path, store_of()), noise(1, 10)
    parts = list(chunks(waveform, cuts(1000, 100)))
    picture = cv2.imencode(".png", np.zeros((8, 8), np.uint8))[1].tobytes()
    line.put([*parts[:5], (wav(waveform[:, 500:600], 200), parts[5][1]), (picture, parts[5][1]), *parts[5:]])
    await line.all_settled()
    assert [(letter.message.position, letter.reason) for letter in line.dead.letters] == [("5", "lying_header"), ("6", "unsupported")]
    assert [piece["partial"] for piece in line.pieces] == [False]


async def test_a_chunk_that_is_much_more_than_its_payload_is_not_held(tmp_path, store_of):
    line = Line(tmp_path, store_of(), max_bytes=16_384)
    packed = io.BytesIO()
    soundfile.write(packed, np.zeros(40_000, np.float32), 8000, format="FLAC")
    assert len(packed.getvalue()) < 16_384
    parts = list(chunks(noise(1, 10), cuts(1000, 100)))
    line.put([*parts[:5], (packed.getvalue(), parts[5][1]), *parts[5:]])
    await line.all_settled()
    assert [(letter.message.position, letter.reason) for letter in line.dead.letters] == [("5", "too_large")]
    assert [piece["partial"] for piece in line.pieces] == [False]


async def test_what_is_finished_is_not_scored_again(tmp_path, store_of):
    """The source gives everything again, as a broker does whose record was lost; what it had settled before is known here."""
    line = Line(tmp_path, store_of())
    line.put(chunks(noise(1, 30), cuts(3000, 70)))
    await line.all_settled()
    scored = len(line.sink.events)
    line.source.settled.clear()
    await line.all_settled()
    assert len(line.sink.events) == scored == 3
    assert line.telemetry.count("chunk_repeated") == len(line.source.messages)


async def test_chunks_that_come_again_while_the_first_are_out_hold_no_second_place(tmp_path, store_of):
    line = Line(tmp_path, store_of(), max_in_flight=12)
    parts = list(chunks(noise(1, 10), cuts(1000, 100)))
    line.put([*parts[:9], *parts[:9], *parts])
    await line.all_settled()
    assert [piece["partial"] for piece in line.pieces] == [False]


async def test_a_chunk_goes_only_to_detectors_of_sound(tmp_path, store_of):
    line = Line(tmp_path, store_of())
    pictures = [cv2.imencode(".png", np.random.default_rng(number).integers(0, 255, (32, 32, 3), np.uint8))[1].tobytes() for number in range(10)]
    write_normals(tmp_path / "pictures", ".png", pictures)
    files = training_files("folder", tmp_path / "pictures", None)
    job = Job(name="eye", kind="fake", options=FakeOptions(), files=files, seed=0, device="cpu", false_alarm_probability=0.01, max_batch_size=4)
    train(job, store=line.store, progress=lambda *_: None, report=lambda *_, **__: None)
    eye = DetectorSettings(kind="fake", inputs=("mics",), max_batch_size=8, max_wait=0.01, options=FakeOptions())
    line.settings = dataclasses.replace(line.settings, detectors={**line.settings.detectors, "eye": eye})
    line.put([(pictures[0], {"stream": "cam"})])
    line.put(chunks(noise(1, 10), cuts(1000, 100)))
    await line.all_settled()
    assert sorted(line.scores) == ["eye:mics/plant/0", "fan:mics/mic/shift%201/0"]
