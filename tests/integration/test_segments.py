"""Recordings in chunks through the real process and real brokers: stopped and killed in the middle of segments."""

import json
import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from brokers import Broker
from fake_listener import KILLS, ListenerOptions
from integration.daemon import Daemon, monitor, wait_until, write_configuration
from integration.sides import Inlet, KafkaInlet, KafkaOutlet, MqttInlet, MqttOutlet, Outlet
from kafka_plant import fresh
from monitor.store import ModelStore
from mosquitto import Mosquitto
from recordings import RATE, chunks, cuts, noise, wav
from trained_listener import train_listener, undivided

STREAMS = 3
SECONDS = 40
"""In chunks of 0.7 s each stream holds 15 at most, and 16 while a segment is open: 48 places are just enough."""


class Hall:
    """Microphones that send recordings in chunks in turn, and what was said of these."""

    def __init__(self, broker: Broker | Mosquitto, home: Path, models: Path, **source: Any) -> None:
        self.broker = broker
        group = fresh("group")
        self.inlet: Inlet
        self.events: Outlet
        if isinstance(broker, Mosquitto):
            self.inlet, self.events = MqttInlet(broker, "mics", group, "5"), MqttOutlet(broker, "events", "{stream}")
        else:
            self.inlet, self.events = KafkaInlet(broker, "mics", group), KafkaOutlet(broker, "events")
        tables: Mapping[str, Mapping[str, Any]] = {
            "daemon": {"site": "test", "state": "state.db", "grace": 30.0},
            "store": {"path": "models", "poll": 0.2},
            "sources.mics": {**self.inlet.table, "max_in_flight": 48, "recording_timeout": 3600.0, **source},  # however slow the machine is
            "detectors.fan": {"kind": "listener", "inputs": ["mics"], "max_batch_size": 8, "max_wait": 0.02, "options": {}},
            "sinks.events": {**self.events.address, "events": ["score"]},
            "dead_letter": {"kind": "folder", "path": "dead"},
        }
        self.home = home
        shutil.copytree(models, home / "models")
        self.daemon = Daemon(write_configuration(home / "monitor.toml", tables))

    def send(self, parts: list[tuple[bytes, dict[str, str]]]) -> None:
        for confirmed in [self.inlet.send(payload, headers.pop("stream"), **headers) for payload, headers in parts]:
            confirmed()

    @property
    def scored(self) -> list[dict[str, Any]]:
        return [json.loads(record.value) for record in self.events.look()]

    @property
    def scores(self) -> dict[str, float]:
        """By id; what comes twice says the same."""
        scores: dict[str, float] = {}
        for event in self.scored:
            assert scores.setdefault(event["id"], event["data"]["score"]) == event["data"]["score"]
        return scores

    def wait(self, segments: int) -> None:
        wait_until(lambda: len(self.scores) >= segments, seconds=90, what=self.daemon.tail, every=0.2)

    def close(self) -> None:
        self.inlet.close()
        self.events.close()


