"""monitor demo: the whole story on a simulated line, with an MQTT broker inside."""

import argparse
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monitor.errors import ConfigError, MonitorError

if TYPE_CHECKING:
    from monitor.demo import Line, Outcome

HELP = "train on a simulated line, stream it over MQTT, plant faults, show what is found"
EXAMPLE = """\
example:
  monitor demo --seconds 30

Needs no broker, no data and no configuration. It trains within two minutes on two cores; a second demo in the same folder takes
the model that is there. Everything lies in the folder afterwards, with a monitor.toml to begin with. It reads no --config."""

FEWEST, MOST = 5, 600
_ONE_IN = 8
"""So many parts to a faulty one, roughly."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("demo", help=HELP, description=HELP, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=45, metavar="N", help="how long the line runs after the training (default: 45)")
    parser.add_argument(
        "--folder", type=Path, default=Path("monitor-demo"), metavar="DIR", help="new, empty or of an earlier demo (default: monitor-demo)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found there too")
    parser.set_defaults(command=execute)


def execute(arguments: argparse.Namespace) -> int:
    folder = _folder(arguments)

    import anyio

    from monitor import demo
    from monitor.commands.answers import write_json
    from monitor.config import load_settings
    from monitor.simulation.parts import PART_FAULTS
    from monitor.store import ModelStore

    file, pictures = folder / "monitor.toml", folder / "pictures"
    parts = round(arguments.seconds * demo.RATE)
    faulty = len(PART_FAULTS) * max(1, round(parts / _ONE_IN / len(PART_FAULTS)))
    print("A simulated line makes flanges. A detector that has seen good ones only shall find the faulty ones, and show where the fault is.")
    with demo.broker(folder) as broker:
        url = demo.broker_url(broker)
        demo.write_configuration(file, url)
        settings = load_settings(file, {})
        store = ModelStore(settings.store.path)
        if store.current_id(demo.DETECTOR) is None:
            _train(folder, file)
        else:
            print(f"\n1. Training: the model of an earlier demo in {folder} is taken; remove the folder to train anew.")
        demo.write_configuration(file, url)  # anew: in minutes of training somebody else may have taken the port of its [api]
        version = store.current(demo.DETECTOR)
        assert version is not None
        map_threshold = float(version.manifest["map_threshold"])
        print(
            f"\n2. Streaming: {parts} parts, {demo.RATE:g} a second, over MQTT ({url}). {faulty} of them have a fault, of {len(PART_FAULTS)} kinds."
        )
        print(f"   $ monitor run --config {file}", flush=True)

        def told(outcome: "Outcome") -> None:
            assert outcome.alert is not None
            place = demo.where(outcome.alert["regions"][0], outcome.part.image.shape[0])
            print(f"   part {outcome.number:03}  ALERT  score {outcome.alert['score']:.3f}  {place:<44} planted: {_planted(outcome)}", flush=True)
            _save(outcome, pictures, map_threshold)

        line = demo.Line(settings, parts=parts, faulty=faulty, told=told)
        with demo.Child("monitor", "run", "--config", file, log=folder / "monitor.log") as daemon:
            anyio.run(line.stream, daemon)
    for outcome in line.outcomes.values():
        if outcome.part.fault is not None and outcome.alert is None:
            _save(outcome, pictures, map_threshold)
    answer = _answer(line, folder, file)
    print("\n3. What was found")
    for words in _summary(answer, line):
        print(f"   {words}")
    write_json(arguments.json, answer)
    return 0


def _folder(arguments: argparse.Namespace) -> Path:
    """Where everything goes, made. Raises ConfigError for arguments that cannot work, and where the demo's broker is missing."""
    from importlib.util import find_spec

    from monitor.commands.answers import check_json, make_folder

    folder: Path = arguments.folder
    mistakes = []
    if not FEWEST <= arguments.seconds <= MOST:
        mistakes.append(f"--seconds: expected {FEWEST} to {MOST}, found {arguments.seconds}")
    if find_spec("iotcore") is None:
        mistakes.append("the demo's MQTT broker is not installed: pip install 'plant-monitor[demo]'")
    if folder.is_dir() and any(folder.iterdir()) and not ((folder / "good").is_dir() and (folder / "monitor.toml").is_file()):
        mistakes.append(f"--folder: {folder} holds other things: expected a new or empty folder, or that of an earlier demo")
    if mistakes:
        raise ConfigError(*mistakes)
    shutil.rmtree(folder / "pictures", ignore_errors=True)  # of an earlier demo
    for name in ("good", "pictures"):
        make_folder("--folder", folder / name)
    (folder / "monitor.toml").touch()
    check_json(arguments.json)
    return folder


