"""The flow over MQTT with a detector that returns zeros, against a bare paho loop over the same messages, acknowledged by hand.

python tests/bench/mqtt_throughput.py [--count 15000] [--large 500] [--runs 3]
"""

import argparse

from harness import ZEROS, bottles, thumbnails, told
from kafka_plant import fresh
from mqtt_harness import mqtt_bench


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=15_000, help="messages of 2.5 kB")
    parser.add_argument("--large", type=int, default=500, help="messages of 270 kB")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    with mqtt_bench() as here:
        here.train(thumbnails(40), **ZEROS)
        for title, payloads, count in (("32 x 32 PNG", thumbnails(), arguments.count), ("512 x 512 PNG of bottles", bottles(), arguments.large)):
            bare, flow = [], []
            for _ in range(arguments.runs):
                prefix = fresh("images")
                for_paho, for_daemon = here.keep(prefix), here.keep(prefix)
                here.fill(prefix, payloads, count)
                bare.append(here.bare_rate(for_paho, count))
                flow.append(here.daemon_rate(prefix, count, ZEROS, client_id=for_daemon))
            told(title, {"paho, nothing decoded": bare, "daemon, decoded, scored with zeros": flow})


if __name__ == "__main__":
    main()
