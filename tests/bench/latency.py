"""From captured to received by a consumer, p50 and p99, at half of the load that the daemon can carry.

    python tests/bench/latency.py [--seconds 30]

The multi-scale autoencoder on bottle pictures. The load is first measured over a filled topic; then one stream is sent at half of
it, evenly, each message with its time in the header `captured`; every verdict is an event, whose arrival is timed.
"""

# ruff: noqa: T201 (a script that prints)

import argparse
import json
import time
from datetime import datetime

import numpy as np
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from harness import AUTOENCODER, THREADS, bench, bottles
from integration.daemon import Daemon
from kafka_plant import fresh, make_topic


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=30)
    arguments = parser.parse_args()
    payloads = bottles()
    with bench() as here:
        here.train(payloads[:40], **AUTOENCODER)
        full = here.daemon_rate(here.filled(payloads, 600), 600, AUTOENCODER)
        topic, group = make_topic(here.broker, "images"), fresh("group")
        events = KafkaConsumer(bootstrap_servers=here.broker.plain, fetch_max_wait_ms=5, enable_auto_commit=False)
        producer = KafkaProducer(bootstrap_servers=here.broker.plain, max_request_size=16 * 1024 * 1024)
        producer.partitions_for(f"{topic}.alerts")  # makes the topic
        events.assign([TopicPartition(f"{topic}.alerts", 0)])
        events.seek_to_beginning()
        took: list[float] = []
        with Daemon(here.configuration(topic, group, AUTOENCODER, events="score"), **THREADS) as daemon:
            daemon.start()
            daemon.ready()
            count, rate = int(full / 2 * arguments.seconds), full / 2
            begun, sent = time.time(), 0
            while len(took) < count:
                while sent < count and time.time() >= begun + sent / rate:
                    producer.send(topic, payloads[sent % len(payloads)], key=b"cam", headers=[("captured", b"%d" % (1000 * time.time()))])
                    sent += 1
                records = [record for batch in events.poll(timeout_ms=2).values() for record in batch]
                now = time.time()
                took += [now - datetime.fromisoformat(json.loads(record.value)["data"]["captured"]).timestamp() for record in records]
                assert daemon.process.poll() is None, daemon.tail()
            daemon.drain()
        events.close()
        producer.close()
    warm = np.array(took[len(took) // 5 :])  # the first fifth joins the group and warms up
    p50, p99 = np.percentile(warm, [50, 99])
    print(f"full load {full:.1f} messages/s; at half of it, over {len(warm)} messages:")
    print(f"captured to received: p50 {1000 * p50:.0f} ms, p99 {1000 * p99:.0f} ms, worst {1000 * warm.max():.0f} ms")


if __name__ == "__main__":
    main()
