"""What AST must beat: the distance of each position's features to the nearest of 8,000 random ones of normal images.

    python tests/bench/nearest_neighbour.py --data ../shared/data/mvtec --category bottle [--resolution 256] [--stride 16] [--blocks 6,14]

Features, grid and standardisation are those of AST with the cpu preset and these options. All normal training images count, also those
that AST sets aside to calibrate. Prints a Markdown table: image AUROC over all of the test split, and of each kind of defect against
its normal images, by the scores of AST.
"""

# ruff: noqa: T201 (a script that prints)

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from detectors.ast.detector import resolved, settings_of
from detectors.ast.features import features, view
from detectors.ast.model import SCORES, Pair, named_scores
from detectors.ast.options import AstOptions
from detectors.backbones import load_backbone
from monitor.commands.progress import shown
from monitor.evaluation.layouts import NORMAL, labelled_files, training_files
from monitor.types import Sample


@torch.inference_mode()
def measure(data: Path, category: str, options: AstOptions, count: int, seed: int) -> None:
    preset = resolved(options)
    backbone = load_backbone(preset.backbone, preset.blocks, weights=options.backbone_weights)
    settings = settings_of(options, preset, backbone)
    training, test = training_files("mvtec", data, category), labelled_files("mvtec", data, category)
    begun = time.monotonic()

    def seen(sample: Sample) -> Tensor:
        pixels = view(sample, "rgb", settings.resolution, settings.grid).pixels
        assert pixels is not None
        return features(backbone, settings.grid, torch.from_numpy(pixels[None]).permute(0, 3, 1, 2), None)  # (1, C, g, g)

    with shown() as progress:
        normal = torch.empty(len(training), settings.channels, settings.grid, settings.grid)
        for index in range(len(training)):
            normal[index] = seen(training[index])[0]
            progress("features", index + 1, len(training), {})
        scale = Pair(settings)  # for its standardisation; its networks are not used
        if preset.standardise:
            scale.standardise_by(normal, torch.ones(len(normal), 1, settings.grid, settings.grid))
        positions = len(normal) * settings.grid**2
        drawn = np.random.default_rng(seed).choice(positions, min(count, positions), replace=False)
        image, row, column = map(torch.from_numpy, np.unravel_index(drawn, (len(normal), settings.grid, settings.grid)))
        patches = ((normal[image, :, row, column] - scale.mean[..., 0, 0]) / scale.deviation[..., 0, 0]).contiguous()  # (count, C)
        found: dict[str, list[float]] = {name: [] for name in SCORES}
        for index in range(len(test.files)):
            x = ((seen(test.files[index]) - scale.mean) / scale.deviation)[0].flatten(1).T  # (g g, C)
            distances = torch.cdist(x, patches).amin(dim=1).reshape(1, settings.grid, settings.grid)
            for name, value in named_scores(distances, SCORES).items():
                found[name].append(float(value))
            progress("score", index + 1, len(test.files), {})
    scores = {name: np.array(values) for name, values in found.items()}
    blocks = ", ".join(map(str, settings.blocks))
    how = f"{category}, {settings.resolution} px, blocks {blocks}, grid {settings.grid}, {len(patches)} patches, {time.monotonic() - begun:.0f} s"
    print(f"| nearest neighbour: {how} | images | {' | '.join(SCORES)} |")
    print("|---|" + "---|" * (1 + len(SCORES)))
    defects = np.array(test.defects)
    for kind in ("all", *sorted(set(test.defects) - {NORMAL})):
        those = test.anomalous if kind == "all" else defects == kind
        against = those | (defects == NORMAL)
        aurocs = (roc_auc_score(those[against], values[against]) for values in scores.values())
        print(f"| {kind} | {those.sum()} | {' | '.join(f'{auroc:.3f}' for auroc in aurocs)} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--category", required=True)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--stride", type=int, default=16)
    parser.add_argument("--blocks", default="6,14")
    parser.add_argument("--patches", type=int, default=8000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    blocks = tuple(map(int, arguments.blocks.split(",")))
    options = AstOptions(resolution=arguments.resolution, stride=arguments.stride, blocks=blocks)
    measure(arguments.data, arguments.category, options, arguments.patches, arguments.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
