"""The flow in one process: memory source and sinks, the fake detector. Nothing lost, nothing settled too early."""

import itertools
from pathlib import Path

import anyio
import cv2
import numpy as np
import pytest

from connectors.memory.channel import Channel, channel
from connectors.memory.options import MemoryDeadLetterOptions, MemorySinkOptions, MemorySourceOptions
from fake_detector import NAN, RAISES, FakeDetector, FakeOptions
from flow import running, until
from monitor.errors import ModelBroken
from monitor.evaluation.layouts import training_files
from monitor.reference import COUNT
from monitor.serving import ModelSlot
from monitor.settings import DetectorSettings, SinkSettings
from monitor.state import State
from monitor.store import ModelStore
from monitor.telemetry import Telemetry
from monitor.topology import PipelineSettings
from monitor.training import Job, train
from monitor.types import Message
from scans import npz

pytestmark = pytest.mark.anyio
numbers = itertools.count()


def picture(number: int, *, noise: int = 20, defect: bool = False, corner: tuple[int, int, int] | None = None) -> bytes:
    chance = np.random.default_rng(number)
    image = chance.integers(100 - noise, 100 + noise, (32, 32, 3), np.uint8)
    if defect:
        image[8:24, 8:24] = 255
    if corner is not None:
        image[0, 0] = corner
    return cv2.imencode(".png", image[:, :, ::-1])[1].tobytes()


class Line:
    """One memory source into detectors; every event into one memory sink."""

    def __init__(self, tmp_path: Path, *, detectors: int = 1, max_in_flight: int = 64, train_now: bool = True, **options) -> None:
        self.home = tmp_path
        self.telemetry = Telemetry()
        name = f"line {next(numbers)} of {tmp_path}"
        self.source, self.sink, self.dead = channel(f"{name} in"), channel(f"{name} out"), channel(f"{name} dead")
        self.options = options
        names = [f"bottle{number}" for number in range(detectors)]
        settings = {
            name: DetectorSettings(kind="fake", inputs=("cameras",), max_batch_size=8, max_wait=0.01, options=FakeOptions(score="largest", **options))
            for name in names
        }
        self.settings = PipelineSettings(
            sources={"cameras": MemorySourceOptions(channel=self.source.name, max_in_flight=max_in_flight, max_bytes=100_000)},
            detectors=settings,
            sinks={"all": SinkSettings(events=("alert", "score"), options=MemorySinkOptions(channel=self.sink.name))},
            dead_letter=MemoryDeadLetterOptions(channel=self.dead.name),
        )
        self.store = ModelStore(tmp_path / "models")
        if train_now:
            for name in names:
                self.train(name)

    def train(self, name: str = "bottle0", seed: int = 0) -> None:
        normals = self.home / "normals"
        if not normals.exists():
            normals.mkdir()
            for number in range(20):
                (normals / f"{number:02}.png").write_bytes(picture(10_000 + number, noise=50))  # noisier than what is streamed: no false alarms here
        options = FakeOptions(score="largest", **self.options)
        job = Job(
            name=name,
            kind="fake",
            options=options,
            files=training_files("folder", normals, None),
            seed=seed,
            device="cpu",
            false_alarm_probability=0.01,
            max_batch_size=4,
        )
        train(job, store=self.store, progress=lambda *_: None, report=lambda *_, **__: None)

    def put(self, *payloads: bytes, **more) -> None:
        for payload in payloads:
            position = str(len(self.source.messages))
            self.source.messages.append(Message(source="", topic="press", position=position, payload=payload, received=1.0, **more))

    def ids(self, kind: str, detector: str = "bottle0") -> list[str]:
        return [event["id"] for event in self.sink.events if event["type"] == f"monitor.{kind}.v1" and event["data"]["detector"] == detector]

    def running(self, *, unclean: bool = False):
        """A pipeline; drained at the end."""
        return running(self.settings, store=self.store, home=self.home, telemetry=self.telemetry, unclean=unclean)


def positions(channel: Channel) -> set[str]:
    return {message.position for message in channel.messages}


async def test_every_message_is_scored_defects_alerted_all_settled(tmp_path):
    line = Line(tmp_path)
    defects = {3, 17, 40}
    line.put(*(picture(number, defect=number in defects) for number in range(50)))
    async with line.running():
        await until(lambda: line.source.settled == positions(line.source))

    assert line.ids("score") == [f"bottle0:cameras/press/{number}" for number in range(50)]
    assert line.ids("alert") == [f"bottle0:cameras/press/{number}" for number in sorted(defects)]
    alert = next(event for event in line.sink.events if event["type"] == "monitor.alert.v1")
    assert alert["data"]["regions"]
    assert alert["data"]["map"]["width"] == 32


