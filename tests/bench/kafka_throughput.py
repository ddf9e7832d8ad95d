"""Messages per second through Kafka to alerts, against a bare loop over the same files with the same network and batch.

    python tests/bench/kafka_throughput.py [--count 800] [--runs 3]

Both decode and score the bottle test split with the multi-scale autoencoder; the loop reads no broker, publishes nothing, and
runs in one process, one step after the other. Goal: a ratio of 0.9 or better.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from connectors.kafka.options import KafkaSourceOptions
from harness import AUTOENCODER, bench, bottles, told
from monitor.decoding import decode
from monitor.reference import load_detector
from monitor.store import ModelStore
from monitor.telemetry import Telemetry
from monitor.types import Message

BATCH = 16


def bare_rate(store: Path, payloads: Sequence[bytes], count: int) -> float:
    """Files per second, in this process."""
    version = ModelStore(store).current("it")
    assert version is not None
    detector = load_detector(version, device="auto", precision="auto", report=Telemetry().report)
    limits = KafkaSourceOptions(bootstrap_servers="127.0.0.1:1", topics=("t",), group_id="g")
    begun = 0.0
    for start in range(-2 * BATCH, count, BATCH):  # two batches to warm up
        if start == 0:
            begun = time.perf_counter()
        numbers = range(start, start + BATCH)
        messages = [Message(source="s", topic="t", position=str(n), payload=payloads[n % len(payloads)], received=0) for n in numbers]
        samples = [decode(message, limits) for message in messages]
        detector.score(detector.stack(samples, [detector.prepare(sample) for sample in samples]))
    return count / (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=800, help="messages, a multiple of 16")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    payloads = bottles()
    with bench() as here:
        here.train(payloads[:40], **AUTOENCODER)
        topic = here.filled(payloads, arguments.count)
        bare, through = [], []
        for _ in range(arguments.runs):
            bare.append(bare_rate(here.folder / "models", payloads, arguments.count))
            through.append(here.daemon_rate(topic, arguments.count, {**AUTOENCODER, "max_batch_size": BATCH}))
    told("multi-scale autoencoder, bottle", {"bare loop": bare, "Kafka to alerts": through})


if __name__ == "__main__":
    main()
