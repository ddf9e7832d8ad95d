"""Scoring by RDNA: plain fp32 modules, made fast in fp32, and in the fast precision; speed beside its floor, and what the precision costs.

    python tests/bench/fast_rdna.py [--sizes 16x128,16x256,128x256] [--batches 1,8] [--precision bf16] [--device cpu] [--rounds 5] [--threads 1] \
        [--model var/models/bottle/ID --data ../shared/data/mvtec/bottle/test]

A size is width x resolution. Its weights are random: speed does not depend on them. The three take turns in one run, with a large convolution and a
large matrix product; the floor is what the multiply-accumulates, counted layer by layer, take at the highest rate of these in the precision of each
layer (of bf16 only the reconstruction has some, but for its last stage). Deviations are those of a trained model on all
images in a folder and below it.
"""

# ruff: noqa: T201 (a script that prints)

import argparse
import copy
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from detectors.devices import PRECISIONS, choose_device, choose_precision
from detectors.images import as_unit
from detectors.inference import Upload, made_fast
from detectors.rdna.detector import Rdna
from detectors.rdna.model import EXACT, RdnaModel, Settings, named_scores
from detectors.rdna.networks import initialised
from detectors.rdna.options import SCORES, RdnaOptions
from detectors.textures import images_below
from monitor.types import FloatArray, Sample
from timing import large_products, medians

BATCH = 8
"""Of the images on which precisions are compared."""


