"""The plant around a daemon: cameras that send pictures to Kafka, consumers that read what came out, and the books."""

import hashlib
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaTimeoutError
from kafka.producer.future import FutureRecordMetadata

from brokers import Broker
from fake_detector import KILLS, RAISES
from integration.daemon import wait_until
from kafka_plant import fresh, make_topic

Kind = Literal["normal", "defect", "bad", "raises", "kills"]

CORNER = {"raises": RAISES, "kills": KILLS}
HEADERS = [("line", b"\x00\xff"), ("line", b"2")]
"""Of every message: twice the same name, and bytes that are no text."""
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


@dataclass(frozen=True)
class Sent:
    """One message as the broker confirmed it."""

    id: str
    kind: Kind
    payload: bytes


class Topic:
    """A new topic, read to its present end at every look."""

    def __init__(self, broker: Broker, name: str) -> None:
        self.name = make_topic(broker, name)
        self.address = {"kind": "kafka", "bootstrap_servers": broker.plain, "topic": self.name}
        self._partition = TopicPartition(self.name, 0)
        self._records: list[Any] = []
        self._consumer = self._reader()

    def _reader(self) -> KafkaConsumer:
        """A consumer that goes on after the records read so far."""
        servers = self.address["bootstrap_servers"]
        consumer = KafkaConsumer(bootstrap_servers=servers, enable_auto_commit=False, fetch_max_wait_ms=20, max_poll_records=2000)
        consumer.assign([self._partition])
        consumer.seek(self._partition, len(self._records))
        return consumer

    def look(self) -> list[Any]:
        """Every record so far, in order, as kafka-python gives them."""
        try:
            end = self._consumer.end_offsets([self._partition])[self._partition]
        except KafkaTimeoutError:  # a client that did not survive its broker's restart: a new one goes on where it was
            self._consumer.close()
            self._consumer = self._reader()
            end = self._consumer.end_offsets([self._partition])[self._partition]
        deadline = time.monotonic() + 30
        while self._consumer.position(self._partition) < end:
            assert time.monotonic() < deadline, f"{self.name} cannot be read to its end"
            for records in self._consumer.poll(timeout_ms=200).values():
                self._records += records
        return self._records

    def close(self) -> None:
        self._consumer.close()


def original(letter: Any) -> bytes:
    """The payload that a dead letter holds, in its record or in the spilled file that the record names."""
    if ("monitor-spilled", b"true") not in letter.headers:
        return bytes(letter.value)
    facts = json.loads(letter.value)
    payload = Path(facts["path"]).read_bytes()
    assert (len(payload), hashlib.sha256(payload).hexdigest()) == (facts["size"], facts["sha256"])
    return payload


class Plant:
    """Topics of its own: one of images per source, `events` and `dead`, each of which may live on another broker."""

    def __init__(
        self,
        broker: Broker,
        *,
        partitions: int = 1,
        sources: Sequence[str] = ("cameras",),
        events: Broker | None = None,
        dead: Broker | None = None,
    ) -> None:
        self._broker = broker
        self.images = {source: make_topic(broker, source, partitions) for source in sources}
        self.group = fresh("group")
        self.sent: list[Sent] = []
        self._producer = KafkaProducer(bootstrap_servers=broker.plain, linger_ms=5)
        self.events = Topic(events or broker, "events")
        self.dead = Topic(dead or broker, "dead")
        self._parsed: list[dict[str, Any]] = []
        self._number = 0

    def close(self) -> None:
        self._producer.close()
        self.events.close()
        self.dead.close()

    def tables(self, **more: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """A monitor.toml for this plant: every source into detector `bottle`; `more` keys by table, `__` for the dot."""
        source = {"kind": "kafka", "bootstrap_servers": self._broker.plain, "group_id": self.group, "max_in_flight": 64}
        tables: dict[str, dict[str, Any]] = {
            "daemon": {"site": "test", "state": "state.db", "grace": 20.0},
            "store": {"path": "models", "poll": 0.2},
            **{f"sources.{name}": {**source, "topics": [topic], "group_instance_id": name} for name, topic in self.images.items()},
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
        pending: list[tuple[str, Kind, bytes, FutureRecordMetadata]] = []
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

    def _send(self, kind: Kind, source: str) -> tuple[str, Kind, bytes, FutureRecordMetadata]:
        self._number += 1
        payload = picture(kind, self._number)
        key = f"press/{self._number % 5}".encode()
        return source, kind, payload, self._producer.send(self.images[source], value=payload, key=key, headers=HEADERS)

    def _confirm(self, pending: Sequence[tuple[str, Kind, bytes, FutureRecordMetadata]]) -> list[Sent]:
        done = []
        for source, kind, payload, future in pending:
            where = future.get(timeout=120)
            done.append(Sent(f"{source}/{where.topic}/{where.partition}-{where.offset}", kind, payload))
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

    def dead_letters(self) -> dict[str, list[Any]]:
        """Sample id -> the records of the dead letter about that message."""
        letters: dict[str, list[Any]] = {}
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

    def wait(self, *detectors: str, seconds: float = 60) -> None:
        """Until nothing is outstanding."""

        def what() -> str:
            left = sorted(self.outstanding(*detectors))
            return f"{len(left)} of {len(self.sent)} messages outstanding: {left[:5]}"

        wait_until(lambda: not self.outstanding(*detectors), seconds=seconds, what=what, every=0.2)

    def unsettled(self, source: str = "cameras") -> int:
        """How many messages the group has not committed."""
        consumer = KafkaConsumer(bootstrap_servers=self._broker.plain, group_id=self.group, enable_auto_commit=False)
        topic = self.images[source]
        partitions = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic)]
        ends = consumer.end_offsets(partitions)
        behind = sum(ends[partition] - (consumer.committed(partition) or 0) for partition in partitions)
        consumer.close()
        return behind

    def audit(self, *detectors: str, doubles: bool = True, innocents: int = 0) -> None:
        """Close the books, after the last daemon has drained.

        Every planted anomaly was alerted at least once and nothing else was; every message was scored, or lies byte for byte
        and with its headers in the dead letter; every double has the same id; everything is settled. `innocents`: at most so
        many good messages may lie in the dead letter as failed, because the process was killed with them in work.
        """
        letters = self.dead_letters()
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
            assert doubles or not again, f"doubles: {again}"
        for event in [*self.read("alert"), *self.read("score")]:
            data, sample = event["data"], event["data"]["sample"]
            assert event["id"] == f"{data['detector']}:{sample['source']}/{sample['topic']}/{sample['position']}"
        sent = {one.id: one for one in self.sent}
        for sample_id, records in letters.items():
            for record in records:
                assert original(record) == sent[sample_id].payload, f"{sample_id} changed on its way to the dead letter"
                assert [header for header in record.headers if not header[0].startswith("monitor-")] == HEADERS
                reason = dict(record.headers)["monitor-reason"].decode()
                assert (reason == "failed") == (sent[sample_id].kind != "bad"), f"{sample_id}: {reason}"
        for source in self.images:
            assert self.unsettled(source) == 0
