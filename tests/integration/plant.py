"""The plant around a daemon: cameras that send pictures to a broker, consumers that read what came out, and the books."""

import hashlib
import json
import random
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from brokers import Broker
from fake_detector import KILLS, RAISES
from integration.daemon import Daemon, wait_until
from integration.sides import Confirmed, Headers, Inlet, KafkaInlet, KafkaOutlet, MqttInlet, MqttOutlet, Outlet, Record
from kafka_plant import fresh
from mosquitto import Mosquitto

AnyBroker = Broker | Mosquitto
Kind = Literal["normal", "defect", "bad", "raises", "kills"]

CORNER = {"raises": RAISES, "kills": KILLS}
MODEL = {"score": "largest"}
"""Options of the fake detector: the largest difference to the mean training image tells a bright square from noise."""


def picture(kind: Kind, number: int, *, noise: int = 20) -> bytes:
    """A PNG of 32 x 32, another for every number: noise, with a bright square on the defective ones; or bytes that are no image."""
    chance = np.random.default_rng(number)
    image = chance.integers(100 - noise, 100 + noise, (32, 32, 3), np.uint8)
    if kind == "defect":
        top, left = chance.integers(1, 17, 2)
        image[top : top + 16, left : left + 16] = 255
    if kind in CORNER:
        image[0, 0] = CORNER[kind]
    done, encoded = cv2.imencode(".png", image[:, :, ::-1])
    assert done
    payload = encoded.tobytes()
    if kind == "bad":
        return (payload[: len(payload) // 2], b"", b"number %d" % number, payload[:8] + payload)[number % 4]
    return payload


_Pending = tuple[str, Kind, bytes, Confirmed]
"""Source, kind and payload of a message that is on its way."""


@dataclass(frozen=True)
class Sent:
    """One message as the broker confirmed it."""

    id: str
    kind: Kind
    payload: bytes
    headers: Headers


def original(letter: Record) -> bytes:
    """The payload that a dead letter holds, in its record or in the spilled file that the record names."""
    if ("monitor-spilled", b"true") not in letter.headers:
        return bytes(letter.value)
    facts = json.loads(letter.value)
    payload = Path(facts["path"]).read_bytes()
    assert (len(payload), hashlib.sha256(payload).hexdigest()) == (facts["size"], facts["sha256"])
    return payload


class Plant:
    """Topics of its own: one of images per source, `events` and `dead`, each of which may live on another broker.

    `group` is the consumer group, in MQTT what the client ids begin with. `protocol` is that of an MQTT source.
    """

    def __init__(
        self,
        broker: AnyBroker,
        *,
        partitions: int = 1,
        sources: Sequence[str] = ("cameras",),
        events: AnyBroker | None = None,
        dead: AnyBroker | None = None,
        protocol: Literal["5", "3.1.1"] = "5",
    ) -> None:
        self.group = fresh("group")
        self._inlets = {source: self._inlet(broker, source, partitions, protocol) for source in sources}
        self.images = {source: inlet.topic for source, inlet in self._inlets.items()}
        self.sent: list[Sent] = []
        self.events = _outlet(events or broker, "events", "{stream}")
        self.dead = _outlet(dead or broker, "dead", "letters")
        self._parsed: list[dict[str, Any]] = []
        self._number = 0

    def _inlet(self, broker: AnyBroker, source: str, partitions: int, protocol: Literal["5", "3.1.1"]) -> Inlet:
        if isinstance(broker, Mosquitto):
            return MqttInlet(broker, source, f"{self.group}-{source}", protocol)
        return KafkaInlet(broker, source, self.group, partitions)

    def close(self) -> None:
        for side in (*self._inlets.values(), self.events, self.dead):
            side.close()

    def tables(self, **more: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """A monitor.toml for this plant: every source into detector `bottle`; `more` keys by table, `__` for the dot."""
        tables: dict[str, dict[str, Any]] = {
            "daemon": {"site": "test", "state": "state.db", "grace": 20.0},
            "store": {"path": "models", "poll": 0.2},
            **{f"sources.{name}": dict(inlet.table) for name, inlet in self._inlets.items()},
            "detectors.bottle": {"kind": "fake", "inputs": list(self.images), "max_batch_size": 8, "max_wait": 0.02, "options": MODEL},
            "sinks.events": {**self.events.address, "events": ["alert", "score"]},
            "dead_letter": {**self.dead.address, "max_bytes": 2048, "spill": "spill"},
        }
        for table, keys in more.items():
            tables.setdefault(table.replace("__", "."), {}).update(keys)
        return tables

    # The cameras.

    def send(self, *kinds: Kind, source: str = "cameras") -> list[Sent]:
        """One message of each kind, confirmed by the broker."""
        return self._confirm([self._send(kind, source) for kind in kinds])

    @contextmanager
    def streaming(self, rate: float, *, seed: int) -> Iterator[None]:
        """Meanwhile send `rate` messages a second: one in ten defective, one in ten that is no image, the others normal."""
        ending = threading.Event()
        pending: list[_Pending] = []
        kinds: tuple[Kind, ...] = ("defect", "bad", *("normal",) * 8)

        def run() -> None:
            chance = random.Random(seed)
            while not ending.wait(1 / rate):
                pending.append(self._send(chance.choice(kinds), "cameras"))

        thread = threading.Thread(target=run, name="cameras")
        thread.start()
        try:
            yield
        finally:
            ending.set()
            thread.join()
        self._confirm(pending)

    def _send(self, kind: Kind, source: str) -> _Pending:
        self._number += 1
        payload = picture(kind, self._number)
        return source, kind, payload, self._inlets[source].send(payload, f"press/{self._number % 5}")

    def _confirm(self, pending: Sequence[_Pending]) -> list[Sent]:
        done = []
        for source, kind, payload, confirmed in pending:
            position, headers = confirmed()
            done.append(Sent(f"{source}/{self.images[source]}/{position}", kind, payload, headers))
        self.sent += done
        return done

    # The consumers.

    def read(self, kind: str) -> list[dict[str, Any]]:
        """Every event so far of the type `monitor.KIND.v1`, in order."""
        self._parsed += [json.loads(record.value) for record in self.events.look()[len(self._parsed) :]]
        return [event for event in self._parsed if event["type"] == f"monitor.{kind}.v1"]

    def scored(self, kind: str = "score", detector: str = "bottle") -> Counter[str]:
        """Sample id -> how many such events (score or alert) that detector made of it."""
        ids = [event["id"].partition(":") for event in self.read(kind)]
        return Counter(sample_id for name, _, sample_id in ids if name == detector)

    def dead_letters(self) -> dict[str, list[Record]]:
        """Sample id -> the records of the dead letter about that message."""
        letters: dict[str, list[Record]] = {}
        for record in self.dead.look():
            said = {name: value.decode() for name, value in record.headers if name.startswith("monitor-")}
            letters.setdefault(f"{said['monitor-source']}/{said['monitor-topic']}/{said['monitor-position']}", []).append(record)
        return letters

    # The books.

    def ids(self, *kinds: Kind) -> set[str]:
        return {sent.id for sent in self.sent if sent.kind in kinds}

    def outstanding(self, *detectors: str) -> set[str]:
        """The messages that have neither a score of every detector nor a place in the dead letter."""
        done = set.intersection(*(set(self.scored("score", detector)) for detector in detectors or ("bottle",)))
        return {sent.id for sent in self.sent} - done - self.dead_letters().keys()

    def wait(self, *detectors: str, seconds: float = 120) -> None:
        """Until nothing is outstanding."""

        def what() -> str:
            left = sorted(self.outstanding(*detectors))
            return f"{len(left)} of {len(self.sent)} messages outstanding: {left[:5]}"

        wait_until(lambda: not self.outstanding(*detectors), seconds=seconds, what=what, every=0.2)

    def finish(self, daemon: Daemon, *, seconds: float = 120) -> None:
        """Until nothing is outstanding, and what comes again has come: one more message stands behind all of it. Then drain."""
        self.wait(seconds=seconds)
        self.send("normal")
        self.wait(seconds=seconds)
        daemon.drain()

    def unsettled(self, source: str = "cameras") -> int:
        """How many messages the broker would give the source again. Of MQTT it takes the session over for a moment."""
        return self._inlets[source].unsettled()

    def audit(self, *detectors: str, doubles: bool = True, innocents: int = 0) -> None:
        """Close the books, after the last daemon has drained.

        Every planted anomaly was alerted at least once and nothing else was; every message was scored, or lies byte for byte
        and with its headers in the dead letter; every double has the same id; everything is settled. `innocents`: at most so
        many good messages may lie in the dead letter as failed, because the process was killed with them in work.
        """
        letters = self.dead_letters()
        doubled = lost = 0
        good, defects = self.ids("normal", "defect"), self.ids("defect")
        excused = letters.keys() & good
        assert len(excused) <= innocents, f"good, but in the dead letter: {sorted(excused)}"
        assert letters.keys() - excused == self.ids("bad", "raises", "kills")
        for detector in detectors or ("bottle",):
            alerts, scores = self.scored("alert", detector), self.scored("score", detector)
            assert defects - alerts.keys() - excused == set(), "planted anomalies that were not alerted"
            assert alerts.keys() - defects == set(), "alerts of what is no planted anomaly"
            assert good - scores.keys() - excused == set(), "messages that were lost"
            assert scores.keys() - good == set(), "scores of what cannot be scored"
            again = [sample_id for sample_id, times in (alerts + scores).items() if times > 1 + (sample_id in alerts)]
            doubled += len(again)
            lost += len(good - scores.keys() - excused)
            assert doubles or not again, f"doubles: {again}"
        for event in [*self.read("alert"), *self.read("score")]:
            data, sample = event["data"], event["data"]["sample"]
            assert event["id"] == f"{data['detector']}:{sample['source']}/{sample['topic']}/{sample['position']}"
        sent = {one.id: one for one in self.sent}
        for sample_id, records in letters.items():
            for record in records:
                assert original(record) == sent[sample_id].payload, f"{sample_id} changed on its way to the dead letter"
                assert [header for header in record.headers if not header[0].startswith("monitor-")] == list(sent[sample_id].headers)
                reason = dict(record.headers)["monitor-reason"].decode()
                assert (reason == "failed") == (sent[sample_id].kind != "bad"), f"{sample_id}: {reason}"
        for source in self.images:
            assert self.unsettled(source) == 0
        books = f"{len(self.sent)} messages, {lost} lost, {len(excused)} dead letters of good ones, {doubled} doubled with the same id"
        print(f"books: {books}")  # noqa: T201 (pytest -s shows it)


def _outlet(broker: AnyBroker, name: str, topic: str) -> Outlet:
    return MqttOutlet(broker, name, topic) if isinstance(broker, Mosquitto) else KafkaOutlet(broker, name)
