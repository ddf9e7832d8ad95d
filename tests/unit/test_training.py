"""Training: who learns, who stops, who calibrates; killed and resumed; refused in words."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import soundfile

from fake_detector import FakeDetector, FakeOptions
from monitor.calibration import Calibration
from monitor.errors import BadSample, ConfigError, ModelRefused
from monitor.evaluation.layouts import training_files
from monitor.reference import load_detector
from monitor.store import ModelStore
from monitor.training import Job, Trained, deal, train
from monitor.types import Sample


@pytest.fixture
def normals(tmp_path: Path) -> Path:
    folder = tmp_path / "normals"
    folder.mkdir()
    generator = np.random.default_rng(7)
    for n in range(20):
        noise = generator.integers(90, 110, (40, 48, 3)).astype(np.uint8)
        cv2.imwrite(str(folder / f"{n:03}.png"), noise)
    return folder


def job(normals: Path, seed: int = 1, device: str = "cpu", **options: Any) -> Job:
    return Job(
        name="cup",
        kind="fake",
        options=FakeOptions(**options),
        files=training_files("folder", normals, None),
        seed=seed,
        device=device,
        false_alarm_probability=0.01,
        max_batch_size=4,
    )


def run(job: Job, store: ModelStore, *, resume: bool = False) -> Trained:
    return train(job, store=store, progress=lambda *_: None, report=lambda *_, **__: None, resume=resume)


def test_the_deal_covers_each_once_in_blocks() -> None:
    for n in (10, 11, 48, 209, 300):
        parts = deal(n)
        assert sorted(parts["T"] + parts["E"] + parts["C"]) == list(range(n))
        changes = sum(b != a + 1 for part in parts.values() for a, b in itertools.pairwise(part))
        assert changes <= 5
    assert {part: len(indices) for part, indices in deal(209).items()} == {"T": 126, "E": 21, "C": 62}
    with pytest.raises(ConfigError, match="at least 10 normal samples, found 9"):
        deal(9)


def test_a_trained_model_is_current_complete_and_loads(normals: Path, tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models")
    trained = run(job(normals), store)
    current = store.current("cup")
    assert current is not None
    assert current.id == trained.version.id
    assert trained.threshold.words == "supported 1/7, asked 0.01, 93 more normals needed"
    manifest = current.manifest
    assert manifest["options"]["score"] == "mean"  # as the fit resolved "auto"
    assert [manifest["trained_on"][part]["count"] for part in ("training", "early_stopping", "calibration")] == [12, 2, 6]
    assert [check["precision"] for check in manifest["checks"] if check.get("within")] == ["fp32", "bf16"]
    assert "fp16" in [check["precision"] for check in manifest["checks"] if "absent" in check]
    assert manifest["fit"]["seconds"] > 0
    calibration = Calibration.from_manifest(manifest)
    assert len(calibration.scores) == 6
    assert calibration.threshold(0.01).value == manifest["threshold"]["value"]
    assert calibration.map_threshold(0.01) == manifest["map_threshold"]
    assert sorted(manifest["sha256"]) == ["network.json", "reference.npz", "weights.safetensors"]
    load_detector(current, device="cpu", precision="auto", report=lambda *_, **__: None)
    assert sorted(entry.name for entry in (tmp_path / "training" / "cup").iterdir()) == [".lock"]


def test_the_seed_decides(normals: Path, tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models")
    first, again, other = (run(job(normals, seed=seed), store).version for seed in (1, 1, 2))
    assert first.manifest["sha256"] == again.manifest["sha256"]
    assert first.id.split("-")[1] == again.id.split("-")[1]
    assert first.manifest["sha256"] != other.manifest["sha256"]


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_training import job, run
from monitor.store import ModelStore
run(job(Path(sys.argv[2]), fit_delay=0.03, epochs=5), ModelStore(Path(sys.argv[3])), resume=True)
"""


def steps_in(checkpoint: Path) -> int:
    with np.load(checkpoint) as saved:
        return int(saved["done"])


@pytest.mark.parametrize("steps", [3, 31])
def test_killed_and_resumed_is_the_same_model(normals: Path, tmp_path: Path, steps: int) -> None:
    tests = Path(__file__).parents[1]
    path = os.pathsep.join([str(tests), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", SCRIPT, str(tests / "unit"), str(normals), str(tmp_path / "killed" / "models")]
    checkpoint = tmp_path / "killed" / "training" / "cup" / "fit" / "checkpoint.npz"
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path})
    deadline = time.monotonic() + 60
    while not checkpoint.exists() or steps_in(checkpoint) < steps:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    store = ModelStore(tmp_path / "killed" / "models")
    assert store.current("cup") is None
    resumed = run(job(normals, fit_delay=0.03, epochs=5), store, resume=True).version
    whole = run(job(normals, fit_delay=0.0, epochs=5), ModelStore(tmp_path / "whole" / "models")).version
    assert resumed.manifest["fit"]["resumed_at"] > 0
    assert whole.manifest["fit"]["resumed_at"] == 0
    assert resumed.manifest["sha256"] == whole.manifest["sha256"]
    assert resumed.manifest["calibration"] == whole.manifest["calibration"]


