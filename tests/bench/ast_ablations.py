"""AST with one option changed at a time, on one category: trained, calibrated and evaluated as by `monitor train` and `monitor evaluate`.

    python tests/bench/ast_ablations.py --data ../shared/data/mvtec_layout --category magnetic_tile --threads 1 \
        [--only base,flow] [--epochs 14] [--seed 0] [--device cpu] [--results var/ast_ablations.jsonl]

Each finished row is a line of the results file; a row that stands there already, of the same data, options and seed, is not trained
again: after a change of the code, begin another file. All rows of the category there are printed as a Markdown table at the end. Scores
are computed in fp32; seconds of training are those of features, teacher and student.
"""

# ruff: noqa: T201 (a script that prints)

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ablation import markdown, read, trained_and_evaluated
from detectors.ast.detector import resolved
from detectors.ast.options import AstOptions
from monitor.telemetry import configure_logging

BASE: Mapping[str, Any] = {"preset": "cpu", "resolution": 256}
"""Two levels, a convolutional student, positional encoding; teacher 64 and student 256 wide."""
CHANGES: Mapping[str, Mapping[str, Any]] = {
    "base": {},
    "no_encoding": {"positional_encoding": False},
    "flow": {"student": "flow"},
    "teacher_256": {"teacher_width": 256},
    "student_64": {"student_width": 64},
    "resolution_512": {"resolution": 512, "stride": 32},  # as many positions, so as many seconds, of more detailed features
    "one_level": {"blocks": (19,), "stride": 32},  # as published: the last level, as it comes
    "three_levels": {"blocks": (6, 14, 19)},
}


def measure(identity: Mapping[str, Any], options: AstOptions, data: Path, device: str) -> dict[str, Any]:
    """One training and evaluation -> one line of the results."""
    where = {"seed": identity["seed"], "device": device, "precision": "fp32"}
    figures, manifest = trained_and_evaluated("ast", options, data, identity["category"], **where)
    fit = manifest["fit"]
    return {
        **identity,
        "figures": figures,
        "score": manifest["options"]["score"],
        "synthetic_auroc": fit["synthetic_auroc"],
        "held_out": {network: fit[network]["held_out_loss"][-1] for network in ("teacher", "student")},
        "threads": torch.get_num_threads(),
    }


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a row per line; image AUROC of every score, the one that was chosen without labels marked with *."""
    scores = list(lines[0]["figures"]["scores"])
    head = ["setting", "epochs", "seed", *scores, "pixel AUROC", "AUPRO", "training", "teacher held out", "student held out"]
    rows = [head]
    for line in lines:
        figures = line["figures"]
        rows.append(
            [
                line["setting"],
                f"{line['options']['teacher_epochs']} + {line['options']['student_epochs']}",
                str(line["seed"]),
                *(f"{figures['scores'][name]['image_auroc']:.3f}{'*' if name == line['score'] else ''}" for name in scores),
                f"{figures['pixel_auroc']:.3f}",
                f"{figures['aupro']:.3f}",
                f"{figures['train_seconds']:.0f} s",
                f"{line['held_out']['teacher']:.1f}",
                f"{line['held_out']['student']:.4f}",
            ]
        )
    return markdown(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--category", required=True)
    parser.add_argument("--only", default=",".join(CHANGES), metavar="ROWS", help="default: %(default)s")
    parser.add_argument("--epochs", type=int, help="of the teacher and of the student; default: those of the preset")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--results", type=Path, default=Path("var/ast_ablations.jsonl"))
    arguments = parser.parse_args()
    chosen = arguments.only.split(",")
    if unknown := sorted(set(chosen) - set(CHANGES)):
        parser.error(f"--only: {', '.join(unknown)}: expected some of {', '.join(CHANGES)}")
    torch.set_num_threads(arguments.threads)
    configure_logging()
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    shortened = {} if arguments.epochs is None else {"teacher_epochs": arguments.epochs, "student_epochs": arguments.epochs}
    for setting in chosen:
        options = AstOptions.model_validate({**BASE, **CHANGES[setting], **shortened})
        decides = json.loads(options.model_dump_json()) | asdict(resolved(options))  # a changed preset is another row
        identity = {"setting": setting, "category": arguments.category, "seed": arguments.seed, "options": decides}
        identity = json.loads(json.dumps(identity))  # as it is read back
        if any(identity.items() <= line.items() for line in read(arguments.results)):
            continue
        line = measure(identity, options, arguments.data, arguments.device)
        with arguments.results.open("a") as results:
            results.write(json.dumps(line) + "\n")
        print(table([line]), flush=True)
    print(table([line for line in read(arguments.results) if line["category"] == arguments.category]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