def work(model: RdnaModel, images: Tensor) -> dict[torch.dtype, int]:
    """Multiply-accumulates of a batch in each precision: all of them are in convolutions."""
    counted: dict[torch.dtype, int] = {}

    def count(layer: nn.Conv2d, _: object, output: Tensor) -> None:
        dtype = layer.weight.dtype
        counted[dtype] = counted.get(dtype, 0) + output.numel() * layer.weight[0].numel()

    hooks = [layer.register_forward_hook(count) for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    model.maps(images)
    for hook in hooks:
        hook.remove()
    return counted


def compare_speed(width: int, resolution: int, batch: int, *, device: torch.device, precision: str, rounds: int) -> None:
    """One table: of uint8 images on the CPU, to maps and the score on the device."""
    plain = RdnaModel(Settings(width=width, resolution=resolution, score="average_max", score_window=21, smoothing=0.0)).eval()
    initialised(plain)
    models = {"plain fp32": plain.to(device)}
    for name in dict.fromkeys(("fp32", precision)):
        models[f"fast {name}"] = copy.deepcopy(plain)
        made_fast(models[f"fast {name}"], device=device, precision=name, exact=EXACT)
    upload = Upload(device)
    images = np.random.default_rng(1).integers(0, 256, (batch, resolution, resolution, 3), np.uint8)

    def score(model: RdnaModel) -> None:
        pixels = as_unit(upload.send(images).here())
        named_scores(model.maps(pixels.contiguous() if model is plain else pixels), 21, ("average_max",))["average_max"].cpu()

    products = {PRECISIONS[name]: large_products(device, PRECISIONS[name]) for name in dict.fromkeys(("fp32", precision))}
    large = {name: run for some in products.values() for name, (run, _) in some.items()}
    median = medians({name: lambda model=model: score(model) for name, model in models.items()} | large, device, rounds)  # type: ignore[misc]
    rates = {dtype: max(macs / median[name] for name, (_, macs) in some.items()) for dtype, some in products.items()}
    print(f"| width {width}, {resolution} px, batch {batch} | images/s | times plain | ms per image | GMAC | floor, ms | of its floor's speed |")
    print("|---|---|---|---|---|---|---|")
    for name, model in models.items():
        macs = work(model, as_unit(upload.send(images).here()))
        floor = sum(count / rates[dtype] for dtype, count in macs.items())
        figures = [f"{batch / median[name]:.2f}", f"{median['plain fp32'] / median[name]:.2f}", f"{1000 * median[name] / batch:.2f}"]
        figures += [f"{sum(macs.values()) / batch / 1e9:.2f}", f"{1000 * floor / batch:.2f}", f"{floor / median[name]:.0%}"]
        print(f"| {name} | {' | '.join(figures)} |")
    told = ", ".join(f"{rate / 1e9:.0f} GMAC/s in {str(dtype).removeprefix('torch.')}" for dtype, rate in rates.items())
    print(f"highest rate: {told}; {torch.get_num_threads()} threads, {device}\n", flush=True)


def scored(folder: Path, paths: list[Path], device: str, precision: str) -> tuple[dict[str, FloatArray], list[FloatArray], str]:
    """Score name -> (N,), the map of each image in its size, and which score serves."""
    detector = Rdna(RdnaOptions())
    detector.load(folder, device=device, precision=precision)
    named: list[dict[str, FloatArray]] = []
    maps: list[FloatArray] = []
    serves = ""
    for first in range(0, len(paths), BATCH):
        samples = [read(path) for path in paths[first : first + BATCH]]
        scores = detector.score(detector.stack(samples, [detector.prepare(sample) for sample in samples]), every=True)
        assert scores.maps is not None
        named.append(dict(scores.named))
        maps += list(scores.maps)
        serves = next(name for name, values in scores.named.items() if values is scores.values)
    return {name: np.concatenate([batch[name] for batch in named]) for name in SCORES}, maps, serves


def read(path: Path) -> Sample:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise SystemExit(f"{path}: not an image that can be decoded")
    return Sample(source="bench", topic="t", position=str(path), stream="s", captured=0.0, received=0.0, image=np.asarray(image, np.uint8))


def compare_precisions(folder: Path, data: Path, device: str, precision: str) -> None:
    """One table: how far every score and the maps are off in the fast precision, also as a share of how much the images differ in them."""
    paths = images_below(data, sys.maxsize, 0)
    (exact, exact_maps, serves), (fast, fast_maps, _) = (scored(folder, paths, device, name) for name in ("fp32", precision))
    print(f"{len(paths)} images, {precision} against fp32; spread: standard deviation among images, or among pixels\n")
    print("| score | largest deviation | relative | mean deviation | spread | largest / spread |")
    print("|---|---|---|---|---|---|")
    for name, values in exact.items():
        off = np.abs(fast[name] - values)
        largest, spread = off.max(), values.std()
        figures = [f"{largest:.3g}", f"{(off / np.abs(values)).max():.2e}", f"{off.mean():.3g}", f"{spread:.3g}", f"{largest / spread:.2%}"]
        print(f"| {name}{' (serves)' if name == serves else ''} | {' | '.join(figures)} |")
    pixels = np.concatenate([map_.ravel() for map_ in exact_maps])
    off = np.abs(np.concatenate([map_.ravel() for map_ in fast_maps]) - pixels)
    spread = pixels.std()
    print(f"| maps | {off.max():.3g} | | {off.mean():.3g} | {spread:.3g} | {off.max() / spread:.2%} |\n", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", default="16x128,16x256,128x256", help="default: %(default)s")
    parser.add_argument("--batches", default="1,8", help="default: %(default)s")
    parser.add_argument("--model", type=Path, help="folder of a trained version in a model store")
    parser.add_argument("--data", type=Path, help="folder of images")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    if (arguments.model is None) != (arguments.data is None):
        parser.error("--model and --data: expected both or none")
    torch.set_num_threads(arguments.threads)
    device = choose_device(arguments.device)
    precision = choose_precision(arguments.precision, device)
    for size in filter(None, arguments.sizes.split(",")):
        width, resolution = map(int, size.split("x"))
        for batch in map(int, arguments.batches.split(",")):
            compare_speed(width, resolution, batch, device=device, precision=precision, rounds=arguments.rounds)
    if arguments.model is not None:
        compare_precisions(arguments.model, arguments.data, str(device), precision)
    return 0


if __name__ == "__main__":
    sys.exit(main())
