"""AEGAN-AD while it streams: seconds of sound scored per second, beside the floor; and what the stride and bf16 do to the 19 scores.

    python tests/bench/aegan_streaming.py [--widths 32 16] [--strides 1 8 32 64] [--precisions fp32 bf16] [--batches 1 8] [--score G_x_2_max]
        [--rounds 5] [--threads 1] [--json FILE]
    python tests/bench/aegan_streaming.py --model var/models/fan/ID --data ../shared/data/dcase2020 --machine fan [--layout dcase2020]

Without a model: random weights, clips of 10 s at 16 kHz, all that the daemon does from a decoded clip to its score and map; the runs take
turns. The floor is what the multiplications, counted layer by layer, would take at the highest rate that one large convolution or matrix
product reaches on this machine in the precision of that layer; beside it, what it would take to move every weight once per block of
windows, and every convolution's output twice, at the speed of a large copy.

With a trained model: each score of every test clip at each stride (the training clips are embedded anew at it), its rank correlation with
stride 1 and its AUC; and how far bf16 moves it, as a share of the tolerance that reference samples are given, by the normal test clips.
"""

# ruff: noqa: T201 (a script that prints)

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from detectors.aegan_ad.detector import AeganAd
from detectors.aegan_ad.model import MOST_WINDOWS, AeganAdModel, Settings, read_model, save_model, starts
from detectors.aegan_ad.options import SCORES, AeganAdOptions, Score
from detectors.devices import PRECISIONS
from detectors.spectrogram import LogMel, mono
from monitor.calibration import Calibration
from monitor.evaluation.layouts import labelled_files, training_files
from monitor.reference import scored, tolerance
from monitor.types import FloatArray, Sample
from timing import large_products, medians

CPU = torch.device("cpu")
RATE, SECONDS = 16_000, 10
PROBABILITY = 0.01
CLIPS = 100  # of a training that never was
BATCH = 4


def loaded(folder: Path, precision: str) -> AeganAd:
    detector = AeganAd(AeganAdOptions())
    detector.load(folder, device="cpu", precision=precision)
    return detector


def untrained(folder: Path, width: int, stride: int, score: Score) -> None:
    """A model with random weights."""
    settings = Settings(
        width=width,
        norm="layer",
        first_norm=True,
        rate=RATE,
        samples=RATE * SECONDS,
        low=-60.0,
        high=20.0,
        scoring_stride=stride,
        hop_seconds=SECONDS,
        score=score,
        map="reconstruction",
        smoothing=1.5,
    )
    model = AeganAdModel(settings, CLIPS)
    model.embeddings.normal_()
    model.left.normal_()
    save_model(folder, model)


def clips(count: int) -> list[Sample]:
    random = np.random.default_rng(0)
    waveforms = random.normal(0, 0.1, (count, 1, RATE * SECONDS)).astype(np.float32)
    return [
        Sample(source="b", topic="b", position=f"{index}", stream="b", captured=0, received=0, waveform=one, rate=RATE)
        for index, one in enumerate(waveforms)
    ]


def end_to_end(detector: AeganAd, samples: Sequence[Sample]) -> None:
    detector.score(detector.stack(samples, [detector.prepare(one) for one in samples]))


@dataclass
class Work:
    """Of one window: multiply-accumulates by precision; bytes of what convolutions put out; and bytes of all weights."""

    macs: dict[torch.dtype, int] = field(default_factory=dict)
    written: int = 0
    weights: int = 0

    def add(self, other: "Work") -> None:
        for dtype, macs in other.macs.items():
            self.macs[dtype] = self.macs.get(dtype, 0) + macs
        self.written += other.written
        self.weights += other.weights

    @property
    def total(self) -> int:
        return sum(self.macs.values())


