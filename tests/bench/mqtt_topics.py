"""One topic against a thousand over MQTT: the same messages, and each topic a stream.

python tests/bench/mqtt_topics.py [--count 15000] [--runs 3]
"""

import argparse

from harness import ZEROS, thumbnails, told
from kafka_plant import fresh
from mqtt_harness import mqtt_bench


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=15_000)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    rates: dict[int, list[float]] = {1: [], 1000: []}
    with mqtt_bench() as here:
        here.train(thumbnails(40), **ZEROS)
        for _ in range(arguments.runs):
            for topics, measured in rates.items():
                prefix = fresh("images")
                client_id = here.keep(prefix)
                here.fill(prefix, thumbnails(), arguments.count, topics=topics)
                measured.append(here.daemon_rate(prefix, arguments.count, ZEROS, client_id=client_id))
    told("32 x 32 PNG, scored with zeros", {"1 topic": rates[1], "1,000 topics": rates[1000]})


if __name__ == "__main__":
    main()
