"""AEGAN-AD as a detector: its options, its scaling, its maps, what sounds it takes, and what a model's folder decides."""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

import detectors.synthesis
from detectors.aegan_ad.detector import SHORTEST, AeganAd, resolved
from detectors.aegan_ad.model import MOST_WINDOWS, AeganAdModel, blocks, read_model, starts
from detectors.aegan_ad.options import MACHINES, PRESETS, SCORES, AeganAdOptions, MachineSettings
from detectors.aegan_ad.synthesis import KINDS, fault
from detectors.heatmap import smooth
from monitor.errors import BadSample, ConfigError, ModelRefused
from monitor.types import FloatArray, Sample, Scores

RATE, LENGTH = 2000, 70_000  # 137 frames
SMALL: dict[str, Any] = {"width": 4, "epochs": 1, "batch_size": 6, "stride": 128, "scoring_stride": 4, "preset": "paper", "smoothing": 0.0}


@pytest.fixture(scope="module", autouse=True)
def _short() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detectors.synthesis, "DEFECTS", 20)
        yield
    torch.set_num_threads(threads)


def silent(phase: str, step: int, steps: int, figures: Mapping[str, float]) -> None:
    pass


def hum(seed: int, samples: int = LENGTH) -> FloatArray:
    """(samples,) at RATE: harmonics of 50 Hz and noise."""
    random = np.random.default_rng(seed)
    seconds = np.arange(samples) / RATE
    tones = [np.sin(2 * np.pi * 50 * k * seconds + random.uniform(0, 6)) / k for k in (1, 2, 3, 5, 8)]
    return np.asarray(0.1 * (random.uniform(0.7, 1) * np.sum(tones, axis=0) + random.normal(0, 0.1, samples)), np.float32)


def sample(waveform: FloatArray | None, rate: int | None = RATE, position: str = "p") -> Sample:
    return Sample(
        source="s",
        topic="t",
        position=position,
        stream="x",
        captured=0.0,
        received=0.0,
        waveform=None if waveform is None else np.atleast_2d(waveform),
        rate=rate,
    )


TRAINING, HELD_OUT = [sample(hum(index)) for index in range(8)], [sample(hum(100 + index)) for index in range(3)]


def fit(folder: Path, training: list[Sample] = TRAINING, held_out: list[Sample] = HELD_OUT, **options: Any) -> tuple[AeganAd, Mapping[str, Any]]:
    detector = AeganAd(AeganAdOptions(**(SMALL | options)))
    told = detector.fit(training, held_out, folder / "work", seed=1, device="cpu", progress=silent)
    detector.save(folder / "model")
    return detector, told


def loaded(folder: Path, precision: str = "fp32", **options: Any) -> AeganAd:
    detector = AeganAd(AeganAdOptions(**options))
    detector.load(folder, device="cpu", precision=precision)
    return detector


def score(detector: AeganAd, *samples: Sample, every: bool = True) -> Scores:
    return detector.score(detector.stack(samples, [detector.prepare(one) for one in samples]), every=every)


@dataclass(frozen=True)
class Trained:
    detector: AeganAd
    folder: Path
    told: Mapping[str, Any]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    detector, told = fit(folder)
    return Trained(detector, folder / "model", told)


@pytest.fixture(scope="module")
def model(trained: Trained) -> AeganAdModel:
    return read_model(trained.folder).eval()


# options


def test_machines_are_those_of_the_published_results() -> None:
    """data set, machine -> G norm, first norm, w, deviations, beta1, epochs."""
    published = {
        "dcase2020_fan": ("layer", True, 1, False, 0.5, 50),
        "dcase2020_pump": ("layer", True, 1, True, 0.5, 50),
        "dcase2020_slider": ("batch", True, 1, False, 0.5, 50),
        "dcase2020_toycar": ("layer", True, 1, True, 0.5, 50),
        "dcase2020_toyconveyor": ("layer", True, 0.05, False, 0.5, 50),
        "dcase2020_valve": ("batch", True, 0.05, False, 0.5, 50),
        "dcase2022_bearing": ("layer", False, 0.1, False, 0.5, 60),
        "dcase2022_fan": ("layer", False, 0.1, False, 0.5, 60),
        "dcase2022_gearbox": ("batch", True, 0.1, True, 0.5, 60),
        "dcase2022_slider": ("layer", True, 0.1, False, 0.5, 60),
        "dcase2022_toycar": ("layer", False, 0.1, False, 0.0, 60),
    }
    fields = ("norm", "first_norm", "feature_weight", "match_deviation", "beta1", "epochs")
    assert {name: MachineSettings(**dict(zip(fields, row, strict=True))) for name, row in published.items()} == MACHINES  # type: ignore[arg-type]


