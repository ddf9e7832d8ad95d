"""What train, evaluate and models share: their detector's settings, and their answer for machines."""

import json
import os
from pathlib import Path
from typing import Any

from monitor.config import load_settings
from monitor.errors import ConfigError
from monitor.settings import DetectorSettings, Settings


def detector_settings(config: Path, name: str) -> tuple[Settings, DetectorSettings]:
    """Raises ConfigError for a bad file and for a detector that is not in it."""
    settings = load_settings(config, os.environ)
    if name not in settings.detectors:
        raise ConfigError(f"{name}: no such detector in {config}: expected one of {', '.join(settings.detectors)}")
    return settings, settings.detectors[name]


def check_json(path: Path | None) -> None:
    """Before the work begins: raises ConfigError where `write_json` would."""
    if path is None:
        return
    there = path.exists()
    try:
        path.open("ab").close()
    except OSError as error:
        raise ConfigError(f"--json: {path}: {error.strerror}") from error
    if not there:
        path.unlink()


def write_json(path: Path | None, answer: Any) -> None:
    """Write what was printed, for `--json FILE`. Raises ConfigError where the file cannot be written."""
    if path is None:
        return
    try:
        path.write_text(json.dumps(answer, indent=2, allow_nan=False) + "\n", "utf-8")
    except OSError as error:
        raise ConfigError(f"--json: {path}: {error.strerror}") from error


def make_folder(argument: str, folder: Path) -> None:
    """For an output that an argument names, before the work begins. Raises ConfigError where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{argument}: {folder}: {error.strerror}") from error
