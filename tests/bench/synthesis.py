"""How fast training samples are drawn: samples per second on some threads, and the time of each part, beside the floor.

    python tests/bench/synthesis.py [--side 256] [--seconds 6] [--rounds 60] [--threads 1 2] [--anomaly-source FOLDER]

The floor is what cannot be left out: the image read and the sample, two planes of float32 and a mask, written once, at the rate of a copy.
OpenCV's own threads are off: the samples are drawn side by side.
"""

# ruff: noqa: T201 (a script that prints)

import argparse
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from detectors.augmenters import AUGMENTERS, augmented, turned
from detectors.synthesis import anomaly_mask, blended, perlin, synthetic
from detectors.textures import PATTERNS, TextureSource, from_folder, procedural
from timing import medians


def samples_per_second(image: NDArray[np.uint8], textures: TextureSource, threads: int, seconds: float) -> tuple[float, float]:
    """Each thread draws until the time is up. Also by second of processor time, which tells the same on a busy machine."""
    until = time.perf_counter() + seconds

    def draw(thread: int) -> tuple[int, float]:
        drawn, begun = 0, time.thread_time()
        while time.perf_counter() < until:
            synthetic(image, textures, np.random.default_rng([1, thread, drawn]))
            drawn += 1
        return drawn, time.thread_time() - begun

    with ThreadPoolExecutor(threads) as pool:
        counts, busy = zip(*pool.map(draw, range(threads)), strict=True)
    return sum(counts) / seconds, sum(counts) / sum(busy)


def repeated(run: Callable[[], object], times: int = 10) -> Callable[[], object]:
    """Draws differ in what they cost, so that one alone tells little."""
    return lambda: [run() for _ in range(times)]


def parts(image: NDArray[np.uint8], sources: dict[str, TextureSource], rounds: int) -> None:
    side = len(image)
    random = np.random.default_rng(1)
    texture = sources["procedural"](random)
    clean = image / np.float32(255)
    mask = anomaly_mask(side, side, random)
    while not mask.any():
        mask = anomaly_mask(side, side, random)
    runs: dict[str, Callable[[], object]] = {
        "image turned": lambda: turned(image, random.uniform(-90, 90)),
        "to float32": lambda: image / np.float32(255),
        "Perlin noise, 32 x 32 cells": lambda: perlin(side, side, (32, 32), random),
        "mask": lambda: anomaly_mask(side, side, random),
        "blend": lambda: blended(clean, texture, mask, 0.5),
        "three augmenters": lambda: augmented(texture, random),
        **{f"  {name}": lambda change=change: change(texture, random) for name, change in AUGMENTERS.items()},
        **{f"texture, {name}": lambda source=source: source(random) for name, source in sources.items()},
        **{f"  {one.__name__[1:]}": lambda one=one: one(side, side, random) for one in dict.fromkeys(PATTERNS)},
        "sample, procedural": lambda: synthetic(image, sources["procedural"], random),
    }
    block = np.random.default_rng(0).random(8 * 1024 * 1024)  # beyond caches
    median = medians({**{name: repeated(run) for name, run in runs.items()}, "copy": block.copy}, torch.device("cpu"), rounds)
    for name in runs:
        print(f"  {name:28} {1000 * median[name] / 10:7.3f} ms")
    moved = image.nbytes + 2 * clean.nbytes + mask.nbytes
    floor = moved / (2 * block.nbytes / median["copy"])
    taken = median["sample, procedural"] / 10
    print(f"  floor {1000 * floor:.3f} ms per sample ({moved / 1e6:.2f} MB moved); a sample takes {taken / floor:.0f} times that", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--anomaly-source", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    side = arguments.side
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    sources = {"procedural": procedural(side, side)}
    if arguments.anomaly_source is not None:
        sources["folder"] = from_folder(arguments.anomaly_source, side, 0)
    with threadpool_limits(1):
        for name, source in sources.items():
            for threads in arguments.threads:
                rate, busy = samples_per_second(image, source, threads, arguments.seconds)
                print(f"{side} px, textures {name}, {threads} threads: {rate:.0f} samples per second, {busy:.0f} per second of a core", flush=True)
        print(f"medians of {arguments.rounds} rounds in turns, one thread")
        parts(image, sources, arguments.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
