"""A trained AST model, fp32 against the fast precision, on a labelled test split: scores, speed, and how near each part is to its floor.

    python tests/bench/fast_ast.py --store var/models --name bottle_ast [--model-version ID] --data ../shared/data/mvtec --category bottle \
        [--precision auto] [--device cpu] [--rounds 7] [--threads 1]

Everything is measured in one run, in turns. "As trained" is fp32 that is not fused. The floor of a part is what its multiplications,
counted layer by layer, would take at the highest rate that one large convolution or matrix product reaches on this machine in the
precision of that layer: the last layers stay fp32. Decoding and resizing are one thread's; the daemon does them beside the scoring.
"""

# ruff: noqa: T201 (a script that prints)

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from detectors.ast.detector import Ast
from detectors.ast.model import read_model
from detectors.ast.options import AstOptions
from detectors.backbones import load_backbone
from detectors.devices import PRECISIONS, choose_device
from monitor.calibration import Calibration
from monitor.evaluation.layouts import Labelled, labelled_files
from monitor.reference import model_options, scored
from monitor.store import ModelStore
from monitor.types import FloatArray, ModelVersion, Sample
from timing import large_products, medians, now

PROBABILITY = 0.01
BATCHES = (1, 16)


def loaded(version: ModelVersion, device: str, precision: str, *, as_trained: bool = False) -> Ast:
    """Ready to score; what the bench measures the parts of is private to the detector, by design."""
    options = model_options(version)
    assert isinstance(options, AstOptions)
    detector = Ast(options)
    detector.load(version.folder, device=device, precision=precision)
    if as_trained:
        settings, pair = read_model(version.folder)
        backbone = load_backbone(settings.backbone, settings.blocks, weights=options.backbone_weights)
        detector._pair, detector._backbone = pair.eval().to(detector.device), backbone.to(detector.device)
    return detector


def compare_scores(version: ModelVersion, labelled: Labelled, exact: Ast, fast: Ast) -> None:
    """Every score of every test image in both precisions."""
    named: list[dict[str, FloatArray]] = []
    for detector in (exact, fast):
        batches = [scores.named for _, scores in scored(detector, labelled.files, BATCHES[-1], every=True)]
        named.append({name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]})
    serves = version.manifest["options"]["score"]
    calibration = Calibration.from_manifest(version.manifest)
    threshold = calibration.threshold(PROBABILITY).value
    way = threshold - float(np.median(calibration.scores))
    print(f"| score | largest deviation | relative | of the way to the threshold | AUROC fp32 | AUROC {fast.precision} | difference |")
    print("|---|---|---|---|---|---|---|")
    for name, wanted in named[0].items():
        found = named[1][name]
        moved = np.abs(found - wanted)
        share = f"{moved.max() / way:.2%}" if name == serves else ""
        aurocs = [float(roc_auc_score(labelled.anomalous, values)) for values in (wanted, found)]
        figures = [f"{moved.max():.3g}", f"{(moved / np.abs(wanted)).max():.2e}", share, *(f"{auroc:.4f}" for auroc in aurocs)]
        print(f"| {name}{' (serves)' if name == serves else ''} | {' | '.join(figures)} | {aurocs[1] - aurocs[0]:+.5f} |")
    verdicts = [values[serves] > np.float32(threshold) for values in named]
    print(f"{(verdicts[0] != verdicts[1]).sum()} of {len(labelled.files)} verdicts differ; 10 % of the way to the threshold is tolerated\n")


class Parts:
    """Looks into a loaded detector while it scores one batch: how long each network takes of it, and what it multiplies."""

    def __init__(self, detector: Ast, samples: Sequence[Sample]) -> None:
        backbone, pair = detector._backbone, detector._pair
        assert backbone is not None
        assert pair is not None
        self._device = torch.device(detector.device)
        self._stacked = detector.stack(samples, [detector.prepare(sample) for sample in samples])
        self._score = detector.score
        self.networks: Mapping[str, nn.Module] = {"backbone": backbone, "teacher": pair.teacher, "student": pair.student}
        self.seconds: dict[str, list[float]] = {part: [] for part in self.networks}
        """Of each call of `score`."""

    def score(self) -> None:
        begun: dict[str, float] = {}

        def begin(part: str, *_: object) -> None:
            begun[part] = now(self._device)

        def end(part: str, *_: object) -> None:
            self.seconds[part].append(now(self._device) - begun[part])

        hooks = [network.register_forward_pre_hook(partial(begin, part)) for part, network in self.networks.items()]
        hooks += [network.register_forward_hook(partial(end, part)) for part, network in self.networks.items()]
        self._score(self._stacked)
        for hook in hooks:
            hook.remove()

    def work(self, part: str) -> dict[torch.dtype, int]:
        """Multiply-accumulates of a batch in each precision: all of them are in convolutions."""
        counted: dict[torch.dtype, int] = {}

        def count(layer: nn.Conv2d, _: object, output: Tensor) -> None:
            dtype = layer.weight.dtype
            counted[dtype] = counted.get(dtype, 0) + output.numel() * layer.weight[0].numel()

        hooks = [layer.register_forward_hook(count) for layer in self.networks[part].modules() if isinstance(layer, nn.Conv2d)]
        self._score(self._stacked)
        for hook in hooks:
            hook.remove()
        return counted


