"""monitor evaluate: a model version against a labelled test split."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HELP = "score a labelled test split with a model version and report"
EXAMPLE = """\
example:
  monitor evaluate bottle_ae --data data/mvtec --layout mvtec --category bottle --report var/report/bottle
  monitor evaluate fan --data data/dcase2020 --layout dcase2020 --category fan --report var/report/fan

The report folder gets scores.csv, curves, histograms, maps, overlays, and one self-contained report.html; of sound also the challenge's csv files.
All figures are of the score that serves. Of sound, "oracle" is the score that these very labels would have chosen: no figure of a model in service.
Samples per second include reading, decoding, scoring and maps, with every score that the method knows."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("evaluate", help=HELP, description=HELP, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("detector", metavar="NAME", help="a detector of the configuration")
    parser.add_argument("--model-version", metavar="ID", help="default: the promoted one")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the folder that holds the categories, or dev_data")
    parser.add_argument("--layout", required=True, metavar="L", help="mvtec, mvtec3d, dcase2020 or dcase2022")
    parser.add_argument("--category", metavar="C", help="one category, or machine, of the data set")
    parser.add_argument("--report", type=Path, metavar="DIR", help="write pictures, tables and report.html there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.set_defaults(command=execute)


def execute(arguments: argparse.Namespace) -> int:
    import tempfile

    from monitor.commands.answers import detector_settings, make_folder, write_json
    from monitor.commands.progress import shown
    from monitor.errors import ConfigError
    from monitor.evaluation.layouts import labelled_files
    from monitor.reference import load_detector
    from monitor.store import ModelStore
    from monitor.telemetry import Telemetry, configure_logging

    configure_logging()
    settings, detector = detector_settings(arguments.config, arguments.detector)
    if arguments.report is not None:
        make_folder("--report", arguments.report)
    labelled = labelled_files(arguments.layout, arguments.data, arguments.category)
    store = ModelStore(settings.store.path)
    chosen = arguments.model_version
    version = store.open(arguments.detector, chosen) if chosen else store.current(arguments.detector)
    if version is None:
        raise ConfigError(f"{arguments.detector}: no model is promoted in {store.path}: expected `monitor train {arguments.detector}` before")
    loaded = load_detector(version, device=detector.device, precision=detector.precision, report=Telemetry().report)

    from monitor.evaluation.evaluate import evaluate

    with shown() as progress, tempfile.TemporaryDirectory(prefix="monitor-maps-") as maps:
        evaluation = evaluate(
            loaded,
            version,
            labelled,
            false_alarm_probability=detector.false_alarm_probability,
            max_batch_size=detector.max_batch_size,
            folder=Path(maps),
            progress=progress,
        )
        facts = {**evaluation.figures(), "layout": arguments.layout, "category": labelled.files.topic}
        if arguments.report is not None:
            from monitor.evaluation.report import write_report

            write_report(evaluation, facts, arguments.report, progress)
    for name, value in facts.items():
        if value is not None and not isinstance(value, Mapping):
            print(f"{name}: {value}")
    _print_groups(facts)
    _print_scores(facts, evaluation.serving)
    if arguments.report is not None:
        print(f"report: {arguments.report / 'report.html'}")
    write_json(arguments.json, facts)
    return 0


def _print_groups(facts: Mapping[str, Any]) -> None:
    """Of sound: the figures of each machine or section, with the numbers of clips that they rest on."""
    for group, figures in {**facts.get("ids", {}), **facts.get("sections", {})}.items():
        print(f"{group}: " + ", ".join(f"{name} {value if isinstance(value, int) else f'{value:.4f}'}" for name, value in figures.items()))


def _print_scores(facts: Mapping[str, Any], serving: str) -> None:
    """Every score that the method knows, a line each."""
    oracle = facts.get("oracle", {}).get("score")
    for name, figures in facts["scores"].items():
        marks = "".join(mark for mark, is_so in ((" <- serves (label-free)", name == serving), (" <- oracle", name == oracle)) if is_so)
        print(f"score {name:<12} " + ", ".join(f"{figure} {value:.4f}" for figure, value in figures.items()) + marks)
    if oracle is not None:
        print(f"oracle is {facts['oracle']['margin']:.4f} better than what serves; it was chosen by these very labels")
