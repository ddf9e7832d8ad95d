"""monitor train: a data set of normal samples -> a model version that serves."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from monitor.ports import Options

HELP = "train a detector on a data set, calibrate, publish and promote it"
EXAMPLE = """\
example:
  monitor train bottle_ae --data data/mvtec --layout mvtec --category bottle --preset cpu
  monitor train fan --data data/dcase2020 --layout dcase2020 --category fan --preset cpu
  monitor train press_ae --data normals --layout folder

layouts: mvtec (DIR/CATEGORY/train/good/*), mvtec3d (DIR/CATEGORY/train/good/rgb/* and xyz/*), dcase2020 and dcase2022
(DIR/dev_data/CATEGORY/train/*.wav, named as in those challenges; one model for all machines or sections), folder (DIR holds normal files).
A training that was killed is continued by the same command with --resume. A running daemon takes the new version by itself."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("train", help=HELP, description=HELP, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("detector", metavar="NAME", help="a detector of the configuration")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="the folder that holds the categories, or dev_data, or the normal files"
    )
    parser.add_argument("--layout", required=True, metavar="L", help="mvtec, mvtec3d, dcase2020, dcase2022 or folder")
    parser.add_argument("--category", metavar="C", help="one category, or machine, of the data set")
    parser.add_argument("--preset", metavar="P", help="paper or cpu; overrides options.preset")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="decides everything random (default: 0)")
    parser.add_argument("--resume", action="store_true", help="go on where a training with the same arguments stopped; begin where there is none")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there too")
    parser.set_defaults(command=execute)


def execute(arguments: argparse.Namespace) -> int:
    from monitor.commands.answers import detector_settings, write_json
    from monitor.commands.progress import shown
    from monitor.errors import ConfigError
    from monitor.evaluation.layouts import training_files
    from monitor.store import ModelStore
    from monitor.telemetry import Telemetry, configure_logging
    from monitor.training import Job, train

    configure_logging()
    settings, detector = detector_settings(arguments.config, arguments.detector)
    if not 0 <= arguments.seed < 2**32:
        raise ConfigError(f"--seed: expected a number from 0 to {2**32 - 1}, found {arguments.seed}")
    job = Job(
        name=arguments.detector,
        kind=detector.kind,
        options=_with_preset(detector.options, arguments.preset),
        files=training_files(arguments.layout, arguments.data, arguments.category),
        seed=arguments.seed,
        device=detector.device,
        false_alarm_probability=detector.false_alarm_probability,
        max_batch_size=detector.max_batch_size,
    )
    with shown() as progress:
        trained = train(job, store=ModelStore(settings.store.path), progress=progress, report=Telemetry().report, resume=arguments.resume)
    manifest = trained.version.manifest
    answer = {
        "detector": trained.version.name,
        "model_version": trained.version.id,
        "kind": manifest["kind"],
        "options": manifest["options"],
        "trained_on": manifest["trained_on"],
        "threshold": manifest["threshold"],
        "supported": trained.threshold.words,
        "checks": manifest["checks"],
        "synthetic_auroc": manifest["fit"].get("synthetic_auroc"),
        "train_seconds": manifest["fit"]["seconds"],
    }
    print(f"{trained.version.name}: {trained.version.id} is published and promoted")
    print(
        f"threshold {trained.threshold.value:.6g}: {trained.threshold.words or f'supports a false-alarm probability of {trained.threshold.asked:g}'}"
    )
    told = manifest["fit"].get("synthetic_auroc")
    if told:
        served = float(told[manifest["options"]["score"]])
        doubt = "" if served >= 0.6 else ": it hardly tells them from normals; more or better normals, or more epochs, before you trust it"
        print(f"synthetic faults: AUROC {served:.3f} by score {manifest['options']['score']}{doubt}")
    write_json(arguments.json, answer)
    return 0


def _with_preset(options: "Options", preset: str | None) -> "Options":
    from pydantic import ValidationError

    from monitor.errors import ConfigError

    if preset is None:
        return options
    if "preset" not in type(options).model_fields:
        raise ConfigError("--preset: this kind has no presets")
    try:
        return type(options).model_validate({**options.model_dump(exclude_unset=True), "preset": preset})
    except ValidationError as error:
        raise ConfigError(f"--preset: {error.errors()[0]['msg']}, found {preset!r}") from error