async def test_bad_input_goes_to_the_dead_letter_byte_for_byte(tmp_path):
    line = Line(tmp_path)
    bad = [b"", b"not an image", picture(1)[:200], b"\xff" * 200_000]
    line.put(picture(0), *bad, picture(2))
    async with line.running():
        await until(lambda: line.source.settled == positions(line.source))

    assert {letter.message.payload for letter in line.dead.letters} == set(bad)
    assert sorted(letter.reason for letter in line.dead.letters) == ["empty", "too_large", "undecodable", "undecodable"]
    assert len(line.ids("score")) == 2
    assert line.telemetry.count("dead_lettered") == 4


async def test_a_detector_of_images_sees_the_image_of_a_scan_and_takes_no_depth_alone(tmp_path):
    line = Line(tmp_path)
    image = cv2.imdecode(np.frombuffer(picture(1, defect=True), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    depth = np.random.default_rng(1).random((32, 32), np.float32)
    line.put(npz(image=image, depth=depth), cv2.imencode(".tiff", depth)[1].tobytes(), picture(2))
    async with line.running():
        await until(lambda: line.source.settled == positions(line.source))

    assert sorted(event["data"]["modality"] for event in line.sink.events if event["type"] == "monitor.score.v1") == ["image", "rgbd"]
    assert len(line.ids("alert")) == 1
    [letter] = line.dead.letters
    assert letter.reason == "unsupported"
    assert "depth from stream press, whose detectors (bottle0) do not take it: expected image" in letter.error


@pytest.mark.parametrize("corner", [RAISES, NAN])
async def test_a_poisoned_sample_fails_alone(tmp_path, corner):
    line = Line(tmp_path)
    line.put(*(picture(number) for number in range(5)), picture(5, corner=corner), *(picture(number) for number in range(6, 10)))
    async with line.running():
        await until(lambda: line.source.settled == positions(line.source))

    assert [(letter.message.position, letter.reason) for letter in line.dead.letters] == [("5", "failed")]
    assert len(line.ids("score")) == 9


@pytest.mark.parametrize("how", ["nan", "raise"])
async def test_a_broken_model_settles_nothing_and_empties_no_stream(tmp_path, how):
    sabotage = tmp_path / "sabotage"
    line = Line(tmp_path, sabotage=sabotage)
    line.put(*(picture(number) for number in range(30)))
    with pytest.raises(BaseExceptionGroup) as caught:  # noqa: PT012
        async with line.running():
            sabotage.write_text(how)
            settled = len(line.source.settled)
            line.put(*(picture(number) for number in range(30, 60)))
            await anyio.sleep_forever()

    assert caught.group_contains(ModelBroken)
    assert line.dead.letters == []
    assert len(line.source.settled) < 60
    assert len(line.ids("score")) >= len(line.source.settled) >= settled


async def test_settled_when_the_last_detector_has_finished(tmp_path):
    line = Line(tmp_path, detectors=2)
    line.put(*(picture(number) for number in range(20)))
    async with line.running():
        await until(lambda: line.source.settled == positions(line.source))

    assert len(line.ids("score", "bottle0")) == len(line.ids("score", "bottle1")) == 20


async def test_what_fails_in_two_detectors_has_one_dead_letter(tmp_path):
    line = Line(tmp_path, detectors=2)
    line.put(picture(0), picture(1, corner=RAISES), picture(2))
    async with line.running():
        await until(lambda: line.source.settled == positions(line.source))

    assert [letter.message.position for letter in line.dead.letters] == ["1"]


async def test_nothing_is_settled_while_the_sink_is_away(tmp_path):
    line = Line(tmp_path, max_in_flight=10)
    line.sink.away = True
    line.put(*(picture(number) for number in range(30)))
    async with line.running() as pipeline:
        await until(lambda: pipeline.unsettled == 10)
        await anyio.sleep(0.3)
        assert line.source.settled == set()
        assert pipeline.unsettled == 10
        line.sink.away = False
        await until(lambda: line.source.settled == positions(line.source))

    assert line.telemetry.count("sink_disconnected", "lost") == 1
    assert line.telemetry.count("sink_connected") == 1


async def test_nothing_is_settled_while_the_dead_letter_is_away(tmp_path):
    line = Line(tmp_path)
    line.dead.away = True
    line.put(b"bad")
    async with line.running():
        await until(lambda: line.telemetry.count("sink_disconnected"))
        assert line.source.settled == set()
        line.dead.away = False
        await until(lambda: line.source.settled == {"0"})

    assert [letter.message.payload for letter in line.dead.letters] == [b"bad"]


async def test_an_event_that_a_sink_never_takes_goes_to_the_dead_letter(tmp_path):
    line = Line(tmp_path)
    line.sink.rejects.add(("monitor.score.v1", "bottle0:cameras/press/1"))
    line.put(*(picture(number) for number in range(3)))
    async with line.running():
        await until(lambda: line.source.settled == positions(line.source))

    (letter,) = line.dead.letters
    assert (letter.reason, letter.message.position) == ("rejected", "bottle0:cameras/press/1")
    assert b'"score"' in letter.message.payload
    assert len(line.ids("score")) == 2


async def test_without_a_model_the_source_is_held_until_the_first_training(tmp_path):
    line = Line(tmp_path, train_now=False)
    line.put(*(picture(number) for number in range(5)))
    async with line.running():
        await anyio.sleep(0.2)
        assert line.sink.events == []
        line.train()
        await until(lambda: line.source.settled == positions(line.source))

    assert line.telemetry.count("model_missing") == 1


async def test_draining_without_a_model_leaves_what_waits(tmp_path):
    line = Line(tmp_path, train_now=False, max_in_flight=2)
    line.put(*(picture(number) for number in range(5)))
    async with line.running() as pipeline:
        await until(lambda: pipeline.unsettled == 2)

    assert line.source.settled == set()


async def test_a_promoted_version_serves_from_the_next_batch_on(tmp_path):
    line = Line(tmp_path)
    first = line.store.current("bottle0").id
    async with line.running():
        line.put(picture(0))
        await until(lambda: len(line.ids("score")) == 1)
        line.train(seed=5)
        second = line.store.current("bottle0").id
        await until(lambda: line.telemetry.count("model_loaded") == 2)
        line.put(picture(1))
        await until(lambda: len(line.ids("score")) == 2)
        line.store.rollback("bottle0")
        await until(lambda: line.telemetry.count("model_loaded") == 3)
        line.put(picture(2))
        await until(lambda: len(line.ids("score")) == 3)

    assert [event["data"]["model_version"] for event in line.sink.events] == [first, second, first]


async def test_a_stream_that_no_detector_watches_is_counted_and_settled(tmp_path):
    line = Line(tmp_path)
    narrow = line.settings.detectors["bottle0"].model_copy(update={"streams": ("press/*",)})
    line.settings = PipelineSettings(
        sources=line.settings.sources, detectors={"bottle0": narrow}, sinks=line.settings.sinks, dead_letter=line.settings.dead_letter
    )
    line.put(picture(0), key=b"lathe/1")
    line.put(picture(1), key=b"press/1")
    line.put(picture(2), key=b"lathe/1")
    async with line.running():
        await until(lambda: line.source.settled == positions(line.source))

    assert line.ids("score") == ["bottle0:cameras/press/1"]
    assert line.telemetry.count("stream_unwatched") == 2


async def test_after_an_unclean_end_the_first_are_processed_singly(tmp_path):
    line = Line(tmp_path, max_in_flight=4)
    line.put(*(picture(number) for number in range(10)))
    async with line.running(unclean=True):
        await until(lambda: line.source.settled == positions(line.source))

    assert line.telemetry.count("processing_singly") == 1
    assert len(line.ids("score")) == 10


async def test_the_third_death_is_one_too_many(tmp_path):
    line = Line(tmp_path)
    line.put(picture(0), picture(1))
    for _ in range(3):
        with State(tmp_path / "state.db") as state:
            state.begin("cameras/press/0")
    async with line.running(unclean=True):
        await until(lambda: line.source.settled == positions(line.source))

    assert [(letter.message.position, letter.reason) for letter in line.dead.letters] == [("0", "failed")]
    assert line.ids("score") == ["bottle0:cameras/press/1"]


async def test_draining_finishes_what_is_out(tmp_path):
    line = Line(tmp_path, delay=0.05)
    line.put(*(picture(number) for number in range(40)))
    async with line.running() as pipeline:
        await until(lambda: line.source.settled)

    assert pipeline.unsettled == 0
    assert {f"bottle0:cameras/press/{position}" for position in line.source.settled} == set(line.ids("score"))


async def test_a_batch_that_is_repeated_one_by_one_is_timed_anew_for_each(tmp_path, monkeypatch):
    begun: list[float] = []
    score = FakeDetector.score

    def spy(self, batch, **more):
        begun.append(devices.running["cpu"])
        return score(self, batch, **more)

    line = Line(tmp_path)
    line.put(*(picture(number, corner=RAISES if number == 2 else None) for number in range(5)))
    async with line.running() as pipeline:
        devices = pipeline._devices
        monkeypatch.setattr(FakeDetector, "score", spy)
        await until(lambda: line.source.settled == positions(line.source))
    assert len(line.dead.letters) == 1
    assert len(begun) > 1 + COUNT, "the batch, each of its samples, each of the reference samples"
    assert begun == sorted(set(begun))


async def test_a_model_that_is_being_loaded_is_not_one_that_is_missing(tmp_path):
    line = Line(tmp_path, train_now=False)
    slot = ModelSlot("bottle0", line.settings.detectors["bottle0"], site="test", store=line.store, report=line.telemetry.report)
    assert slot.trouble == "its model is being loaded"
    await slot.refresh()
    assert slot.trouble == "no model; monitor train bottle0"
    line.train()
    await slot.refresh()
    assert slot.trouble is None
