"""monitor check: is this monitor.toml right, and (online) is everything there that it needs."""

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from monitor.errors import ConfigError, MonitorError

if TYPE_CHECKING:
    from monitor.settings import Settings

HELP = "validate monitor.toml; --online also reaches brokers, store and device"
EXAMPLE = """\
example:
  monitor check --online

Every mistake is listed with its path; exit 2 when there is one."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("check", help=HELP, description=HELP, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--online", action="store_true", help="also reach brokers, store and device")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was printed, for machines")
    parser.set_defaults(command=execute)


def execute(arguments: argparse.Namespace) -> int:
    from monitor.commands.answers import write_json
    from monitor.config import load_settings

    lines: list[dict[str, str]] = []

    def say(level: str, at: str, text: str) -> None:
        lines.append({"level": level, "at": at, "text": text})
        print(f"{at}: {text}" if level == "ok" else f"{at}: {level}: {text}")

    try:
        settings = load_settings(arguments.config, os.environ)
    except ConfigError as error:
        write_json(arguments.json, [{"level": "mistake", "at": str(arguments.config), "text": text} for text in error.mistakes])
        raise
    parts = {"source(s)": settings.sources, "detector(s)": settings.detectors, "sink(s)": settings.sinks}
    say("ok", str(arguments.config), ", ".join(f"{len(part)} {name}" for name, part in parts.items()))
    _warn(settings, say)
    if arguments.online:
        _reach(settings, say)
    write_json(arguments.json, lines)
    return 2 if any(line["level"] == "mistake" for line in lines) else 0


def _warn(settings: "Settings", say: Callable[[str, str, str], None]) -> None:
    """What is allowed, but probably not meant; and what the models on disk say."""
    from monitor.calibration import Calibration
    from monitor.errors import ModelRefused
    from monitor.store import ModelStore, verify

    store = ModelStore(settings.store.path)
    if not settings.sinks:
        say("warning", "sinks", "none is written: alerts go nowhere")
    for name, detector in settings.detectors.items():
        at = f"detectors.{name}"
        places = sum(settings.sources[source].max_in_flight for source in detector.inputs)
        if detector.max_batch_size > places:
            say("warning", f"{at}.max_batch_size", f"{detector.max_batch_size} never fill: its sources hand out {places} messages at most")
        for source in detector.inputs:
            window = settings.sources[source].stock_window
            if window is not None and detector.max_batch_size > window:
                text = f"{detector.max_batch_size} never fill from sources.{source}: with its protocol a stock broker hands out {window}"
                say("warning", f"{at}.max_batch_size", f"{text} unsettled messages at most")
        try:
            version = store.current(name)
            if version is None:
                say("warning", at, f"no model yet: its sources hold until `monitor train {name}`")
                continue
            if version.manifest["kind"] != detector.kind:
                say("mistake", at, f"its model {version.id} is of kind {version.manifest['kind']}, not {detector.kind}: `monitor train {name}`")
                continue
            verify(version)
            threshold = Calibration.from_manifest(version.manifest).threshold(detector.false_alarm_probability)
        except ModelRefused as error:
            say("mistake", at, f"{error}; promote another version (monitor models list {name}) or train anew")
            continue
        say("ok", at, f"model {version.id}, threshold {threshold.value:.6g}")
        if threshold.words:
            say("warning", f"{at}.false_alarm_probability", threshold.words)
        trained = version.manifest["options"]
        written = detector.options.model_dump(mode="json", exclude_unset=True)
        for key in [key for key, value in written.items() if value != trained.get(key) and value != "auto"]:
            served = "without it" if trained.get(key) is None else f"with {trained[key]!r}"
            say("warning", f"{at}.options.{key}", f"{written[key]!r} acts at the next training; the model serves {served}")


def _reach(settings: "Settings", say: Callable[[str, str, str], None]) -> None:
    import anyio

    from monitor.reference import load_detector
    from monitor.registry import resolve
    from monitor.store import ModelStore

    outside = [(f"sources.{name}", options) for name, options in settings.sources.items()]
    outside += [(f"sinks.{name}", sink.options) for name, sink in settings.sinks.items()]  # type: ignore[misc]
    outside.append(("dead_letter", settings.dead_letter))  # type: ignore[arg-type]
    for at, options in outside:
        try:
            doubts = anyio.run(resolve(options.probe), options)
            say("ok", at, "reached")
            for doubt in doubts:
                say("warning", at, doubt)
        except MonitorError as error:
            say("mistake", at, str(error))
    for at, folder in (("store.path", settings.store.path), ("daemon.state", settings.daemon.state.parent)):
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
        try:
            tempfile.TemporaryFile(dir=nearest).close()
            say("ok", at, "can be written")
        except OSError as error:
            say("mistake", at, f"{folder} cannot be written: {error.strerror}")
    store = ModelStore(settings.store.path)
    for name, detector in settings.detectors.items():
        at = f"detectors.{name}"
        try:
            version = store.current(name)
            if version is not None:
                loaded = load_detector(version, device=detector.device, precision=detector.precision, report=lambda *_, **__: None)
                say("ok", at, f"model {version.id} repeats its reference scores on {loaded.device} in {loaded.precision}")
        except MonitorError as error:
            say("mistake", at, str(error))
