"""What the real daemon says of streams that fall silent, freeze or are late, without a broker; and that it holds nothing."""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from integration.daemon import Daemon, wait_until
from integration.plant import MODEL, Plant, picture

DAY = 86_400.0


@pytest.fixture
def away() -> Iterator[str]:
    """The address of a broker that is away: nobody can listen there meanwhile."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{nobody.getsockname()[1]}"


class Folders:
    """A daemon that reads folders, and writes alerts and scores to one and health events to another."""

    def __init__(self, install: Callable[..., Path], away: str, *, more: Mapping[str, Mapping[str, Any]] | None = None, **source: Any) -> None:
        tables = {
            "daemon": {"site": "test", "state": "state.db", "grace": 20.0},
            "store": {"path": "models", "poll": 0.2},
            "sources.cameras": {"kind": "folder", "path": "inbox", "poll": 0.05, **source},
            "detectors.bottle": {"kind": "fake", "inputs": ["cameras"], "max_batch_size": 8, "max_wait": 0.02, "options": MODEL},
            "sinks.alerts": {"kind": "folder", "path": "alerts", "events": ["alert", "score"]},
            "sinks.office": {"kind": "folder", "path": "office", "events": ["health"]},
            "sinks.away": {"kind": "kafka", "bootstrap_servers": away, "topic": "health", "events": ["health"]},
            **(more or {}),
        }
        self.configuration = install(tables)
        self._home = self.configuration.parent

    def put(self, name: str, payload: bytes, *, age: float = 0.0) -> None:
        """A file that is there at once."""
        path = self._home / "inbox" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".part")
        new.write_bytes(payload)
        os.utime(new, (time.time() - age,) * 2)
        new.rename(path)

    def _read(self, folder: str) -> list[dict[str, Any]]:
        return [json.loads(path.read_bytes()) for path in (self._home / folder).glob("[!.]*.json")]

    def ids(self, kind: str) -> set[str]:
        return {event["id"] for event in self._read("alerts") if event["type"] == f"monitor.{kind}.v1"}

    def health(self, what: str, **facts: Any) -> list[dict[str, Any]]:
        """The data of the health events of that name, where they hold those facts; oldest first."""
        found = sorted((event for event in self._read("office") if event["data"]["what"] == what), key=lambda event: event["time"])
        return [event["data"] for event in found if facts.items() <= event["data"].items()]


def named(name: str) -> str:
    return f"bottle:cameras/inbox/{name}"


def test_a_stream_that_falls_silent_is_told_and_so_is_that_it_speaks_again(install: Callable[..., Path], away: str) -> None:
    folders = Folders(install, away, expect_every=1.0)
    with Daemon(folders.configuration) as daemon:
        daemon.start()
        wait_until(lambda: folders.health("stream_silent", source="cameras"), seconds=60, what=daemon.tail)
        assert "stream" not in folders.health("stream_silent")[0], "nothing has come from the whole source"
        folders.put("press/7/0.png", picture("normal", 0))
        wait_until(lambda: folders.health("stream_silent", stream="press/7"), seconds=60, what=daemon.tail)
        (first,) = folders.health("stream_silent", stream="press/7")
        folders.put("press/7/1.png", picture("normal", 1))
        wait_until(lambda: folders.health("stream_speaks", stream="press/7"), seconds=60, what=daemon.tail)
        spoke = folders.health("stream_speaks", stream="press/7")[0]
        daemon.drain()
    assert first["facts"]["expect_every"] == 1.0
    assert (spoke["ends"], spoke["since"]) == (["stream_silent"], first["since"])
    assert folders.health("stream_speaks")[0]["ends"] == ["stream_silent"], "of the whole source"


def test_a_frozen_camera_is_told_and_its_samples_are_scored_and_alerted(install: Callable[..., Path], away: str) -> None:
    folders = Folders(install, away)
    frozen = picture("defect", 3)
    with Daemon(folders.configuration) as daemon:
        daemon.start()
        for number in range(4):
            folders.put(f"press/7/{number}.png", frozen)
            folders.put(f"press/8/{number}.png", picture("defect", 100 + number))
        wait_until(lambda: len(folders.ids("alert")) == 8, seconds=60, what=daemon.tail)
        wait_until(lambda: folders.health("signal_frozen"), seconds=60, what=daemon.tail)
        daemon.drain()
    (told,) = folders.health("signal_frozen")
    assert (told["stream"], told["level"], told["facts"]) == ("press/7", "warning", {"sample": "cameras/inbox/press/7/2.png"})
    assert folders.ids("alert") == {named(f"press/{camera}/{number}.png") for camera in (7, 8) for number in range(4)}


def test_a_source_whose_broker_is_away_is_told_with_the_reason(install: Callable[..., Path], away: str) -> None:
    scanners = {"kind": "kafka", "bootstrap_servers": away, "topics": ["images"], "group_id": "monitor"}
    lid = {"kind": "fake", "inputs": ["scanners"], "options": MODEL}
    folders = Folders(install, away, more={"sources.scanners": scanners, "detectors.lid": lid})
    with Daemon(folders.configuration) as daemon:
        daemon.start()
        wait_until(lambda: folders.health("source_disconnected", cause="refused"), seconds=60, what=daemon.tail)
        folders.put("press/7/0.png", picture("defect", 0))
        wait_until(lambda: folders.ids("alert") == {named("press/7/0.png")}, seconds=60, what=daemon.tail)
        daemon.drain()
    told = folders.health("source_disconnected", cause="refused")[0]
    assert (told["source"], told["ends"]) == ("scanners", [])
    assert away in told["error"]


def test_samples_beyond_max_age_are_settled_and_told_but_not_scored(install: Callable[..., Path], away: str) -> None:
    folders = Folders(install, away, max_age=DAY)
    with Daemon(folders.configuration) as daemon:
        daemon.start()
        for number in range(20):
            folders.put(f"press/7/{number:02}.png", picture("defect", number), age=0.0 if number == 19 else 2 * DAY)
        wait_until(lambda: folders.ids("alert") == {named("press/7/19.png")}, seconds=60, what=daemon.tail)
        wait_until(lambda: folders.health("sample_too_old"), seconds=60, what=daemon.tail)
        daemon.drain()
    assert folders.ids("score") == {named("press/7/19.png")}
    (told,) = folders.health("sample_too_old")
    assert (told["source"], told["facts"]["count"], told["facts"]["streams"]) == ("cameras", 1, ["press/7"])
    assert told["facts"]["age"] > DAY
    with Daemon(folders.configuration, "again") as daemon:
        daemon.start()
        folders.put("press/7/20.png", picture("normal", 20))
        wait_until(lambda: named("press/7/20.png") in folders.ids("score"), seconds=60, what=daemon.tail)
        assert not daemon.events("sample_too_old"), "the old ones were settled and do not come again"
        daemon.drain()


def test_health_events_go_to_kafka_keyed_by_what_they_are_about(plant: Plant, install: Callable[..., Path]) -> None:
    with Daemon(install(plant.tables(sinks__events={"events": ["alert", "health"]}), models=False)) as daemon:
        daemon.start()
        wait_until(lambda: plant.read("health"), seconds=60, what=daemon.tail)
        daemon.drain()
    told = plant.read("health")[0]
    assert (told["subject"], told["data"]["what"], told["data"]["detector"]) == ("bottle", "model_missing", "bottle")
    assert plant.events.look()[0].key == b"bottle"
