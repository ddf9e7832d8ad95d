"""A model that is trained and evaluated in one go, by a small detector."""

from pathlib import Path

from monitor.evaluation.evaluate import Evaluation, evaluate
from monitor.evaluation.layouts import labelled_files, training_files
from monitor.ports import Options
from monitor.reference import load_detector
from monitor.store import ModelStore
from monitor.training import Job, train


def quiet(*_: object, **__: object) -> None:
    pass


def evaluated(kind: str, options: Options, data: Path, layout: str, category: str, *, folder: Path, false_alarm_probability: float) -> Evaluation:
    """Models and maps go into `folder`."""
    job = Job(
        name=category.strip("<>"),
        kind=kind,
        options=options,
        files=training_files(layout, data, category),
        seed=3,
        device="cpu",
        false_alarm_probability=false_alarm_probability,
        max_batch_size=4,
    )
    version = train(job, store=ModelStore(folder / "models"), progress=quiet, report=quiet).version
    (folder / "maps").mkdir()
    return evaluate(
        load_detector(version, device="cpu", precision="auto", report=quiet),
        version,
        labelled_files(layout, data, category),
        false_alarm_probability=false_alarm_probability,
        max_batch_size=4,
        folder=folder / "maps",
        progress=quiet,
    )
