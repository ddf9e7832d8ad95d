"""One setting trained, calibrated and evaluated as by `monitor train` and `monitor evaluate`; shared by the ablations."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monitor.commands.progress import shown
from monitor.evaluation.evaluate import evaluate
from monitor.evaluation.layouts import labelled_files, training_files
from monitor.ports import Options
from monitor.reference import load_detector
from monitor.store import ModelStore
from monitor.telemetry import Telemetry
from monitor.training import Job, train

PROBABILITY = 0.01
BATCH = 16


def trained_and_evaluated(
    kind: str, options: Options, data: Path, category: str, *, seed: int, device: str, precision: str
) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """-> figures, manifest. The model is thrown away."""
    telemetry = Telemetry()
    with tempfile.TemporaryDirectory(prefix=f"{kind}-ablation-") as folder, shown() as progress:
        maps = Path(folder) / "maps"
        maps.mkdir()
        job = Job(
            name="ablation",
            kind=kind,
            options=options,
            files=training_files("mvtec", data, category),
            seed=seed,
            device=device,
            false_alarm_probability=PROBABILITY,
            max_batch_size=BATCH,
        )
        version = train(job, store=ModelStore(Path(folder) / "models"), progress=progress, report=telemetry.report).version
        figures = evaluate(
            load_detector(version, device=device, precision=precision, report=telemetry.report),
            version,
            labelled_files("mvtec", data, category),
            false_alarm_probability=PROBABILITY,
            max_batch_size=BATCH,
            folder=maps,
            progress=progress,
        ).figures()
        return figures, version.manifest


def read(path: Path) -> list[dict[str, Any]]:
    """Lines of a results file; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is its head."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:]))
