"""Fast inference against plain fp32 of the same trained network, in one run: ratio of medians, and the largest score deviation.

    python tests/bench/fast_inference.py [--device cpu] [--batch 8] [--rounds 7] [--side 256]

The floor is what the network's multiplications would take at the highest rate that one large convolution or matrix product
reaches on this machine in that precision. The two are timed in turns, so that a busy machine slows both.
"""

# ruff: noqa: T201 (a script that prints)

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from detectors.autoencoder.detector import Autoencoder
from detectors.autoencoder.options import AutoencoderOptions, Variant
from detectors.devices import PRECISIONS, choose_device
from monitor.types import Sample
from timing import large_products, medians

GMAC_AT_256 = {"baseline": 7.41, "multiscale": 9.22}


def samples(count: int, side: int) -> list[Sample]:
    random = np.random.default_rng(1)
    rows, columns = np.mgrid[:side, :side]
    found = []
    for index in range(count):
        waves = 120 + 60 * np.sin(rows / 17 + random.uniform(0, 6)) + 50 * np.cos(columns / 11)
        image = np.clip(waves[..., None] * [1.0, 0.8, 0.6] + random.normal(0, 5, (side, side, 3)), 0, 255).astype(np.uint8)
        found.append(Sample(source="bench", topic="t", position=str(index), stream="s", captured=0, received=0, image=image))
    return found


def measure(variant: Variant, device: torch.device, batch: int, rounds: int, side: int) -> None:
    detectors = []
    with tempfile.TemporaryDirectory() as folder:
        trained = Autoencoder(AutoencoderOptions(variant=variant, resolution=side, epochs=4, batch_size=4))
        data = samples(12, side)
        trained.fit(data[:8], data[8:], Path(folder) / "work", seed=1, device=str(device), progress=lambda *_: None)
        trained.save(Path(folder) / "model")
        for precision in ("fp32", "auto"):
            detector = Autoencoder(AutoencoderOptions(variant=variant))
            detector.load(Path(folder) / "model", device=str(device), precision=precision)
            detectors.append(detector)
        plain, fast = detectors
        # Plain: the network as trained, neither fused nor channels last, on one stream, fp32.
        network = trained._network  # the only way to it, by design
        assert network is not None
        network.to(device=device, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        network.eval()
    images = samples(batch, side)
    inputs = torch.from_numpy(np.stack([image.image for image in images if image.image is not None]))
    stacked = [detector.stack(images, [detector.prepare(image) for image in images]) for detector in detectors]

    @torch.inference_mode()
    def run_plain() -> None:
        network(inputs.to(device).permute(0, 3, 1, 2).contiguous().float() / 255)

    @torch.inference_mode()
    def run_fast() -> None:
        fast._network(inputs.to(device).permute(0, 3, 1, 2).float() / 255)  # type: ignore[misc]

    runs = {
        "plain network": run_plain,
        "fast network": run_fast,
        "fp32 detector": lambda: plain.score(stacked[0]),
        "fast detector": lambda: fast.score(stacked[1]),
    }
    products = {name: large_products(device, PRECISIONS[name]) for name in ("fp32", fast.precision)}
    large = {name: run for some in products.values() for name, (run, _) in some.items()}
    median = medians({**runs, **large}, device, rounds)
    exact, rounded = (detector.score(batch_, every=True).named for detector, batch_ in zip(detectors, stacked, strict=True))
    deviation = {name: float(np.abs(rounded[name] / exact[name] - 1).max()) for name in exact}
    work = GMAC_AT_256[variant] * 1e9 * (side / 256) ** 2 * batch
    print(f"{variant} at {side}, batch {batch}, {device}, {fast.precision}")
    for name in runs:
        value = median[name]
        print(f"  {name:14} {1000 * value / batch:8.2f} ms per image   {batch / value:8.1f} images/s")
    print(f"  network, fast / plain fp32: {median['plain network'] / median['fast network']:.2f} times")
    print(f"  detector with scores and maps, fast / fp32 fused: {median['fp32 detector'] / median['fast detector']:.2f} times")
    for name, precision in (("plain network", "fp32"), ("fast network", fast.precision)):
        floor = work / max(macs / median[run] for run, (_, macs) in products[precision].items())
        print(f"  {name}: {median[name] / floor:.2f} times its floor of {1000 * floor / batch:.2f} ms per image in {precision}")
    print("  largest relative deviation of a score:", ", ".join(f"{name} {value:.2e}" for name, value in deviation.items()), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--side", type=int, default=256)
    arguments = parser.parse_args()
    variants: tuple[Variant, ...] = ("baseline", "multiscale")
    for variant in variants:
        measure(variant, choose_device(arguments.device), arguments.batch, arguments.rounds, arguments.side)
    return 0


if __name__ == "__main__":
    sys.exit(main())
