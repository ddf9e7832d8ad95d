"""One stream against a thousand: the same messages under other keys.

python tests/bench/streams.py [--count 15000] [--runs 3]
"""

import argparse

from harness import ZEROS, bench, thumbnails, told


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=15_000)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    with bench() as here:
        here.train(thumbnails(40), **ZEROS)
        topics = {streams: here.filled(thumbnails(), arguments.count, streams=streams) for streams in (1, 1000)}
        rates: dict[int, list[float]] = {streams: [] for streams in topics}
        for _ in range(arguments.runs):
            for streams, topic in topics.items():
                rates[streams].append(here.daemon_rate(topic, arguments.count, ZEROS))
    told("32 x 32 PNG, scored with zeros", {"1 stream": rates[1], "1,000 streams": rates[1000]})


if __name__ == "__main__":
    main()
