"""monitor train, evaluate and models, as an operator calls them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with monitor.toml and a small data set."""
    folder = tmp_path_factory.mktemp("plant")
    generator = np.random.default_rng(2)
    for path, count in (("train/good", 14), ("test/good", 3), ("test/broken", 3)):
        for n in range(count):
            image = generator.integers(90, 110, (48, 48, 3)).astype(np.uint8)
            image[:20, :20] += np.uint8(100 if "broken" in path else 0)
            target = folder / "data" / "cup" / path / f"{n:03}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(target), image)
    (folder / "monitor.toml").write_text(
        '[sources.inbox]\nkind = "folder"\npath = "inbox"\n[sinks.alerts]\nkind = "folder"\npath = "alerts"\n'
        '[detectors.cup]\nkind = "fake"\ninputs = ["inbox"]\n[detectors.other]\nkind = "fake"\ninputs = ["inbox"]\n'
    )
    return folder


def monitor(plant: Path, *arguments: str, code: int = 0) -> tuple[str, str]:
    """stdout and stderr of a command that must end with `code`."""
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "monitor", *arguments, "--config", str(plant / "monitor.toml")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120, cwd=plant, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


DATA = ("--data", "data", "--layout", "mvtec", "--category", "cup")


def test_train_evaluate_and_the_store(plant: Path) -> None:
    out, err = monitor(plant, "train", "cup", *DATA, "--preset", "paper", "--seed", "4", "--json", "train.json")
    assert "is published and promoted" in out
    assert "supported 1/" in out
    assert "train 24/24" not in out
    assert "read 14/14" in err
    first = json.loads((plant / "train.json").read_text())
    assert first["options"]["preset"] == "paper"
    monitor(plant, "train", "cup", *DATA, "--json", "train.json")
    second = json.loads((plant / "train.json").read_text())["model_version"]

    out, _ = monitor(plant, "evaluate", "cup", *DATA, "--model-version", first["model_version"], "--report", "report", "--json", "e.json")
    figures = json.loads((plant / "e.json").read_text())
    assert (figures["model_version"], figures["layout"], figures["category"]) == (first["model_version"], "mvtec", "cup")
    assert (figures["image_auroc"], figures["recall"], figures["seed"]) == (1.0, 1.0, 4)
    assert "aupro" not in figures  # no masks
    assert "image_auroc: 1.0" in out
    assert (plant / "report" / "report.html").exists()

    out, _ = monitor(plant, "models", "list", "--json", "models.json")
    assert f"* cup {second}" in out
    assert [entry["current"] for entry in json.loads((plant / "models.json").read_text())] == [False, True]
    out, _ = monitor(plant, "models", "rollback", "cup")
    assert f"{first['model_version']} is current" in out
    monitor(plant, "models", "promote", "cup", second)
    out, _ = monitor(plant, "models", "show", "cup", "--json", "show.json")
    assert json.loads((plant / "show.json").read_text())["manifest"]["id"] == second
    assert "promote" in out

    weights = plant / "var" / "models" / "cup" / first["model_version"] / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    _, err = monitor(plant, "models", "promote", "cup", first["model_version"], code=1)
    assert "was changed after it was published" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "plate", *DATA), "plate: no such detector"),
        (("train", "cup", "--data", "nowhere", "--layout", "mvtec", "--category", "cup"), "found nothing"),
        (("train", "cup", *DATA, "--preset", "huge"), "--preset: "),
        (("train", "cup", *DATA, "--seed", "-1"), "--seed: "),
        (("evaluate", "other", *DATA), "no model is promoted"),
        (("evaluate", "cup", "--data", "data", "--layout", "folder"), "no labelled test split"),
        (("models", "promote"), "NAME is missing"),
        (("models", "promote", "other"), "ID is missing"),
        (("models", "show", "other"), "none is promoted"),
    ],
)
def test_wrong_arguments_exit_2_in_words(plant: Path, arguments: tuple[str, ...], words: str) -> None:
    _, err = monitor(plant, *arguments, code=2)
    assert words in err
    assert "Traceback" not in err
