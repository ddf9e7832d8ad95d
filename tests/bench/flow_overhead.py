"""The flow with a detector that returns zeros, against the bare kafka-python consumer of the same topic.

python tests/bench/flow_overhead.py [--runs 3]
"""

import argparse

from harness import ZEROS, bench, bottles, thumbnails, told


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    with bench() as here:
        here.train(thumbnails(40), **ZEROS)
        for title, payloads, count in (("32 x 32 PNG", thumbnails(), 15_000), ("512 x 512 PNG of bottles", bottles(), 1000)):
            topic = here.filled(payloads, count)
            consumer, flow = [], []
            for _ in range(arguments.runs):
                consumer.append(here.consumer_rate(topic, count))
                flow.append(here.daemon_rate(topic, count, ZEROS))
            told(title, {"kafka-python, nothing decoded": consumer, "daemon, decoded, scored with zeros": flow})


if __name__ == "__main__":
    main()
