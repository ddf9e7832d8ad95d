"""RDNA without adversarial terms (DRAEM), with the chosen weights, and with ten times those: equal steps, several seeds.

    python tests/bench/rdna_ablation.py --data ../shared/data/mvtec --category bottle --textures ../shared/data/textures --seeds 0,1,2 \
        [--weights 0,0.01,0.1] [--epochs 4] [--threads 1] [--device cpu] [--results var/rdna_ablation.jsonl]

Each finished run is a line of the results file; one that stands there already, of the same data, options and seed, is not trained again: after
a change of the code, begin another file. Means and standard deviations over the seeds are printed at the end.
"""

# ruff: noqa: T201 (a script that prints)

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ablation import markdown, read, trained_and_evaluated
from detectors.presets import overridden
from detectors.rdna.options import PRESETS, RdnaOptions
from monitor.telemetry import configure_logging

BASE: Mapping[str, Any] = {"preset": "cpu", "width": 16, "resolution": 256, "score_window": 21, "batch_size": 4}
FIGURES = ("image_auroc", "pixel_auroc", "pixel_ap", "aupro")


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a row per weight; mean and sample standard deviation over its seeds."""
    rows = [["weights", "seeds", *FIGURES, "held-out loss", "discriminators", "seconds"]]
    for weight in sorted({line["weight"] for line in lines}):
        of_it = [line for line in lines if line["weight"] == weight]
        spread = [[line["figures"][name] for line in of_it] for name in FIGURES] + [[line["held_out_loss"] for line in of_it]]
        last = [" / ".join(f"{value:.2f}" for value in line["discriminators"]) or "none" for line in of_it]
        seconds = statistics.median(line["seconds"] for line in of_it)
        rows.append([f"{weight:g}", str(len(of_it)), *map(shown, spread), "; ".join(last), f"{seconds:.0f}"])
    return markdown(rows)


def shown(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--category", required=True)
    parser.add_argument("--textures", type=Path, help="default: computed ones")
    parser.add_argument("--weights", default="0,0.01,0.1", help="of both terms; default: %(default)s")
    parser.add_argument("--seeds", default="0", help="default: %(default)s")
    parser.add_argument("--epochs", type=int, default=4, help="of 100 steps; default: %(default)s")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--results", type=Path, default=Path("var/rdna_ablation.jsonl"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    configure_logging()
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    for seed in map(int, arguments.seeds.split(",")):
        for weight in map(float, arguments.weights.split(",")):
            given = {"adversarial_reconstruction": weight, "adversarial_segmentation": weight, "epochs": arguments.epochs}
            options = RdnaOptions.model_validate({**BASE, **given, "anomaly_source": arguments.textures})
            decides = json.loads(options.model_dump_json()) | asdict(overridden(PRESETS[options.preset], options))
            identity = {"weight": weight, "category": arguments.category, "seed": seed, "options": decides}
            if any(identity.items() <= line.items() for line in read(arguments.results)):
                continue
            where = {"seed": seed, "device": arguments.device, "precision": "auto"}
            figures, manifest = trained_and_evaluated("rdna", options, arguments.data, arguments.category, **where)
            fit = manifest["fit"]
            line = identity | {
                "figures": figures,
                "synthetic_auroc": fit["synthetic_auroc"],
                "held_out_loss": fit["held_out_loss"][-1],
                "discriminators": [fit[name][-1] for name in ("image_discriminator", "mask_discriminator") if fit[name]],
                "seconds": fit["seconds"],
                "threads": arguments.threads,
            }
            with arguments.results.open("a") as results:
                results.write(json.dumps(line) + "\n")
            print(table([line]), flush=True)
    print(table([line for line in read(arguments.results) if line["category"] == arguments.category]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
