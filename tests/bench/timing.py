"""What the benchmarks of networks share: medians of runs that take turns, and what a processor is fastest at."""

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import torch

Name = TypeVar("Name", bound=Hashable)


def now(device: torch.device) -> float:
    """Seconds on a clock, when all that `device` was asked for is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def medians(runs: Mapping[Name, Callable[[], object]], device: torch.device, rounds: int) -> dict[Name, float]:
    """Seconds of each; they take turns, so that a busy machine slows all."""
    times: dict[Name, list[float]] = {name: [] for name in runs}
    for round_ in range(rounds + 1):
        for name, run in runs.items():
            begun = now(device)
            run()
            spent = now(device) - begun
            if round_:  # the first warms up
                times[name].append(spent)
    return {name: statistics.median(values) for name, values in times.items()}


def large_products(device: torch.device, dtype: torch.dtype) -> dict[str, tuple[Callable[[], object], int]]:
    """What a processor is fastest at, each with its multiply-accumulates: timed beside a network, it tells the rate that this could reach."""
    conv = torch.nn.Conv2d(128, 128, 3, padding=1, device=device, dtype=dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.rand(8, 128, 64, 64).to(device=device, dtype=dtype, memory_format=torch.channels_last)
    matrix = torch.rand(2048, 2048).to(device=device, dtype=dtype)
    return {
        f"convolution in {dtype}": (torch.inference_mode()(lambda: conv(images)), 8 * 128 * 128 * 9 * 64 * 64),
        f"matrix product in {dtype}": (lambda: matrix @ matrix, 2048**3),
    }
