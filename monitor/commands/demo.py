"""monitor demo: the whole story on a simulated plant, with an MQTT broker inside."""

import argparse
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monitor.errors import ConfigError

if TYPE_CHECKING:
    from monitor.demo.books import Books, Feed, Outcome

HELP = "train on a simulated line and on humming pumps, stream them over MQTT, plant faults, show what is found"
EXAMPLE = """\
example:
  monitor demo --seconds 30

Needs no broker, no data and no configuration. It trains within three minutes on two cores; a second demo in the same folder takes
the model that is there. Everything lies in the folder afterwards, with a monitor.toml to begin with. It reads no --config."""

FEWEST, MOST = 5, 600


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("demo", help=HELP, description=HELP, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=45, metavar="N", help="how long the plant runs after the training (default: 45)")
    parser.add_argument(
        "--folder", type=Path, default=Path("monitor-demo"), metavar="DIR", help="new, empty or of an earlier demo (default: monitor-demo)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found there too")
    parser.set_defaults(command=execute)


def execute(arguments: argparse.Namespace) -> int:
    folder = _folder(arguments)

    import anyio

    from monitor.commands.answers import write_json
    from monitor.config import load_settings
    from monitor.demo import children
    from monitor.demo.books import Books
    from monitor.demo.camera import Camera
    from monitor.demo.configuration import SINK, write_configuration
    from monitor.demo.microphones import Microphones
    from monitor.store import ModelStore

    file, pictures = folder / "monitor.toml", folder / "pictures"
    feeds: list[Feed] = [Camera(arguments.seconds), Microphones(arguments.seconds)]
    print("A simulated line makes flanges, beside humming pumps. Detectors that have seen and heard good ones only shall find the faults,")
    print("and show where on a flange they are, or when and at what pitch they sound.")
    with children.broker(folder) as broker:
        url = children.broker_url(broker)
        write_configuration(file, url)
        store = ModelStore(load_settings(file, {}).store.path)
        _train(feeds, store, folder, file)
        write_configuration(file, url)  # anew: in minutes of training somebody else may have taken the port of its [api]
        thresholds = {}
        for feed in feeds:
            version = store.current(feed.detector)
            assert version is not None
            thresholds[feed.detector] = float(version.manifest["map_threshold"])
        print(f"\n2. Streaming over MQTT ({url})")
        for feed in feeds:
            print(f"   {feed.expected} {feed.samples}, {feed.how}; {feed.faulty} of them have a fault")
        print(f"   $ monitor run --config {file}", flush=True)

        def told(outcome: "Outcome") -> None:
            assert outcome.alert is not None
            where = outcome.where(outcome.alert["regions"][0])
            print(f"   {outcome.name:<9} ALERT  score {outcome.alert['score']:.3f}  {where:<44} planted: {outcome.planted}", flush=True)
            _save(outcome, pictures, thresholds)

        books = Books(feeds, told=told)
        with children.Child("monitor", "run", "--config", file, log=folder / "monitor.log") as daemon:
            anyio.run(books.stream, load_settings(file, {}), SINK, daemon)
    for outcome in books.outcomes.values():
        if outcome.fault is not None and outcome.alert is None:
            _save(outcome, pictures, thresholds)
    answer = {"detectors": {feed.detector: _found(books.of(feed.detector)) for feed in feeds}, "pictures": str(pictures), "configuration": str(file)}
    print("\n3. What was found")
    for words in _summary(answer, feeds, books, folder):
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


def _train(feeds: "Sequence[Feed]", store: Any, folder: Path, file: Path) -> None:
    from monitor.commands.progress import shown
    from monitor.demo import children

    print("\n1. Training")
    for feed in feeds:
        if store.current_id(feed.detector) is not None:
            print(f"   {feed.detector}: the model of an earlier demo in {folder} is taken; remove the folder to train anew.")
            continue
        good = folder / "good" / feed.detector
        good.mkdir(exist_ok=True)
        print(f"   {feed.detector}: on {feed.good} good {feed.samples}")
        with shown() as progress:
            feed.write_good(good, progress)
        print(f"   $ monitor train {feed.detector} --data {good} --layout folder --config {file}", flush=True)
        children.train(feed.detector, good, file)


def _save(outcome: "Outcome", pictures: Path, thresholds: dict[str, float]) -> None:
    name = f"{outcome.name} {outcome.fault or 'false alarm'}{' missed' if outcome.alert is None else ''}".replace(" ", "-")
    (pictures / f"{name}.png").write_bytes(outcome.picture(thresholds[outcome.detector]))
    if outcome.map is not None:
        (pictures / f"{name}-map.png").write_bytes(outcome.map)


def _found(outcomes: "Sequence[Outcome]") -> dict[str, Any]:
    """Of one detector."""
    planted = [outcome for outcome in outcomes if outcome.fault is not None]
    found = [outcome for outcome in planted if outcome.alert is not None]
    return {
        "samples": len(outcomes),
        "planted": len(planted),
        "found": len(found),
        "located": sum(outcome.located for outcome in found),
        "good": len(outcomes) - len(planted),
        "false_alarms": sum(outcome.alert is not None for outcome in outcomes if outcome.fault is None),
        "model_version": outcomes[0].score["model_version"] if outcomes[0].score else None,
        "each": [
            {
                "name": outcome.name,
                "fault": outcome.fault,
                "severity": outcome.severity,
                "planted": outcome.planted,
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


def _summary(answer: dict[str, Any], feeds: "Sequence[Feed]", books: "Books", folder: Path) -> Iterator[str]:
    for feed in feeds:
        yield from _summary_of(feed, answer["detectors"][feed.detector], books.of(feed.detector))
    file = answer["configuration"]
    yield "The thresholds come from good samples alone and allow 1 % of false alarms: no fault was seen before they were set."
    yield "Severity from 0 to 1: how strongly a fault of its kind was drawn."
    yield f"pictures      {answer['pictures']}: of each alert what was sent, what was planted and what the map shows; what was missed, too"
    yield f"daemon        its log is {folder / 'monitor.log'}, its configuration {file}"
    yield f"next          monitor models show {feeds[0].detector} --config {file}"
    yield "              your own line (README.md): a copy of that file with the url of your broker, a detector trained on your good samples;"
    yield "              monitor check --online --config COPY says what is still wrong with it, monitor run --config COPY watches it"


def _summary_of(feed: "Feed", found: dict[str, Any], outcomes: "Sequence[Outcome]") -> Iterator[str]:
    from statistics import median

    planted = Counter(outcome.fault for outcome in outcomes if outcome.fault is not None)
    alerted = Counter(outcome.fault for outcome in outcomes if outcome.alert is not None)
    kinds = ", ".join(f"{kind} {alerted[kind]} of {count}" for kind, count in sorted(planted.items()))
    yield f"{feed.detector}"
    yield f"found         {found['found']} of {found['planted']} planted faults ({kinds});"
    yield f"              in {found['located']} of them the alert's strongest region lies on the fault"
    yield f"false alarms  {found['false_alarms']} of {found['good']} good {feed.samples}"
    missed = [outcome for outcome in outcomes if outcome.fault is not None and outcome.alert is None]
    if missed:
        yield "missed        " + "; ".join(f"{outcome.name} ({outcome.planted})" for outcome in missed)
    delays = [outcome.seconds for outcome in outcomes if outcome.seconds is not None]
    if delays:
        yield f"delay         {median(delays):.2f} s from sensor to alert (median)"