def test_paper_is_the_published_training() -> None:
    paper = resolved(AeganAdOptions(preset="paper"))
    assert (paper.width, paper.stride, paper.scoring_stride, paper.batch_size, paper.mixed_precision) == (32, 1, 1, 512, False)
    assert paper.epochs is None  # the machine's
    assert paper.patience >= max(machine.epochs for machine in MACHINES.values())  # never ends before


def test_what_options_say_outweighs_the_preset() -> None:
    assert resolved(AeganAdOptions()) == PRESETS["cpu"]
    found = resolved(AeganAdOptions(preset="paper", width=8, stride=5, epochs=7, patience=3, batch_size=9, scoring_stride=6))
    assert found == replace(PRESETS["paper"], width=8, stride=5, epochs=7, patience=3, batch_size=9, scoring_stride=6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"machine": "dcase2020_dishwasher"},
        {"score": "G_x_cos_sum"},
        {"width": 3},
        {"scoring_stride": 129},
        {"stride": 0},
        {"map": "gradient"},
        {"threshold": 1},
        {"hop_seconds": 0},
        {"batch_size": 1},
    ],
)
def test_what_cannot_work_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AeganAdOptions(**wrong)


def test_an_unknown_score_is_one_mistake() -> None:
    with pytest.raises(ValidationError) as refused:
        AeganAdOptions(score="G_x_3")  # type: ignore[arg-type]
    assert [mistake["loc"] for mistake in refused.value.errors()] == [("score",)]


@pytest.mark.parametrize("machine", ["dcase2022_toycar", "dcase2022_gearbox"])
def test_the_machine_s_settings_reach_the_training(tmp_path: Path, machine: str) -> None:
    detector, told = fit(tmp_path, machine=machine)
    options, wanted = told["options"], MACHINES[machine]  # type: ignore[index]
    for name in ("norm", "first_norm", "feature_weight", "match_deviation", "beta1"):
        assert options[name] == getattr(wanted, name)
    assert detector._model is not None
    norms = [type(layer).__name__ for layer in detector._model.generator.encoder]
    assert norms.count("BatchNorm2d" if wanted.norm == "batch" else "WholeNorm") == 4 + wanted.first_norm


# training


def test_training_clips_lie_in_minus_1_to_1(model: AeganAdModel) -> None:
    scaled = [model.scaled(model.log_mel(torch.from_numpy(one.waveform))) for one in TRAINING if one.waveform is not None]
    assert min(float(one.min()) for one in scaled) == pytest.approx(-1, abs=1e-5)
    assert max(float(one.max()) for one in scaled) == pytest.approx(1, abs=1e-5)
    louder = model.scaled(model.log_mel(torch.from_numpy(hum(0)[None] * 10)))
    assert louder.max() > 1  # not clipped