def counted(network: nn.Module, run: Callable[[], object]) -> Work:
    """What `run` makes `network` do for one window."""
    work = Work()

    def count(layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        each = inputs[0].numel() if isinstance(layer, nn.ConvTranspose2d) else output.numel()
        dtype = layer.weight.dtype
        work.macs[dtype] = work.macs.get(dtype, 0) + each * layer.weight[0].numel()
        work.written += output.numel() * output.element_size()
        work.weights += layer.weight.numel() * layer.weight.element_size()

    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.inference_mode():
        run()
    for hook in hooks:
        hook.remove()
    return work


def works(model: AeganAdModel) -> dict[str, Work]:
    """E, Dec and D, as they are loaded."""
    generator, critic = model.generator, model.critic
    window, z = torch.zeros(1, 1, 128, 128), torch.zeros(1, generator.to_latent.out_features)
    found = {
        "E": counted(generator, lambda: generator.encode(window)),
        "Dec": counted(generator, lambda: generator.decode(z)),
        "D": counted(critic, lambda: critic.embed(window)),
    }
    found["D"].add(Work({torch.float32: critic.embedding.numel()}))  # the depthwise convolution
    return found


def needed(model: AeganAdModel) -> Work:
    """Of one window for the model's score and its map."""
    parts = works(model)
    score, found = model.settings.score, Work()
    for name in ("E", "Dec", *(("E",) if score.startswith("G_z") else ()), *(("D",) if score.startswith("D") else ())):
        found.add(parts[name])
    return found


def speeds(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """One row of each combination."""
    detectors: dict[tuple[int, str, int], AeganAd] = {}
    for width in arguments.widths:
        for stride in arguments.strides:
            untrained(folder / f"{width}-{stride}", width, stride, arguments.score)
            for precision in arguments.precisions:
                detectors[width, precision, stride] = loaded(folder / f"{width}-{stride}", precision)
    samples = clips(max(arguments.batches))
    runs: dict[object, Callable[[], object]] = {
        (*key, batch): partial(end_to_end, detector, samples[:batch]) for key, detector in detectors.items() for batch in arguments.batches
    }
    products = {PRECISIONS[name]: large_products(CPU, PRECISIONS[name]) for name in {"fp32", *arguments.precisions}}
    runs |= {name: run for some in products.values() for name, (run, _) in some.items()}
    front_end, waveform = LogMel(RATE), torch.from_numpy(mono(samples[0], RATE))[None]
    runs["log-mel"] = lambda: front_end(waveform)
    block = torch.rand(2**26)  # 256 MiB
    runs["copy"] = block.clone
    taken = medians(runs, CPU, arguments.rounds)
    rates = {dtype: max(macs / taken[name] for name, (_, macs) in some.items()) for dtype, some in products.items()}
    bandwidth = 2 * block.numel() * 4 / taken["copy"]
    print(", ".join(f"{rate / 1e9:.0f} GMAC/s in {str(dtype).removeprefix('torch.')}" for dtype, rate in rates.items()), end="; ")
    print(f"copies {bandwidth / 1e9:.1f} GB/s; {torch.get_num_threads()} threads; score {arguments.score}, with its map")
    print(f"of each clip's time the log-mel spectrogram takes {1000 * taken['log-mel']:.1f} ms\n")
    for width in arguments.widths:
        detector = detectors[width, arguments.precisions[0], arguments.strides[0]]
        assert detector._model is not None
        parts = {name: work.total / 1e6 for name, work in works(detector._model).items()}
        print(f"width {width}: E + Dec {parts['E'] + parts['Dec']:.1f}, E {parts['E']:.1f}, D {parts['D']:.1f} MMAC per window")
    print("\n| width | precision | stride | windows | batch | ms per clip | s of sound per s | GMAC | floor ms | of its floor's speed | bytes ms |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    rows = []
    for (width, precision, stride), detector in detectors.items():
        assert detector._model is not None
        work = needed(detector._model)
        windows = len(starts(detector._model.log_mel.frames(RATE * SECONDS), stride))
        floor = windows * sum(macs / rates[dtype] for dtype, macs in work.macs.items())
        for batch in arguments.batches:
            spent = taken[width, precision, stride, batch] / batch
            blocks = -(-windows * batch // MOST_WINDOWS) / batch
            moved = (blocks * work.weights + 2 * windows * work.written) / bandwidth
            row = {"width": width, "precision": precision, "stride": stride, "windows": windows, "batch": batch, "seconds_per_clip": spent}
            row |= {"sound_per_second": SECONDS / spent, "gmac": windows * work.total / 1e9, "floor": floor, "bytes_floor": moved}
            rows.append(row)
            cells = [width, precision, stride, windows, batch, f"{1000 * spent:.1f}", f"{SECONDS / spent:.1f}", f"{row['gmac']:.2f}"]
            print(f"| {' | '.join(map(str, [*cells, f'{1000 * floor:.1f}', f'{floor / spent:.0%}', f'{1000 * moved:.1f}']))} |", flush=True)
    return rows


def all_scores(folder: Path, precision: str, samples: Sequence[Sample]) -> dict[str, FloatArray]:
    batches = [scores.named for _, scores in scored(loaded(folder, precision), samples, BATCH, every=True)]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in SCORES}


def with_stride(version: Path, stride: int, training: Sequence[Sample], folder: Path) -> Path:
    """The trained model, as if it had been trained to score at that stride."""
    found = read_model(version).eval()
    model = AeganAdModel(replace(found.settings, scoring_stride=stride), len(training)).eval()
    model.generator, model.critic = found.generator, found.critic
    with torch.inference_mode():
        waveforms = [torch.from_numpy(mono(training[index], found.settings.rate))[None] for index in range(len(training))]
        model.remember([model.scaled(model.log_mel(one))[0] for one in waveforms])
    save_model(folder, model)
    return folder


def rank_correlation(one: FloatArray, other: FloatArray) -> float:
    """Spearman's, of values without ties."""
    return float(np.corrcoef(one.argsort().argsort(), other.argsort().argsort())[0, 1])


def effects(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Of the strides on each score, and of bf16."""
    labelled = labelled_files(arguments.layout, arguments.data, arguments.machine)
    training = training_files(arguments.layout, arguments.data, arguments.machine)
    serves, own = read_model(arguments.model).settings.score, read_model(arguments.model).settings.scoring_stride
    print(f"{arguments.model.name} on {arguments.machine}: {len(training)} training clips, {len(labelled.files)} to test; trained for stride {own}\n")
    strides = sorted({1, own, *arguments.strides})
    models = {stride: with_stride(arguments.model, stride, training, folder / f"{stride}") for stride in strides}
    of_stride = {stride: all_scores(model, "fp32", labelled.files) for stride, model in models.items()}
    rounded = all_scores(models[own], "bf16", labelled.files)
    headings = [*(f"AUC at {stride}" for stride in strides), *(f"rank at {stride}" for stride in strides[1:]), "bf16 / tolerance", "AUC bf16"]
    print(f"| score | {' | '.join(headings)} |")
    print("|" + "---|" * (1 + len(headings)))
    found: dict[str, Any] = {}
    for name in SCORES:
        aucs = {stride: float(roc_auc_score(labelled.anomalous, values[name])) for stride, values in of_stride.items()}
        ranks = {stride: rank_correlation(of_stride[1][name], of_stride[stride][name]) for stride in strides[1:]}
        exact = of_stride[own][name]
        calibration = Calibration.of(exact[~labelled.anomalous], None)
        share = float(np.abs(rounded[name] - exact).max()) / tolerance(calibration, calibration.threshold(PROBABILITY))
        auc = float(roc_auc_score(labelled.anomalous, rounded[name]))
        found[name] = {"auc": aucs, "rank_correlation": ranks, "bf16_share_of_tolerance": share, "auc_bf16": auc}
        cells = [*(f"{value:.4f}" for value in aucs.values()), *(f"{value:.3f}" for value in ranks.values()), f"{share:.1%}", f"{auc:.4f}"]
        print(f"| {name}{' (serves)' if name == serves else ''} | {' | '.join(cells)} |", flush=True)
    return {"serves": serves, "stride": own, "scores": found}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 16])
    parser.add_argument("--strides", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--score", choices=SCORES, default="G_x_2_max")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--model", type=Path, help="folder of a trained version: measures what strides and bf16 do to its scores")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--machine")
    parser.add_argument("--layout", choices=("dcase2020", "dcase2022"), default="dcase2020")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.model and not (arguments.data and arguments.machine):
        parser.error("--model: needs --data and --machine")
    torch.set_num_threads(arguments.threads)
    with TemporaryDirectory() as folder:
        found: Any = effects(arguments, Path(folder)) if arguments.model else speeds(arguments, Path(folder))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