def _train(folder: Path, file: Path) -> None:
    from monitor import demo
    from monitor.commands.progress import shown

    good = folder / "good"
    print(f"\n1. Training on {demo.GOOD_PARTS} good parts.")
    with shown() as progress:
        demo.write_good_parts(good, progress)
    print(f"   $ monitor train {demo.DETECTOR} --data {good} --layout folder --config {file}", flush=True)
    with demo.Child("monitor", "train", demo.DETECTOR, "--data", good, "--layout", "folder", "--config", file) as training:
        code = training.process.wait()
    if code != 0:
        raise MonitorError(f"the training ended with exit code {code}")


def _planted(outcome: "Outcome") -> str:
    fault = outcome.part.fault
    return f"{fault}, severity {outcome.part.severity:.2f}" if fault is not None else "nothing, a false alarm"


def _save(outcome: "Outcome", pictures: Path, map_threshold: float) -> None:
    from monitor import demo

    name = (outcome.part.fault or "false alarm").replace(" ", "-")
    stem = f"part-{outcome.number:03}-{name}" + ("" if outcome.alert is not None else "-missed")
    (pictures / f"{stem}.png").write_bytes(demo.png(demo.comparison(outcome, map_threshold)))
    if outcome.map is not None:
        (pictures / f"{stem}-map.png").write_bytes(outcome.map)


def _answer(line: "Line", folder: Path, file: Path) -> dict[str, Any]:
    outcomes = list(line.outcomes.values())
    planted = [outcome for outcome in outcomes if outcome.part.fault is not None]
    found = [outcome for outcome in planted if outcome.alert is not None]
    return {
        "parts": len(outcomes),
        "planted": len(planted),
        "found": len(found),
        "located": sum(outcome.located for outcome in found),
        "good": len(outcomes) - len(planted),
        "false_alarms": sum(outcome.alert is not None for outcome in outcomes if outcome.part.fault is None),
        "model_version": outcomes[0].score["model_version"] if outcomes[0].score else None,
        "pictures": str(folder / "pictures"),
        "configuration": str(file),
        "each": [
            {
                "number": outcome.number,
                "fault": outcome.part.fault,
                "severity": outcome.part.severity,
                "score": outcome.score["score"] if outcome.score else None,
                "threshold": outcome.score["threshold"] if outcome.score else None,
                "alerted": outcome.alert is not None,
                "located": outcome.located,
                "regions": outcome.alert["regions"] if outcome.alert else [],
                "seconds": outcome.seconds,
            }
            for outcome in outcomes
        ],
    }


def _summary(answer: dict[str, Any], line: "Line") -> Sequence[str]:
    from statistics import median

    file = Path(answer["configuration"])
    outcomes = line.outcomes.values()
    planted = Counter(outcome.part.fault for outcome in outcomes if outcome.part.fault is not None)
    found = Counter(outcome.part.fault for outcome in outcomes if outcome.alert is not None)
    kinds = ", ".join(f"{kind} {found[kind]} of {count}" for kind, count in sorted(planted.items()))
    delays = [outcome.seconds for outcome in outcomes if outcome.seconds is not None]
    words = [
        f"found         {answer['found']} of {answer['planted']} planted faults ({kinds});",
        f"              in {answer['located']} of them the alert's strongest region lies on the fault",
        f"false alarms  {answer['false_alarms']} of {answer['good']} good parts; the threshold allows {0.01 * answer['good']:.1f} on average (1 %),",
        "              and comes from good parts alone: no fault was seen before it was set",
    ]
    missed = [outcome for outcome in outcomes if outcome.part.fault is not None and outcome.alert is None]
    if missed:
        words.append(
            "missed        " + ", ".join(f"part {outcome.number:03} ({outcome.part.fault} {outcome.part.severity:.2f})" for outcome in missed)
        )
        words.append("              severity from 0 to 1: how strongly a fault of its kind was drawn")
    if delays:
        words.append(f"delay         {median(delays):.2f} s from camera to alert (median)")
    return [
        *words,
        f"pictures      {answer['pictures']}: of each alert what was sent, what was planted and what the map shows; what was missed, too",
        f"daemon        its log is {file.parent / 'monitor.log'}, its configuration {file}",
        f"next          monitor models show flange --config {file}",
        "              your own line (README.md): a copy of that file with the url of your broker, a detector trained on your good pictures;",
        "              monitor check --online --config COPY says what is still wrong with it, monitor run --config COPY watches it",
    ]
