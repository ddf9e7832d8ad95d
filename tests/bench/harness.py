"""What the benchmarks share: a broker of their own, topics filled beforehand, the daemon over them, medians and tables.

Every figure is a ratio within one run: what is compared takes turns on the same machine, and medians are told. The machine must
do nothing else: a network on all cores waits at every layer for the core that others hold, which the daemon hides better.
"""

# ruff: noqa: T201 (scripts that print)

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))
os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS / "bench"), os.environ.get("PYTHONPATH", "")])  # of the daemons: kind "zeros"

from kafka import KafkaConsumer, KafkaProducer, TopicPartition  # noqa: E402

from brokers import ROOT, Broker, find  # noqa: E402
from integration.daemon import Daemon, monitor, write_configuration  # noqa: E402
from integration.plant import picture  # noqa: E402
from kafka_plant import fresh, make_topic  # noqa: E402

THREADS = {"OMP_NUM_THREADS": str(os.cpu_count())}  # the daemon has the machine, as a bare loop has

AUTOENCODER = {"kind": "autoencoder", "options": {"variant": "multiscale", "epochs": 2}}
"""Trained on a few pictures for seconds: the speed of a network does not depend on what it has learnt."""
ZEROS = {"kind": "zeros", "options": {"delay": 0.0}}


def bottles() -> list[bytes]:
    """The files of the bottle test split (512 x 512 PNG, about 270 kB)."""
    data = Path(os.environ.get("MONITOR_DATA", ROOT.parent / "shared" / "data"))
    return [file.read_bytes() for file in sorted((data / "mvtec" / "bottle" / "test").rglob("*.png"))]


def thumbnails(count: int = 100) -> list[bytes]:
    """Normal pictures of 32 x 32 (PNG, about 2.5 kB)."""
    return [picture("normal", number) for number in range(count)]


class Bench:
    """A folder and a broker; detectors are trained once per kind."""

    def __init__(self, folder: Path, broker: Broker) -> None:
        self.folder = folder
        self.broker = broker

    def filled(self, payloads: Sequence[bytes], count: int, *, streams: int = 1) -> str:
        """A topic of `count` messages: the payloads in turn, the streams in turn."""
        topic = make_topic(self.broker, "images")
        producer = KafkaProducer(bootstrap_servers=self.broker.plain, linger_ms=20, max_request_size=16 * 1024 * 1024)
        for number in range(count):
            producer.send(topic, payloads[number % len(payloads)], key=b"stream/%d" % (number % streams))
        producer.flush()
        producer.close()
        return topic

    def train(self, pictures: Sequence[bytes], **detector: Any) -> None:
        """Publish a model `it` of this kind, whatever it has learnt."""
        normals = self.folder / "normals"
        normals.mkdir(exist_ok=True)
        for number, payload in enumerate(pictures):
            (normals / f"{number:03}.png").write_bytes(payload)
        configuration = self.configuration("unused", "unused", detector)
        monitor("train", "it", "--data", str(normals), "--layout", "folder", "--config", str(configuration), timeout=900, **THREADS)

    def configuration(
        self, topic: str, group: str, detector: Mapping[str, Any], *, events: str = "alert", source: Mapping[str, Any] | None = None
    ) -> Path:
        address = {"kind": "kafka", "bootstrap_servers": self.broker.plain}
        return write_configuration(
            self.folder / "monitor.toml",
            {
                "store": {"path": "models"},
                "sources.cameras": {**address, "topics": [topic], "group_id": group, "commit_interval": 0.25, **(source or {})},
                "detectors.it": {"inputs": ["cameras"], "max_batch_size": 16, **detector},
                "sinks.alerts": {**address, "topic": f"{topic}.alerts", "events": [events]},
            },
        )

    def daemon_rate(self, topic: str, count: int, detector: Mapping[str, Any], **source: Any) -> float:
        """Messages settled per second over a filled topic by a warm daemon, from the first commit seen to the last."""
        group = fresh("group")
        with Daemon(self.configuration(topic, group, detector, source=source), **THREADS) as daemon:
            daemon.start()
            daemon.ready()
            rate = self._settled_rate(group, topic, count, daemon)
            daemon.drain()
        return rate

    def consumer_rate(self, topic: str, count: int) -> float:
        """Messages per second through a bare kafka-python consumer with the daemon's settings, after its first message."""
        consumer = KafkaConsumer(bootstrap_servers=self.broker.plain, enable_auto_commit=False, fetch_max_wait_ms=20, max_poll_records=256)
        partition = TopicPartition(topic, 0)
        consumer.assign([partition])
        consumer.seek_to_beginning(partition)
        got, first = 0, 0.0
        while got < count:
            batch = sum(len(records) for records in consumer.poll(timeout_ms=1000).values())
            if batch and not first:
                first, count = time.perf_counter(), count - batch
                continue
            got += batch
        rate = count / (time.perf_counter() - first)
        consumer.close()
        return rate

    def _settled_rate(self, group: str, topic: str, count: int, daemon: Daemon) -> float:
        consumer = KafkaConsumer(bootstrap_servers=self.broker.plain, group_id=group, enable_auto_commit=False)
        partition = TopicPartition(topic, 0)
        seen: list[tuple[float, int]] = []
        while not seen or seen[-1][1] < count:
            assert daemon.process.poll() is None, daemon.tail()
            settled = consumer.committed(partition) or 0
            if settled and (not seen or settled > seen[-1][1]):
                seen.append((time.perf_counter(), settled))
            time.sleep(0.25)  # a look costs client and broker some milliseconds of the cores that are measured
        consumer.close()
        (begin, before), (end, after) = seen[0], seen[-1]
        assert after - before > count / 2, "too short to measure: take more messages"
        return (after - before) / (end - begin)


@contextmanager
def bench() -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="monitor-bench-") as folder:
        (Path(folder) / "broker").mkdir()
        broker = find(Path(folder) / "broker")
        broker.start()
        print(f"on {broker.name}, {os.cpu_count()} cores", flush=True)
        try:
            yield Bench(Path(folder), broker)
        finally:
            broker.stop()


def told(title: str, figures: Mapping[str, Sequence[float]], unit: str = "messages/s") -> None:
    """Median and range of each, and the ratio of each to the first."""
    medians = {name: statistics.median(values) for name, values in figures.items()}
    base = next(iter(medians.values()))
    print(title)
    for name, values in figures.items():
        spread = f"{min(values):,.0f} to {max(values):,.0f}"
        print(f"  {name:42} {medians[name]:10,.1f} {unit}   ({len(values)} runs: {spread})   ratio {medians[name] / base:.2f}", flush=True)
