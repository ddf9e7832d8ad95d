"""The synthetic machine on disk is laid out as DCASE 2020 is, is the same again by its seed, and says what was planted; the baseline reads it."""

import json
from pathlib import Path

import soundfile

from machines import KINDS, write_machine
from monitor.simulation.hums import HUM_FAULTS, LOUDNESSES


def test_a_tree_is_laid_out_seeded_and_truthful(tmp_path: Path) -> None:
    root = write_machine(tmp_path / "one", machine="pump", train=3, test=len(KINDS), seconds=1.0, seed=4)

    assert root == tmp_path / "one" / "dev_data" / "pump"
    names = {split: sorted(file.name for file in (root / split).iterdir()) for split in ("train", "test")}
    assert names["train"] == [f"normal_id_00_{number:08}.wav" for number in range(3)]
    anomalous = [f"anomaly_id_00_{number:08}.wav" for number in range(len(KINDS))]
    assert names["test"] == anomalous + [f"normal_id_00_{number:08}.wav" for number in range(3, 3 + len(KINDS))]
    for file in root.rglob("*.wav"):
        about = soundfile.info(file)
        assert (about.samplerate, about.channels, about.subtype, about.frames) == (16000, 1, "PCM_16", 16000)

    truth = json.loads((root / "truth.json").read_text())
    assert sorted(truth) == anomalous
    assert {(one["fault"], one["loudness"]) for one in truth.values()} == {(fault, loudness) for fault in HUM_FAULTS for loudness in LOUDNESSES}
    assert all(0 <= one["start"] < one["end"] <= 1 and 0 < one["low"] < one["high"] < 8000 for one in truth.values())

    longer = write_machine(tmp_path / "longer", machine="pump", train=5, test=1, seconds=1.0, seed=4)
    other = write_machine(tmp_path / "other", machine="pump", train=3, test=1, seconds=1.0, seed=5)
    first, planted = "train/normal_id_00_00000000.wav", "test/anomaly_id_00_00000000.wav"
    for name in (first, planted):
        assert (root / name).read_bytes() == (longer / name).read_bytes() != (other / name).read_bytes()
    clips = {file.read_bytes() for file in root.rglob("*.wav")}
    assert len(clips) == 3 + 2 * len(KINDS), "no clip to train on is among those to test"