def interrupted(normals: Path, store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A work folder that a training left behind."""
    with monkeypatch.context() as patch:
        patch.setattr("fake_detector.FakeDetector.save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(job(normals), store)
    return store.path.parent / "training" / "cup"


def test_a_resume_that_differs_is_refused(normals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ModelStore(tmp_path / "models")
    folder = interrupted(normals, store, monkeypatch)
    with pytest.raises(ConfigError, match=r"--resume: .* differs: seed was 1, is 2"):
        run(job(normals, seed=2), store, resume=True)
    with pytest.raises(ConfigError, match=r"options\.epochs was 2, is 3"):
        run(job(normals, epochs=3), store, resume=True)
    plan = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps({**plan, "options": {**plan["options"], "removed": 7}}))  # by a release before
    with pytest.raises(ConfigError, match=r"options\.removed was 7, is null"):
        run(job(normals), store, resume=True)
    (folder / "plan.json").write_text(json.dumps(plan))
    (normals / "000.png").write_bytes((normals / "001.png").read_bytes())
    with pytest.raises(ConfigError, match=r"data\.sha256 was"):
        run(job(normals), store, resume=True)
    assert (folder / "fit" / "checkpoint.npz").exists()
    assert run(job(normals), store).version.manifest["fit"]["resumed_at"] == 0  # without --resume what was left is discarded


def test_only_one_training_of_a_name(normals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ModelStore(tmp_path / "models")

    def second(*_: object) -> None:
        with pytest.raises(ConfigError, match="another training of it is running"):
            run(job(normals), store)

    monkeypatch.setattr("fake_detector.FakeDetector.save", second)
    with pytest.raises(FileNotFoundError):
        run(job(normals), store)


def test_a_file_that_is_no_sample_is_named_before_the_fit(normals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fake_detector.FakeDetector.fit", lambda *_, **__: pytest.fail("fitted"))
    (normals / "010.png").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match=r"010\.png"):
        run(job(normals), ModelStore(tmp_path / "models"))


def test_a_sample_that_the_detector_cannot_take_is_named_before_the_fit(normals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(detector: FakeDetector, sample: Sample) -> None:
        if sample.position == "010.png":
            raise BadSample("empty", "it shows no object")

    monkeypatch.setattr("fake_detector.FakeDetector.fit", lambda *_, **__: pytest.fail("fitted"))
    monkeypatch.setattr("fake_detector.FakeDetector.prepare", prepare)
    with pytest.raises(ConfigError, match=r"010\.png: it shows no object"):
        run(job(normals), ModelStore(tmp_path / "models"))


def test_a_lower_rate_than_the_first_clip_s_is_named_before_the_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hums = tmp_path / "hums"
    hums.mkdir()
    for n in range(12):
        rate = {0: 16_000, 3: 48_000, 9: 8_000}.get(n, 16_000)
        soundfile.write(hums / f"{n:02}.wav", np.full(rate, 0.1), rate)
    monkeypatch.setattr("fake_detector.FakeDetector.modality", "sound")
    monkeypatch.setattr("fake_detector.FakeDetector.prepare", lambda *_: None)
    monkeypatch.setattr("fake_detector.FakeDetector.fit", lambda *_, **__: pytest.fail("fitted"))
    with pytest.raises(ConfigError, match=r"09\.wav: sound at 8000 Hz, 00\.wav at 16000 Hz"):
        run(job(hums), ModelStore(tmp_path / "models"))


def test_what_does_not_repeat_is_never_promoted(normals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ModelStore(tmp_path / "models")
    good = run(job(normals), store).version
    written = np.savez_compressed

    def other(path: Path, **arrays: Any) -> None:
        written(path, **{name: array if name == "facts" else array + np.uint8(50) for name, array in arrays.items()})

    monkeypatch.setattr("numpy.savez_compressed", other)
    with pytest.raises(ModelRefused, match="do not repeat"):
        run(job(normals, seed=2), store)
    current = store.current("cup")
    assert current is not None
    assert current.id == good.id
    assert json.loads((store.path / "cup" / "promotions.json").read_text())["log"][-1]["id"] == good.id


def test_a_work_folder_that_cannot_be_made_is_said_in_words(normals: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"store.path: .*training/cup, where the training works, cannot be written: Not a directory"):
        run(job(normals), ModelStore(tmp_path / "file" / "models"))