@pytest.fixture(scope="session")
def listener(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_listener(tmp_path_factory.mktemp("listener"), ListenerOptions())


@pytest.fixture(params=["kafka", "mqtt"])
def hall(request: pytest.FixtureRequest, tmp_path: Path, listener: Path) -> Iterator[Hall]:
    hall = Hall(request.getfixturevalue("apache_kafka" if request.param == "kafka" else "mosquitto"), tmp_path, listener)
    yield hall
    hall.close()


def test_killed_and_stopped_in_the_middle_of_segments_the_scores_are_those_of_an_unbroken_run(hall: Hall) -> None:
    recordings = [noise(number, SECONDS) for number in range(STREAMS)]
    parts = [list(chunks(recording, cuts(SECONDS * RATE, 70), stream=f"hall/{number}")) for number, recording in enumerate(recordings)]
    in_turn = [part for together in zip(*parts, strict=True) for part in together]
    first, second, third = 22 * STREAMS, 36 * STREAMS, len(in_turn)  # 15.4 s, 25.2 s, 40 s
    store = ModelStore(hall.home / "models")
    expected = {
        f"fan:mics/hall/{number}/shift%201/{segment}": score
        for number, recording in enumerate(recordings)
        for segment, score in enumerate(undivided(store, recording))
    }
    with hall.daemon as daemon:
        daemon.start()
        hall.send(in_turn[:first])
        hall.wait(STREAMS)
        daemon.kill()
        daemon.start()
        hall.send(in_turn[first:second])
        hall.wait(2 * STREAMS)
        daemon.drain()
        [stopped] = daemon.events("stopped")
        assert (stopped["unsettled"] > 0, stopped["hard"]) == (True, False)
        daemon.start()
        hall.send(in_turn[second:third])
        hall.wait(4 * STREAMS)
        daemon.drain()
        assert not daemon.events("processing_singly"), "the end before was clean"
        [stopped] = daemon.events("stopped")
        assert stopped["unsettled"] == 0
    assert hall.scores == expected
    assert not any(event["data"]["sample"]["partial"] for event in hall.scored)
    assert list((hall.home / "dead").glob("*")) == []
    assert hall.inlet.unsettled() == 0


@pytest.mark.parametrize("hall", ["mqtt"], indirect=True)
def test_the_chunks_of_a_segment_that_kills_the_process_go_to_the_dead_letter_at_its_third_death(hall: Hall) -> None:
    waveform = noise(7, 30)
    waveform[0, 1500] = KILLS
    deaths = 0
    with hall.daemon as daemon:
        hall.send(list(chunks(waveform, cuts(3000, 250), stream="hall/1")))
        daemon.start()

        def finished() -> bool:
            nonlocal deaths
            if (code := daemon.process.poll()) is not None:
                assert code == -signal.SIGKILL, daemon.tail()
                deaths += 1
                assert deaths <= 4, "one death in a batch, three alone"
                daemon.start()
            return sorted(hall.scores) == [f"fan:mics/hall/1/shift%201/{segment}" for segment in (0, 2)]

        wait_until(finished, seconds=120, what=daemon.tail)
        daemon.drain()
    letters = [json.loads(file.read_text()) for file in (hall.home / "dead").glob("*.json")]
    offsets = [header["text"] for letter in letters for header in letter["data"]["headers"] if header["name"] == "offset"]
    assert sorted(offsets) == ["1000", "1250", "1500", "1750"]
    assert {letter["data"]["reason"] for letter in letters} == {"failed"}
    assert hall.inlet.unsettled() == 0


def test_a_recording_that_stops_does_not_hold_the_others_behind_its_acknowledgement(mosquitto: Mosquitto, tmp_path: Path, listener: Path) -> None:
    """MQTT acknowledges in order: what is settled behind an open segment keeps its place at the broker."""
    hall = Hall(mosquitto, tmp_path, listener, max_in_flight=20)
    waveform = noise(5, 40)
    with closing(hall), hall.daemon as daemon:
        daemon.start()
        hall.send(list(chunks(noise(4, 1), [(0, 100)], stream="hall/stops", last=False)))
        hall.send(list(chunks(waveform, cuts(4000, 100), stream="hall/goes_on")))
        hall.wait(4)
        daemon.drain()
        expected = {
            f"fan:mics/hall/goes_on/shift%201/{segment}": score for segment, score in enumerate(undivided(ModelStore(tmp_path / "models"), waveform))
        }
        assert hall.scores == expected
        assert hall.inlet.unsettled() == 0


def test_a_published_file_comes_out_as_the_segments_of_its_recording(hall: Hall, tmp_path: Path) -> None:
    waveform = noise(3, 25)
    (tmp_path / "fan.wav").write_bytes(wav(waveform))
    sent = tmp_path / "sent.json"
    command = ("publish", str(tmp_path / "fan.wav"), "--to", "mics", "--stream", "hall/2", "--chunk", "0.7", "--json", str(sent))
    monitor(*command, "--config", str(hall.home / "monitor.toml"))
    with hall.daemon as daemon:
        daemon.start()
        hall.wait(3)
        daemon.drain()
    said = json.loads(sent.read_text())
    [name] = {entry["recording"] for entry in said}
    assert [entry["offset"] for entry in said] == list(range(0, 2500, 70))
    pieces = [event["data"]["sample"] for event in hall.scored]
    assert [(piece["recording"], piece["start"], piece["end"], piece["partial"]) for piece in pieces] == [
        (name, 0.0, 10.0, False),
        (name, 10.0, 20.0, False),
        (name, 20.0, 25.0, True),
    ]
    positions = {entry["position"]: entry["offset"] for entry in said}
    assert [positions[piece["position"]] for piece in pieces] == [0, 980, 1960]
    assert [event["data"]["score"] for event in hall.scored] == undivided(ModelStore(hall.home / "models"), waveform)
    assert hall.inlet.unsettled() == 0