def compare_speed(labelled: Labelled, detectors: Mapping[str, Ast], batch: int, rounds: int) -> None:
    """One table: milliseconds per image of each part on each path; on the fast path its share, and its floor."""
    fast = detectors["fast"]
    device = torch.device(fast.device)
    indices = np.linspace(0, len(labelled.files) - 1, batch).round().astype(int).tolist()  # of all kinds
    payloads = [labelled.files.payloads(index) for index in indices]
    samples = [labelled.files[index] for index in indices]
    parts = {path: Parts(detector, samples) for path, detector in detectors.items()}
    runs: dict[tuple[str, str], Callable[[], object]] = {
        ("", "decode"): lambda: [labelled.files.sample(index, payload) for index, payload in zip(indices, payloads, strict=True)],
        ("", "resize"): lambda: [fast.prepare(sample) for sample in samples],
    }
    runs |= {(path, "score"): own.score for path, own in parts.items()}
    products = {PRECISIONS[name]: large_products(device, PRECISIONS[name]) for name in ("fp32", fast.precision)}
    runs |= {("", name): run for some in products.values() for name, (run, _) in some.items()}
    taken = medians(runs, device, rounds)
    rates = {precision: max(macs / taken["", name] for name, (_, macs) in some.items()) for precision, some in products.items()}
    median = {key: 1000 * value / batch for key, value in taken.items()}
    for path, own in parts.items():
        median |= {(path, part): median["", part] for part in ("decode", "resize")}
        median |= {(path, part): 1000 * statistics.median(seconds[1:]) / batch for part, seconds in own.seconds.items()}  # the first warmed up
        median[path, "rest"] = median[path, "score"] - sum(median[path, part] for part in own.networks)
        median[path, "all"] = sum(median[path, part] for part in ("decode", "resize", "score"))
    print(f"| batch {batch}, ms per image | as trained | fp32 | {fast.precision} | share | GMAC | floor | of its floor's speed |")
    print("|---|---|---|---|---|---|---|---|")
    for part in ("decode", "resize", "backbone", "teacher", "student", "rest", "score", "all"):
        spent = median["fast", part]
        cells = [f"{median[path, part]:.2f}" for path in detectors] + [f"{spent / median['fast', 'all']:.0%}"]
        if part in parts["fast"].networks:
            work = parts["fast"].work(part)
            floor = 1000 * sum(macs / rates[precision] for precision, macs in work.items()) / batch
            cells += [f"{sum(work.values()) / batch / 1e9:.2f}", f"{floor:.2f}", f"{floor / spent:.0%}"]
        else:
            cells += [""] * 3
        print(f"| {part} | {' | '.join(cells)} |")
    speeds = {path: 1000 / median[path, "score"] for path in detectors}
    print(", ".join(f"{path} scores {speed:.1f} images/s" for path, speed in speeds.items()), end="; ")
    print(", ".join(f"fast / {path} {speeds['fast'] / speeds[path]:.2f}" for path in ("as trained", "fp32")))
    told = ", ".join(f"{rate / 1e9:.0f} GMAC/s in {str(precision).removeprefix('torch.')}" for precision, rate in rates.items())
    print(f"highest rate: {told}; {torch.get_num_threads()} threads\n", flush=True)


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--model-version", metavar="ID", help="default: the promoted one")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--category", required=True)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    store = ModelStore(arguments.store)
    version = store.open(arguments.name, arguments.model_version) if arguments.model_version else store.current(arguments.name)
    if version is None:
        parser.error(f"--name: {arguments.name}: no model is promoted in {arguments.store}")
    labelled = labelled_files("mvtec", arguments.data, arguments.category)
    device = str(choose_device(arguments.device))
    detectors = {
        "as trained": loaded(version, device, "fp32", as_trained=True),
        "fp32": loaded(version, device, "fp32"),
        "fast": loaded(version, device, arguments.precision),
    }
    print(f"{version.name} {version.id} on {arguments.category}, {device}\n")
    compare_scores(version, labelled, detectors["fp32"], detectors["fast"])
    for batch in BATCHES:
        compare_speed(labelled, detectors, batch, arguments.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