def test_what_it_remembers_of_the_training_clips(model: AeganAdModel) -> None:
    scaled = [model.scaled(model.log_mel(torch.from_numpy(one.waveform)))[0] for one in TRAINING if one.waveform is not None]
    expected = torch.cat(scaled, dim=1).mean(dim=1)  # they are equally long
    torch.testing.assert_close(model.reference, expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        windows = torch.stack([scaled[3][:, start : start + 128] for start in (0, 4, 8, 9)])[:, None]
        embedding = model.critic.embed(windows).mean(dim=0)
    torch.testing.assert_close(model.embeddings[3], embedding, rtol=1e-4, atol=1e-6)


def test_the_manifest_tells_what_was_resolved(trained: Trained) -> None:
    told = trained.told
    assert told["options"] | {"samples": LENGTH, "rate": RATE, "width": 4, "hop_seconds": LENGTH / RATE} == told["options"]
    assert told["options"]["score"] == max(told["synthetic_auroc"], key=told["synthetic_auroc"].get)
    assert tuple(told["synthetic_auroc"]) == SCORES
    assert told["covariance"] == "shrunk"
    assert (told["segment_seconds"], told["shortest_seconds"]) == (LENGTH / RATE, SHORTEST / RATE)


@pytest.mark.parametrize(
    ("training", "held_out", "words"),
    [
        (TRAINING[:4], HELD_OUT, "4 training and 3 held-out clips: expected at least 5 and 1"),
        (TRAINING, [], "8 training and 0 held-out"),
        ([sample(np.zeros(LENGTH, np.float32))] * 6, HELD_OUT, "nothing to hear"),
        ([*TRAINING[:5], sample(hum(1)[: SHORTEST - 1], position="brief.wav")], HELD_OUT, "brief.wav: 32.5 s of sound; one window .* 32.5 s"),
        (TRAINING, [sample(hum(1)[:5000], position="brief.wav")], "brief.wav: 2.5 s of sound"),
        ([*TRAINING[:5], sample(hum(1), rate=RATE - 1, position="dull.wav")], HELD_OUT, "dull.wav: sound at 1999 Hz"),
        ([TRAINING[0]] * 6, HELD_OUT, "all alike"),
    ],
)
def test_clips_that_nothing_can_be_learnt_from_are_named(training: list[Sample], held_out: list[Sample], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        fit(tmp_path, training, held_out)


# synthetic faults


def test_synthetic_faults_are_seeded_as_long_as_the_clip_and_heard() -> None:
    clip = hum(1, 20_000)
    changed = []
    for seed in range(40):
        found = fault(clip, RATE, np.random.default_rng(seed))
        np.testing.assert_array_equal(found, fault(clip, RATE, np.random.default_rng(seed)))
        assert found.shape == clip.shape
        assert found.dtype == np.float32
        assert np.isfinite(found).all()
        changed.append(not np.array_equal(found, clip))
    assert all(changed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", [1.0, 0.0])
def test_every_kind_of_fault_comes_out_finite_also_on_silence(kind: str, level: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detectors.aegan_ad.synthesis.KINDS", (kind,))
    clip = np.float32(level) * hum(2, 20_000)
    for seed in range(5):
        found = fault(clip, RATE, np.random.default_rng(seed))
        assert np.isfinite(found).all()
        assert found.shape == clip.shape
        assert (level > 0) == (not np.array_equal(found, clip))


# windows and maps


@pytest.mark.parametrize(
    ("frames", "stride", "expected"),
    [(128, 1, [0]), (128, 32, [0]), (129, 32, [0, 1]), (160, 32, [0, 32]), (161, 32, [0, 32, 33]), (313, 64, [0, 64, 128, 185])],
)
def test_the_last_window_ends_where_the_clip_ends(frames: int, stride: int, expected: list[int]) -> None:
    assert starts(frames, stride).tolist() == expected


def test_with_stride_1_there_are_the_186_windows_of_the_paper() -> None:
    assert starts(313, 1).tolist() == list(range(186))


def test_windows_come_some_at_a_time_and_are_all_there() -> None:
    spectra = torch.rand(2, 128, 200)
    seen = []
    for at, windows in blocks(spectra, 1):
        assert len(windows) == 2 * len(at) <= MOST_WINDOWS
        for clip in (0, 1):
            for place, start in enumerate(at.tolist()):
                assert torch.equal(windows[clip * len(at) + place, 0], spectra[clip, :, start : start + 128])
        seen += at.tolist()
    assert seen == list(range(73))


def denoised(model: AeganAdModel, spectrum: Tensor, stride: int) -> Tensor:
    """(128, T) -> each column the mean of that column over the windows that show it, one by one."""
    sums, counts = torch.zeros_like(spectrum), torch.zeros(spectrum.shape[1])
    for start in starts(spectrum.shape[1], stride).tolist():
        with torch.no_grad():
            rebuilt = model.generator(spectrum[None, None, :, start : start + 128])[0, 0]
        for column in range(128):
            sums[:, start + column] += rebuilt[:, column]
            counts[start + column] += 1
    return sums / counts


@pytest.mark.parametrize("map_", ["reference", "reconstruction"])
def test_maps_are_the_obvious_ones_with_high_pitch_at_the_top(model: AeganAdModel, map_: str) -> None:
    before, clips = model.settings, torch.from_numpy(np.stack([hum(7), hum(8)]))
    model.settings = replace(before, map=map_, scoring_stride=5)  # type: ignore[arg-type]
    try:
        _, found = model.figures(clips)
    finally:
        model.settings = before
    assert found is not None
    for one, clip in zip(found, clips, strict=True):
        spectrum = model.scaled(model.log_mel(clip[None]))[0]
        clean = denoised(model, spectrum, 5)
        if map_ == "reference":
            expected = ((clean + 1) / 2 - (model.reference[:, None] + 1) / 2).abs()
        else:
            expected = (clean - spectrum).abs() / model.usual_error[:, None]
            expected[:, :2], expected[:, -2:] = expected[:, 2:3], expected[:, -3:-2]  # they reach beyond the clip
        np.testing.assert_allclose(one[::-1], expected.numpy(), rtol=1e-3, atol=1e-4)


def test_the_usual_error_of_a_band_is_that_of_the_training_clips(model: AeganAdModel) -> None:
    spectra = [model.scaled(model.log_mel(torch.from_numpy(one.waveform)))[0] for one in TRAINING if one.waveform is not None]
    errors = [(denoised(model, spectrum, 4) - spectrum).abs().mean(dim=1) for spectrum in spectra]
    torch.testing.assert_close(model.usual_error, torch.stack(errors).mean(dim=0), rtol=1e-3, atol=1e-5)


def test_a_loud_tone_stands_out_of_the_map_where_it_sounds(trained: Trained) -> None:
    waveform = hum(300)
    begin, end, hertz = 20_000, 50_000, 730.0
    waveform[begin:end] += 0.4 * np.sin(2 * np.pi * hertz * np.arange(end - begin) / RATE).astype(np.float32)
    detector = loaded(trained.folder)
    found, usual = score(detector, sample(waveform)), score(detector, sample(hum(300)))
    assert found.maps is not None
    assert usual.maps is not None
    assert found.axes is not None
    axes = found.axes[0]
    risen = found.maps[0] - usual.maps[0]
    row, column = np.unravel_index(risen.argmax(), risen.shape)
    assert axes.hertz[row + 1] - 40 <= hertz <= axes.hertz[row] + 40
    assert begin / RATE - 0.5 <= axes.seconds[column + 1]
    assert axes.seconds[column] <= end / RATE + 0.5
    heard = (axes.seconds[1:] > begin / RATE + 1) & (axes.seconds[:-1] < end / RATE - 1)
    band = int(np.flatnonzero(axes.hertz[:-1] >= hertz)[-1])
    assert found.maps[0][band, heard].mean() > 2 * usual.maps[0][band, heard].mean()
    assert risen[band, heard].mean() > 5 * np.abs(risen[:, ~heard]).mean()


def test_smoothing_acts(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.folder, tmp_path / "model")
    rewrite(tmp_path / "model", smoothing=2.0)
    soft, sharp = score(loaded(tmp_path / "model"), sample(hum(9))).maps, score(loaded(trained.folder), sample(hum(9))).maps
    assert soft is not None
    assert sharp is not None
    np.testing.assert_allclose(soft[0], smooth(torch.from_numpy(sharp[0].copy())[None], 2.0)[0].numpy(), rtol=1e-3, atol=1e-4)


# scoring


def test_saved_and_loaded_it_scores_as_after_the_fit(trained: Trained, model: AeganAdModel) -> None:
    assert trained.detector._model is not None
    clip = torch.from_numpy(hum(400))[None]
    expected, drawn = trained.detector._model.figures(clip)
    found = score(loaded(trained.folder), sample(hum(400)))
    assert drawn is not None
    assert found.maps is not None
    assert set(found.named) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found.named[name], values, rtol=1e-3, atol=1e-7, err_msg=name)
    np.testing.assert_allclose(found.maps[0], drawn[0], rtol=1e-3, atol=1e-4)
    again, _ = model.figures(clip)
    for name, values in expected.items():
        np.testing.assert_allclose(again[name], values, rtol=1e-5, atol=1e-9, err_msg=name)


def test_the_chosen_score_serves(trained: Trained, tmp_path: Path) -> None:
    for name in ("G_x_1_max", "D_maha", "G_z_cos_min"):
        folder = tmp_path / name
        shutil.copytree(trained.folder, folder)
        rewrite(folder, score=name)
        found = score(loaded(folder), sample(hum(5)), sample(hum(6)))
        np.testing.assert_array_equal(found.values, found.named[name])
        np.testing.assert_allclose(score(loaded(folder), sample(hum(5)), sample(hum(6)), every=False).values, found.values, rtol=1e-5)


def test_lengths_channels_and_higher_rates_are_scored_together(trained: Trained) -> None:
    detector, whole = loaded(trained.folder), hum(11)
    stereo = np.stack([1.5 * whole, 0.5 * whole])  # whose mean is the same
    samples = [sample(whole), sample(stereo), sample(whole[:SHORTEST]), sample(np.tile(whole, 2)), sample(np.repeat(whole, 4), rate=4 * RATE)]
    found = score(detector, *samples)
    np.testing.assert_allclose(found.values[1], found.values[0], rtol=1e-3)
    assert found.maps is not None
    assert [map_.shape for map_ in found.maps] == [(128, frames) for frames in (137, 137, 128, 274, 137)]
    for index, one in enumerate(samples):
        alone = score(detector, one)
        for name, values in alone.named.items():
            np.testing.assert_allclose(found.named[name][index], values[0], rtol=1e-3, atol=1e-7, err_msg=name)


def test_what_is_too_short_or_too_dull_is_a_bad_sample(trained: Trained) -> None:
    detector = loaded(trained.folder)
    with pytest.raises(BadSample, match=r"2.5 s of sound; one window of the network is 32.5 s"):
        detector.prepare(sample(hum(1)[:5000]))
    with pytest.raises(BadSample, match="at 1999 Hz"):
        detector.prepare(sample(hum(1), rate=1999))
    with pytest.raises(BadSample, match="sound is needed"):
        detector.prepare(sample(None, None))


def test_how_recordings_are_cut(trained: Trained, tmp_path: Path) -> None:
    assert AeganAd(AeganAdOptions()).segmentation is None
    cut = loaded(trained.folder).segmentation
    assert cut is not None
    assert (cut.length, cut.hop, cut.shortest) == (LENGTH / RATE, LENGTH / RATE, SHORTEST / RATE)
    _, told = fit(tmp_path, hop_seconds=7.5)
    cut = loaded(tmp_path / "model").segmentation
    assert cut is not None
    assert (cut.length, cut.hop) == (LENGTH / RATE, 7.5)
    assert told["options"]["hop_seconds"] == 7.5


@pytest.mark.parametrize(("broken", "kept"), [("generator", ("D_",)), ("critic", ("G_", "R_"))])
def test_a_broken_network_scores_nan(trained: Trained, tmp_path: Path, broken: str, kept: tuple[str, ...]) -> None:
    shutil.copytree(trained.folder, tmp_path / "model")
    weights = load_file(tmp_path / "model" / "weights.safetensors")
    changed = {name: torch.full_like(value, torch.nan) if name.startswith(broken) else value for name, value in weights.items()}
    save_file(changed, tmp_path / "model" / "weights.safetensors")
    for precision in ("fp32", "bf16"):
        for name, values in score(loaded(tmp_path / "model", precision), sample(hum(5))).named.items():
            assert np.isfinite(values).all() == name.startswith(kept), name


# folders


def rewrite(folder: Path, **changed: Any) -> None:
    path = folder / "detector.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


@pytest.mark.parametrize(
    "changed",
    [
        {"kind": "ast"},
        {"format": 2},
        {"width": 8},
        {"width": 10**6},
        {"norm": "group"},
        {"norm": "batch"},
        {"score": "best"},
        {"map": "x"},
        {"scoring_stride": 0},
        {"clips": 9},
        {"clips": 10**12},
        {"new": 1},
    ],
)
def test_a_folder_that_says_something_else_is_refused(trained: Trained, tmp_path: Path, changed: dict[str, Any]) -> None:
    shutil.copytree(trained.folder, tmp_path / "model")
    rewrite(tmp_path / "model", **changed)
    with pytest.raises(ModelRefused):
        loaded(tmp_path / "model")


@pytest.mark.parametrize(("value", "words"), [(torch.nan, "not finite"), (0.5, "all alike")])
def test_embeddings_that_nothing_can_be_compared_with_are_refused(trained: Trained, tmp_path: Path, value: float, words: str) -> None:
    shutil.copytree(trained.folder, tmp_path / "model")
    weights = load_file(tmp_path / "model" / "weights.safetensors")
    save_file(weights | {"embeddings": torch.full_like(weights["embeddings"], value)}, tmp_path / "model" / "weights.safetensors")
    with pytest.raises(ModelRefused, match=words):
        loaded(tmp_path / "model")
