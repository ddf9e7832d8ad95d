"""The log-mel spectrogram of detectors/spectrogram.py against librosa's, in one run: medians in turns, and the floor.

    python tests/bench/spectrogram.py [--device cpu] [--seconds 10] [--rounds 15] [--threads 1 2]

The floor is the arithmetic that cannot be left out, the transforms of real frames (2.5 n log2 n operations each, in float64) and the filters'
own values, at the rate of a large matrix product in the same precision; or the waveform read and the spectrogram written once at the
rate of a copy, where that takes longer. No transform runs at the rate of a product: beside it stands the time of the transforms alone.
"""

# ruff: noqa: T201 (a script that prints)

import argparse
import math
import sys
from collections.abc import Callable

import librosa
import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from detectors.devices import choose_device
from detectors.spectrogram import LogMel
from timing import large_products, medians

RATE = 16_000


def clips(count: int, seconds: float) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    at = torch.arange(round(seconds * RATE)) / RATE
    return 0.1 * torch.sin(2 * math.pi * 440 * at) + 0.01 * torch.randn(count, len(at), generator=generator)


def by_librosa(waveforms: np.ndarray) -> list[np.ndarray]:
    return [librosa.power_to_db(librosa.feature.melspectrogram(y=clip, sr=RATE, n_fft=2048, hop_length=512, n_mels=128)) for clip in waveforms]


def transforms(front_end: LogMel, waveforms: Tensor) -> None:
    """Those of all frames and nothing else, in blocks as the front end makes them."""
    for clip in torch.nn.functional.pad(waveforms, (front_end.n_fft // 2,) * 2).unfold(-1, front_end.n_fft, front_end.hop):
        for rows in clip.double().split(128):
            torch.fft.rfft(rows)


@torch.inference_mode()
def measure(device: torch.device, threads: int, batch: int, seconds: float, rounds: int) -> None:
    front_end = LogMel(RATE).to(device)
    waveforms = clips(batch, seconds)
    there, array = waveforms.to(device), waveforms.numpy()
    inference = torch.inference_mode()
    runs: dict[str, Callable[[], object]] = {
        "ours": inference(lambda: front_end(there)),
        "librosa": lambda: by_librosa(array),
        "transforms alone": inference(lambda: transforms(front_end, there)),
    }
    block = torch.rand(64 * 1024 * 1024 // 4, device=device)  # beyond caches
    work: dict[torch.dtype, int] = {}
    products: dict[torch.dtype, dict[str, tuple[Callable[[], object], int]]] = {}
    frames = batch * front_end.frames(waveforms.shape[1])
    work[torch.float64] = round(frames * 2.5 * front_end.n_fft * math.log2(front_end.n_fft))
    work[torch.float32] = frames * 2 * int((front_end.filters > 0).sum())
    for dtype in work:
        products[dtype] = {name: run for name, run in large_products(device, dtype).items() if name.startswith("matrix")}
    large = {name: run for some in products.values() for name, (run, _) in some.items()}
    median = medians({**runs, **large, "copy": block.clone}, device, rounds)
    rates = {dtype: max(2 * macs / median[name] for name, (_, macs) in some.items()) for dtype, some in products.items()}
    arithmetic = sum(operations / rates[dtype] for dtype, operations in work.items())
    moved = 4 * (waveforms.numel() + frames * front_end.mels)
    memory = moved / (2 * 4 * block.numel() / median["copy"])
    floor = max(arithmetic, memory)
    deviation = float(np.abs(front_end(there).cpu().numpy() - np.stack(by_librosa(array))).max())
    print(f"{device}, {threads} threads, batch {batch} of {seconds:g} s, {rounds} rounds in turns")
    for name in runs:
        print(f"  {name:17} {1000 * median[name] / batch:8.3f} ms per clip   {batch * seconds / median[name]:9.0f} seconds of sound per second")
    print(f"  ours / librosa: {median['librosa'] / median['ours']:.2f} times as fast; largest difference {deviation:.1e} dB")
    told = f"{sum(work.values()) / batch / 1e6:.1f} Mflop and {moved / batch / 1e6:.2f} MB per clip"
    print(f"  floor {1000 * floor / batch:.3f} ms per clip ({told}); ours takes {median['ours'] / floor:.1f} times that", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    for threads in arguments.threads:
        for batch in (1, 8):
            torch.set_num_threads(threads)
            with threadpool_limits(threads):  # NumPy's products, which librosa makes, have threads of their own
                measure(choose_device(arguments.device), threads, batch, arguments.seconds, arguments.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
