"""Clips on disk -> figures, csv files, spectrograms and report.html, with a small detector of sound."""

import csv
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import soundfile
from sklearn.metrics import roc_auc_score

from evaluated import evaluated, quiet
from fake_detector import FakeDetector, FakeOptions
from fake_ear import FakeEarOptions
from monitor.errors import ConfigError
from monitor.evaluation.drawing import write_curves
from monitor.evaluation.evaluate import Evaluation, evaluate
from monitor.evaluation.layouts import labelled_files
from monitor.evaluation.report import write_report
from monitor.evaluation.spectrogram import framed, spectrogram
from monitor.types import Axes, Sample

TESTS = Path(__file__).parents[1]
RATE = 4000


def clip(path: Path, random: np.random.Generator, *, hiss: bool) -> None:
    """2 s of noise; an anomalous one whistles at 1.1 kHz in its second half second."""
    waveform = 0.01 * random.normal(size=2 * RATE)
    if hiss:
        waveform[RATE // 2 : RATE] += 0.05 * np.sin(2 * np.pi * 1100 * np.arange(RATE // 2) / RATE)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, waveform, RATE, subtype="PCM_16")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two machines in dev_data/fan, and two sections with two domains in dev_data/gearbox."""
    root, random = tmp_path_factory.mktemp("clips"), np.random.default_rng(3)
    fan, gearbox = root / "dev_data" / "fan", root / "dev_data" / "gearbox"
    for machine in ("00", "02"):
        for number in range(8):
            clip(fan / "train" / f"normal_id_{machine}_{number:08}.wav", random, hiss=False)
        for number in range(3):
            clip(fan / "test" / f"normal_id_{machine}_{number:08}.wav", random, hiss=False)
            clip(fan / "test" / f"anomaly_id_{machine}_{number:08}.wav", random, hiss=number > 0)  # the first cannot be found
    for section, domain in (("00", "source"), ("00", "target"), ("01", "source"), ("01", "target")):
        for number in range(4):
            clip(gearbox / "train" / f"section_{section}_{domain}_train_normal_{number:04}_volt_1.0.wav", random, hiss=False)
        for number in range(2):
            clip(gearbox / "test" / f"section_{section}_{domain}_test_normal_{number:04}_volt_1.0.wav", random, hiss=False)
            clip(gearbox / "test" / f"section_{section}_{domain}_test_anomaly_{number:04}_volt_1.0.wav", random, hiss=True)
    return root


@pytest.fixture(scope="module")
def fan(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    return evaluated("fake_ear", FakeEarOptions(), clips, "dcase2020", "fan", folder=tmp_path_factory.mktemp("fan"), false_alarm_probability=0.2)


@pytest.fixture(scope="module")
def report(fan: Evaluation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "report"
    write_report(fan, {**fan.figures(), "layout": "dcase2020", "category": "fan"}, folder, quiet)
    return folder


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as opened:
        return list(csv.DictReader(opened))


def test_the_figures_are_those_of_the_contract(fan: Evaluation) -> None:
    figures = fan.figures()
    expected = "detector kind model_version seed n_normal n_anomalous auc pauc ids summary threshold recall label_free oracle scores"
    assert set(expected.split()) | {"false_alarm_rate", "train_seconds", "samples_per_second", "device"} <= figures.keys()
    assert not any(name.startswith("image_") for name in figures)
    assert (figures["n_normal"], figures["n_anomalous"]) == (6, 6)
    assert set(figures["ids"]) == {"id_00", "id_02"}
    here = np.array([one.group == "id_02" for one in fan.labelled.clips or ()])
    assert figures["ids"]["id_02"]["auc"] == pytest.approx(roc_auc_score(fan.labelled.anomalous[here], fan.scores[here]))
    assert figures["doubt"] == "pAUC rests on the single strangest of 3 normal clips"
    assert figures["label_free"]["score"] == "mean"
    assert set(figures["scores"]) == {"mean", "largest", "level"}
    json.dumps(figures, allow_nan=False)


def test_the_report_is_whole_and_needs_no_other_file(fan: Evaluation, report: Path) -> None:
    page = (report / "report.html").read_text()
    assert "$" not in re.sub(r"data:image/[a-z]+;base64,[A-Za-z0-9+/=]+", "", page)
    links = re.findall(r'(?:src|href)="([^"]{0,40})', page)
    assert len(links) == 3 + 12
    assert all(link.startswith("data:image/") for link in links)
    words = re.sub(r"<[^>]+>", " ", page)
    for said in ("serves (label-free)", "oracle", "id_02 anomaly", "Mean pAUC", "single strangest of 3 normal clips", "one scale for all samples"):
        assert said in words
    assert "Image AUROC" not in words
    assert {path.name for path in report.iterdir()} == {
        "anomaly_score_fan_id_00.csv",
        "anomaly_score_fan_id_02.csv",
        "result.csv",
        "scores.csv",
        "roc.png",
        "pr.png",
        "histograms.png",
        "maps",
        "overlays",
        "report.html",
    }
    rows = table(report / "scores.csv")
    assert [np.float32(row["score"]) for row in rows] == fan.scores.tolist()
    assert rows[0] | {"file": "test/anomaly_id_00_00000000.wav", "id": "00", "condition": "anomaly", "anomalous": "1"} == rows[0]
    assert (rows[-1]["id"], rows[-1]["condition"]) == ("02", "normal")


def test_maps_lie_where_the_fault_is(report: Path) -> None:
    heat = cv2.imread(str(report / "maps" / "anomaly" / "anomaly_id_00_00000001.png"), cv2.IMREAD_UNCHANGED)
    assert heat is not None
    assert (heat.shape, heat.dtype) == ((16, 20), np.uint16)
    found = heat > 32768  # above the map threshold
    assert found[6, 5:10].all()  # 1080 to 1200 of 1920 Hz, 0.5 to 1 s
    assert found.sum() == 5
    overlays = sorted((report / "overlays").rglob("*.jpg"))
    assert len(overlays) == 12
    drawn = cv2.imread(str(report / "overlays" / "anomaly" / "anomaly_id_00_00000001.jpg"))
    assert drawn is not None
    coloured = np.ptp(drawn.astype(int), axis=2) > 60
    rows, columns = np.flatnonzero(coloured.any(axis=1)), np.flatnonzero(coloured.any(axis=0))
    height, width = coloured.shape
    assert rows[0] > height / 2  # the spectrogram above is grey, the one below it under its heat
    assert 0.25 < columns[0] / width < columns[-1] / width < 0.65


def test_sections_and_domains(clips: Path, tmp_path: Path) -> None:
    evaluation = evaluated("fake_ear", FakeEarOptions(maps=False), clips, "dcase2022", "gearbox", folder=tmp_path, false_alarm_probability=0.2)
    figures = evaluation.figures()
    assert set(figures["sections"]["section_01"]) >= {"auc_source", "auc_target", "pauc", "n_normal_source", "n_anomalous_target"}
    assert {"auc_source", "auc_target", "pauc", "summary"} == figures["label_free"].keys() - {"score"}
    facts = {**figures, "layout": "dcase2022", "category": "gearbox"}
    words = re.sub(r"<[^>]+>", " ", write_report(evaluation, facts, tmp_path / "report", quiet).read_text())
    assert "Harmonic mean of all" in words
    assert "section_01 target normal" in words
    assert not (tmp_path / "report" / "maps").exists()
    assert (tmp_path / "report" / "anomaly_score_gearbox_section_01_test.csv").exists()
    row = table(tmp_path / "report" / "scores.csv")[0]
    assert (row["section"], row["domain"], row["condition"]) == ("00", "source", "anomaly")


def test_histograms_of_many_scores_stay_on_a_page(fan: Evaluation, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    named = dict(fan.named) | {f"G_z_cos_{index}": random.normal(size=12).astype(np.float32) for index in range(16)}
    *_, path = write_curves(replace(fan, named=named), tmp_path)
    drawn = cv2.imread(str(path))
    assert drawn is not None
    height, width = drawn.shape[:2]
    assert width <= 1600
    assert height <= 1500


def test_sound_and_images_are_not_mixed_up(fan: Evaluation, clips: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is one of sound, but fan looks at image"):
        evaluate(
            FakeDetector(FakeOptions()),
            fan.version,
            labelled_files("dcase2020", clips, "fan"),
            false_alarm_probability=0.2,
            max_batch_size=4,
            folder=tmp_path,
            progress=quiet,
        )


def tone(hertz: float, rate: int = 16_000, seconds: float = 2.0, channels: int = 2) -> Sample:
    waveform = np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate).astype(np.float32)
    waveform[: len(waveform) // 2] = 0
    both = np.broadcast_to(waveform, (channels, len(waveform)))
    return Sample(source="s", topic="t", position="1", stream="x", captured=0, received=0, waveform=both, rate=rate)


@pytest.mark.parametrize(("hertz", "rate"), [(440, 16_000), (3000, 16_000), (150, 1000), (9000, 44_100)])
def test_a_spectrogram_shows_pitch_over_time(hertz: float, rate: int) -> None:
    spectrum = spectrogram(tone(hertz, rate))
    loud = spectrum.pixels[..., 0]
    column = loud[:, int(np.searchsorted(spectrum.seconds, 1.5))]
    assert np.mean(spectrum.hertz[column == column.max()]) == pytest.approx(hertz, rel=0.06)
    assert column.max() > 250
    assert loud[:, spectrum.seconds < 0.9].max() == 0
    assert (np.diff(spectrum.hertz) < 0).all()
    assert loud.shape[1] <= 641


def test_a_long_clip_and_a_silent_one_can_be_drawn() -> None:
    assert spectrogram(tone(440, 8000, seconds=120.0)).pixels.shape[1] <= 641
    silent = spectrogram(tone(0, seconds=0.01))
    assert framed(silent, silent.pixels).ndim == 3


def test_a_map_is_spread_over_its_axes() -> None:
    spectrum = spectrogram(tone(440))
    axes = Axes(seconds=np.array([0.5, 1.0, 1.5], np.float32), hertz=np.array([4000, 1000, 100], np.float32))
    spread = spectrum.spread(np.array([[0.1, 0.2], [0.3, 0.4]], np.float32), axes)

    def at(hertz: float, seconds: float) -> float:
        return float(spread[int(np.abs(spectrum.hertz - hertz).argmin()), int(np.abs(spectrum.seconds - seconds).argmin())])

    assert [at(2000, 0.75), at(2000, 1.25), at(500, 0.75), at(500, 1.25)] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert [at(6000, 0.75), at(50, 0.75), at(500, 0.25), at(500, 1.75)] == [0, 0, 0, 0]


def test_as_an_operator_calls_it(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "monitor.toml").write_text(
        '[sources.inbox]\nkind = "folder"\npath = "inbox"\n[sinks.alerts]\nkind = "folder"\npath = "alerts"\n'
        '[detectors.fan]\nkind = "fake_ear"\ninputs = ["inbox"]\n'
    )
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])

    def monitor(*arguments: str) -> str:
        command = [sys.executable, "-m", "monitor", *arguments, "--data", str(clips), "--layout", "dcase2020", "--category", "fan"]
        environment = {**os.environ, "PYTHONPATH": path}
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "is published and promoted" in monitor("train", "fan")
    out = monitor("evaluate", "fan", "--report", "report", "--json", "e.json")
    figures = json.loads((tmp_path / "e.json").read_text())
    assert (figures["layout"], figures["category"], figures["seed"]) == ("dcase2020", "fan", 0)
    assert f"auc: {figures['auc']}" in out
    assert re.search(r"^id_00: auc 0\.\d+, pauc .*, n_normal 3, n_anomalous 3$", out, re.MULTILINE)
    assert re.search(r"^score mean .*<- serves \(label-free\)", out, re.MULTILINE)
    assert out.count("<- oracle") == 1
    assert (tmp_path / "report" / "result.csv").exists()
