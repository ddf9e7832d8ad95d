"""A model of the fake listener in a store, and what it says of clips that were never cut."""

from collections.abc import Sequence
from pathlib import Path

from fake_listener import ListenerOptions
from monitor.evaluation.layouts import training_files
from monitor.reference import load_detector
from monitor.store import ModelStore
from monitor.training import Job, train
from monitor.types import FloatArray, Sample
from recordings import RATE, noise, wav


def write_normals(folder: Path, suffix: str, payloads: Sequence[bytes]) -> None:
    folder.mkdir()
    for number, payload in enumerate(payloads):
        (folder / f"{number}{suffix}").write_bytes(payload)


def train_listener(home: Path, options: ListenerOptions) -> Path:
    """A store with a model of the detector `fan`."""
    write_normals(home / "normals", ".wav", [wav(noise(10_000 + number, 10)) for number in range(10)])
    files = training_files("folder", home / "normals", None)
    job = Job(name="fan", kind="listener", options=options, files=files, seed=0, device="cpu", false_alarm_probability=0.01, max_batch_size=4)
    train(job, store=ModelStore(home / "models"), progress=lambda *_: None, report=lambda *_, **__: None)
    return home / "models"


def undivided(store: ModelStore, recording: FloatArray) -> list[float]:
    """The score of each ten seconds as a clip of its own, as events say it."""
    version = store.current("fan")
    assert version is not None
    fan = load_detector(version, device="cpu", precision="fp32", report=lambda *_, **__: None)
    scores = []
    for begin in range(0, recording.shape[1], 10 * RATE):
        clip = recording[:, begin : begin + 10 * RATE]
        sample = Sample(source="", topic="", position="", stream="", captured=0.0, received=0.0, waveform=clip, rate=RATE)
        scores.append(float(fan.score(fan.stack([sample], [fan.prepare(sample)])).values[0]))
    return scores
