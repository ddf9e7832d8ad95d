"""monitor models: what is in the model store, and which version serves."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monitor.store import ModelStore
    from monitor.types import ModelVersion

HELP = "list, show, promote and roll back model versions"
EXAMPLE = """\
example:
  monitor models list
  monitor models show bottle_ae
  monitor models promote bottle_ae 20261122T061512Z-1a2b3c4d
  monitor models rollback bottle_ae

A running daemon takes the promoted version within store.poll seconds, or at once on SIGHUP."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser("models", help=HELP, description=HELP, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("list", "show", "promote", "rollback"))
    parser.add_argument("model", nargs="?", metavar="NAME", help="default for list: all")
    parser.add_argument("version", nargs="?", metavar="ID", help="for show (default: the promoted one) and promote")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the answer there too")
    parser.set_defaults(command=execute)


def execute(arguments: argparse.Namespace) -> int:
    import os

    from monitor.commands.answers import write_json
    from monitor.config import load_settings
    from monitor.errors import ConfigError
    from monitor.store import ModelStore

    action, name, version = arguments.action, arguments.model, arguments.version
    settings = load_settings(arguments.config, os.environ)
    store = ModelStore(settings.store.path)
    if name is None and action != "list":
        raise ConfigError(f"models {action}: NAME is missing: expected one of {', '.join(store.names()) or '(no model yet)'}")
    if version is None and action == "promote":
        raise ConfigError(f"models promote {name}: ID is missing: expected one of {', '.join(store.ids(name)) or '(no version yet)'}")
    if version is not None and action in ("list", "rollback"):
        raise ConfigError(f"models {action}: takes no ID, found {version}")
    known = sorted({*settings.detectors, *store.names()})
    if name is not None and name not in known:
        raise ConfigError(f"models {action}: {name}: no such detector: expected one of {', '.join(known)}")
    if version is not None and version not in store.ids(name):
        raise ConfigError(f"models {action} {name}: no version {version}: expected one of {', '.join(store.ids(name)) or '(no version yet)'}")
    if action == "rollback" and len(store.history(name)) < 2:
        raise ConfigError(f"models rollback {name}: no version was promoted before the current one; nothing to roll back to")
    answer: Any
    if action == "list":
        answer = _list(store, name)
    elif action == "show":
        answer = _show(store, name, version)
    else:
        answer = _moved(store.promote(name, version) if action == "promote" else store.rollback(name))
    write_json(arguments.json, answer)
    return 0


def _list(store: "ModelStore", name: str | None) -> list[dict[str, Any]]:
    """A version that is refused is listed with the reason, so that one damaged folder hides no other."""
    from monitor.errors import ModelRefused

    answer: list[dict[str, Any]] = []
    for model in [name] if name is not None else store.names():
        current = store.current_id(model)
        for version in store.ids(model):
            entry: dict[str, Any] = {"model": model, "version": version, "current": version == current}
            try:
                manifest = store.open(model, version).manifest
                entry |= {"kind": manifest["kind"], "trained_on": manifest["trained_on"]["path"], "threshold": manifest["threshold"]["value"]}
            except ModelRefused as error:
                entry["refused"] = str(error)
            answer.append(entry)
    for entry in answer:
        what = entry.get("refused") or f"{entry['kind']}, threshold {entry['threshold']:.6g}, trained on {entry['trained_on']}"
        print(f"{'*' if entry['current'] else ' '} {entry['model']} {entry['version']}  {what}")
    return answer


def _show(store: "ModelStore", name: str, version: str | None) -> dict[str, Any]:
    import json

    from monitor.errors import ConfigError
    from monitor.store import verify

    found = store.open(name, version) if version else store.current(name)
    if found is None:
        raise ConfigError(f"models show {name}: none is promoted: expected an ID, one of {', '.join(store.ids(name)) or '(no version yet)'}")
    verify(found)
    answer: dict[str, Any] = {"manifest": dict(found.manifest), "folder": str(found.folder), "history": store.history(name)}
    shown = {key: value for key, value in found.manifest.items() if key != "calibration"}
    calibration = found.manifest["calibration"]["scores"]
    print(json.dumps({**shown, "calibration": f"{len(calibration)} scores from {calibration[0]:.6g} to {calibration[-1]:.6g}"}, indent=2))
    for entry in answer["history"]:
        print(f"{entry['time']} {entry['action']} {entry['id']}")
    return answer


def _moved(version: "ModelVersion") -> dict[str, Any]:
    print(f"{version.name}: {version.id} is current")
    return {"model": version.name, "version": version.id}
