"""Peak resident memory of the daemon while a producer is ten times too fast. It must stay flat.

    python tests/bench/memory.py [--seconds 60]

The detector takes two seconds per batch of 16 bottle pictures; 80 a second are sent (22 MB/s). What flows in is held by the broker,
on disk.
"""

# ruff: noqa: T201 (a script that prints)

import argparse
import itertools
import threading
import time
from pathlib import Path

from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from harness import THREADS, ZEROS, bench, bottles
from integration.daemon import Daemon
from kafka_plant import fresh, make_topic

CAPACITY = 8.0


def resident(pid: int, what: str) -> float:
    """VmRSS (now) or VmHWM (the highest so far), in MB."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in status if line.startswith(what))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=60)
    arguments = parser.parse_args()
    payloads = bottles()
    ending = threading.Event()
    sent = 0
    with bench() as here:
        slow = {**ZEROS, "options": {"delay": 16 / CAPACITY}}
        here.train(payloads[:40], **slow)
        topic, group = make_topic(here.broker, "images"), fresh("group")
        producer = KafkaProducer(bootstrap_servers=here.broker.plain, max_request_size=16 * 1024 * 1024)

        def produce() -> None:
            nonlocal sent
            begun = time.monotonic()
            for payload in itertools.cycle(payloads):
                producer.send(topic, payload)
                sent += 1
                if ending.wait(max(0.0, begun + sent / (10 * CAPACITY) - time.monotonic())):
                    return

        thread = threading.Thread(target=produce)
        consumer = KafkaConsumer(bootstrap_servers=here.broker.plain, group_id=group, enable_auto_commit=False)
        highest = []
        with Daemon(here.configuration(topic, group, slow), **THREADS) as daemon:
            daemon.start()
            daemon.ready()
            pid = daemon.process.pid
            thread.start()
            print("  seconds      sent   settled    RSS MB   peak MB")
            for second in range(0, arguments.seconds + 1, 5):
                highest.append(resident(pid, "VmHWM"))
                settled = consumer.committed(TopicPartition(topic, 0)) or 0
                print(f"  {second:7} {sent:9} {settled:9} {resident(pid, 'VmRSS'):9.0f} {highest[-1]:9.0f}", flush=True)
                time.sleep(5 if second < arguments.seconds else 0)
            ending.set()
            thread.join()
        consumer.close()
        producer.close()
    half = highest[len(highest) // 2]
    print(f"peak at the end {highest[-1]:.0f} MB, at half time {half:.0f} MB: ratio {highest[-1] / half:.3f}")


if __name__ == "__main__":
    main()
