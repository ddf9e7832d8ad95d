"""AST as a detector: its modes, its scores, and what a model's folder decides."""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import detectors.ast.detector
import detectors.checkpoints
import detectors.synthesis
from detectors.ast.detector import LEVEL, Ast
from detectors.ast.features import view
from detectors.ast.model import SCORES, named_scores
from detectors.ast.options import AstOptions
from detectors.backbones import ARCHITECTURES
from detectors.checkpoints import cache, shipped
from monitor.errors import BadSample, ConfigError, ModelRefused
from monitor.types import Sample, Scores
from scans import scan

SMALL: dict[str, Any] = {
    "preset": "paper",
    "backbone": "efficientnet_lite2",
    "blocks": (2, 6),
    "resolution": 64,
    "stride": 16,
    "teacher_width": 4,
    "student_width": 8,
    "teacher_epochs": 1,
    "student_epochs": 1,
    "learning_rate": 1e-3,
}
MODES = ("rgb", "depth", "rgb+depth")


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


def sample(defect: str, number: int) -> Sample:
    """A scan of 48 x 48 pixels with its image."""
    found = scan(defect, side=48, seed=[number])
    depth = np.ascontiguousarray(found.xyz[..., 2])
    return Sample(source="s", topic="t", position=f"{number}", stream="s", captured=0.0, received=0.0, image=found.image, depth=depth)


TRAINING, HELD_OUT, TEST = ([sample("good", start + index) for index in range(count)] for start, count in ((0, 9), (100, 4), (200, 5)))


def fitted(folder: Path, **options: Any) -> tuple[Path, Mapping[str, Any]]:
    """A model trained in a moment: its folder, and what the fit told."""
    detector = Ast(AstOptions(**(SMALL | options)))
    told = detector.fit(TRAINING, HELD_OUT, folder / "work", seed=1, device="cpu", progress=silent)
    detector.save(folder / "model")
    return folder / "model", told


def loaded(folder: Path, **options: Any) -> Ast:
    detector = Ast(AstOptions(**options))
    detector.load(folder, device="cpu", precision="fp32")
    return detector


def score(detector: Ast, samples: list[Sample], *, every: bool = True) -> Scores:
    return detector.score(detector.stack(samples, [detector.prepare(one) for one in samples]), every=every)


@dataclass(frozen=True)
class Model:
    folder: Path
    told: Mapping[str, Any]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """One of each mode."""
    return {mode: Model(*fitted(tmp_path_factory.mktemp("ast"), mode=mode)) for mode in MODES}


@pytest.fixture
def edited(models: dict[str, Model], tmp_path: Path) -> Callable[..., Path]:
    """The folder of a model with other settings."""

    def copy(mode: str, /, **settings: Any) -> Path:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(models[mode].folder, folder)
        saved = json.loads((folder / "detector.json").read_text())
        assert settings.keys() <= saved.keys()
        (folder / "detector.json").write_text(json.dumps(saved | settings))
        return folder

    return copy


def test_settings_come_from_the_options_and_the_samples_decide_nothing(models: dict[str, Model]) -> None:
    for mode, model in models.items():
        saved = json.loads((model.folder / "detector.json").read_text())
        expected = {
            "kind": "ast",
            "format": 1,
            "mode": mode,
            "blocks": [2, 6],
            "resolution": 64,
            "grid": 4,
            "positional_encoding": True,
            "student": "cnn",
            "teacher_width": 4,
            "student_width": 8,
            "clamp": 1.9,
            "smoothing": 0.0,
        }
        assert expected.items() <= saved.items()
        assert saved["backbone_sha256"] == ("" if mode == "depth" else ARCHITECTURES["efficientnet_lite2"].checkpoint.sha256)
        assert model.told["options"]["score"] == saved["score"] in SCORES
        weights = load_file(model.folder / "weights.safetensors")
        channels = {"rgb": 24 + 48, "depth": 64, "rgb+depth": 24 + 48 + 64}[mode]
        assert weights["mean"].shape == (1, channels, 1, 1)
        assert weights["mean"].abs().max() == 0  # the paper's preset does not standardise


def test_what_the_fit_tells(models: dict[str, Model]) -> None:
    for mode, model in models.items():
        told = model.told
        assert told["epochs"] == told["teacher"]["epochs"] + told["student"]["epochs"] == 2
        assert told["seconds"] > told["teacher"]["seconds"] + told["student"]["seconds"] > 0
        assert (told["training_images"], told["held_out_images"]) == (9, 4)
        assert set(told["synthetic_auroc"]) == set(SCORES)
        assert (told["parameters"]["backbone"] == 0) == (mode == "depth")
        assert len(told["teacher"]["train_loss"]) == len(told["student"]["held_out_loss"]) == 1


@pytest.mark.parametrize(
    ("figures", "chosen"),
    [
        ((0.80, 0.85, 0.90, 0.95), "max"),
        ((0.96, 0.85, 0.90, 0.95), "mean"),
        ((0.945, 0.94, 0.96, 0.95), "top_1"),
        ((0.93, 0.955, 0.94, 0.96), "top_10"),  # as good as the best
    ],
)
def test_auto_takes_the_score_that_tells_synthetic_defects_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figures: tuple[float, ...], chosen: str
) -> None:
    monkeypatch.setattr(detectors.ast.detector, "synthetic_auroc", lambda *_: dict(zip(SCORES, figures, strict=True)))
    folder, told = fitted(tmp_path, mode="depth")
    assert told["options"]["score"] == json.loads((folder / "detector.json").read_text())["score"] == chosen
    assert told["synthetic_auroc"][chosen] >= max(figures) - LEVEL


def test_named_scores() -> None:
    distances = torch.arange(1.0, 401).reshape(1, 20, 20).flip(1)
    found = {name: float(value) for name, value in named_scores(torch.cat((distances, distances / 2)), SCORES).items() for value in value[:1]}
    assert found == {"mean": 200.5, "top_10": np.mean(range(361, 401)), "top_1": np.mean(range(397, 401)), "max": 400}
    assert named_scores(torch.cat((distances, distances / 2)), ["max"])["max"].tolist() == [400, 200]
    few = torch.tensor([[[1.0, 2], [3, 8]]])  # at least one; of 4, the largest tenth
    assert [float(named_scores(few, [name])[name]) for name in SCORES] == [3.5, 8, 8, 8]


@pytest.mark.parametrize("chosen", SCORES)
def test_the_score_of_the_folder_is_the_one_that_counts(edited: Callable[..., Path], chosen: str) -> None:
    found = score(loaded(edited("depth", score=chosen), score="mean"), TEST)
    assert set(found.named) == {*SCORES, "teacher_mean", "teacher_max"}
    np.testing.assert_array_equal(found.values, found.named[chosen])
    others = [name for name in SCORES if not np.array_equal(found.named[name], found.values)]
    assert len(others) >= 2  # of 16 positions the largest hundredth is the largest


def test_a_score_that_is_asked_for_is_not_chosen(tmp_path: Path) -> None:
    folder, told = fitted(tmp_path, mode="depth", score="top_10")
    assert told["options"]["score"] == "top_10"
    assert json.loads((folder / "detector.json").read_text())["score"] == "top_10"


def test_smoothing_smooths_what_is_scored_and_shown(edited: Callable[..., Path]) -> None:
    plain, smooth = (score(loaded(edited("rgb", smoothing=sigma)), TEST) for sigma in (0.0, 2.0))
    assert (smooth.named["max"] < plain.named["max"]).all()
    np.testing.assert_array_equal(smooth.named["teacher_max"], plain.named["teacher_max"])
    assert plain.maps is not None
    assert smooth.maps is not None
    for one, other in zip(plain.maps, smooth.maps, strict=True):
        assert np.std(other) < 0.7 * np.std(one)


def test_standardised_features_have_mean_0_and_deviation_1_over_the_foreground(tmp_path: Path) -> None:
    folder, _ = fitted(tmp_path, mode="depth", standardise=True)
    weights = load_file(folder / "weights.safetensors")
    seen = [view(one, "depth", 64, 4).scan for one in TRAINING]
    depth = np.stack([one.depth.reshape(4, 8, 4, 8).transpose(1, 3, 0, 2).reshape(64, 4, 4) for one in seen if one is not None])
    masks = np.stack([np.broadcast_to(one.mask, (64, 4, 4)) for one in seen if one is not None])
    mean = np.average(depth, axis=(0, 2, 3), weights=masks)
    variance = np.average((depth - mean[:, None, None]) ** 2, axis=(0, 2, 3), weights=masks)
    np.testing.assert_allclose(weights["mean"].flatten().numpy(), mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(weights["deviation"].flatten().numpy(), np.sqrt(variance), rtol=1e-4)


def test_without_positional_encoding_or_with_a_flow_as_student_it_is_another_network(tmp_path: Path, models: dict[str, Model]) -> None:
    folder, told = fitted(tmp_path, mode="depth", positional_encoding=False, student="flow")
    published = load_file(models["depth"].folder / "weights.safetensors")
    weights = load_file(folder / "weights.safetensors")
    name = "teacher.couplings.0.f1.hidden.weight"
    assert (published[name].shape[1], weights[name].shape[1]) == (32 + 32, 32)
    assert told["parameters"]["teacher"] == told["parameters"]["student"]
    assert "student.couplings.3.permutation" in weights
    assert np.isfinite(score(loaded(folder), TEST).values).all()


def test_what_each_mode_looks_at_decides_which_samples_it_takes(models: dict[str, Model]) -> None:
    image = [replace(one, depth=None) for one in TEST]
    depth = [replace(one, image=None) for one in TEST]
    rgb, relief, both = (loaded(models[mode].folder) for mode in MODES)
    assert (rgb.modality, relief.modality, both.modality) == ("image", "rgbd", "rgbd")
    np.testing.assert_allclose(score(rgb, TEST).values, score(rgb, image).values, rtol=1e-6)
    np.testing.assert_allclose(score(relief, TEST).values, score(relief, depth).values, rtol=1e-6)
    for detector, samples in ((rgb, depth), (relief, image), (both, depth), (both, image)):
        for one in samples:
            with pytest.raises(BadSample) as caught:
                detector.prepare(one)
            assert caught.value.reason == "unsupported"


@pytest.mark.parametrize(("mode", "other"), [("rgb", "depth"), ("depth", "rgb+depth"), ("rgb+depth", "rgb")])
def test_the_mode_of_the_folder_acts(models: dict[str, Model], mode: Any, other: Any) -> None:
    detector = Ast(AstOptions(mode=other))
    assert detector.modality == ("image" if other == "rgb" else "rgbd")
    detector.load(models[mode].folder, device="cpu", precision="fp32")
    assert detector.modality == ("image" if mode == "rgb" else "rgbd")
    np.testing.assert_allclose(score(detector, TEST).values, score(loaded(models[mode].folder, mode=mode), TEST).values, rtol=1e-6)


def test_each_mode_sees_its_sensors_and_no_other(models: dict[str, Model]) -> None:
    stained, dented, good = sample("stain", 300), sample("dent", 300), sample("good", 300)
    for mode, seen in (("rgb", [stained]), ("depth", [dented]), ("rgb+depth", [stained, dented])):
        detector = loaded(models[mode].folder)
        normal = score(detector, [good]).values[0]
        for one in (stained, dented):
            assert (score(detector, [one]).values[0] != normal) == (one in seen)


def test_maps_have_the_sent_size_and_are_0_beside_the_object(models: dict[str, Model]) -> None:
    wide = replace(TEST[0], image=None, depth=np.repeat(np.asarray(TEST[0].depth), 2, axis=1))
    found = score(loaded(models["depth"].folder), [wide, replace(TEST[1], image=None)])
    assert found.maps is not None
    assert [map_.shape for map_ in found.maps] == [(48, 96), (48, 48)]
    for map_ in found.maps:
        assert abs(map_[0, 0]) < 0.1 * map_.max()  # cubics overshoot a little


def test_the_feature_cache_bounds_both_sets_together(tmp_path: Path) -> None:
    needed = 4 * (len(TRAINING) + len(HELD_OUT)) * 65 * 4 * 4  # the mask is kept beside 64 channels
    with pytest.raises(ConfigError, match="feature_cache") as caught:
        fitted(tmp_path / "less", mode="depth", feature_cache=needed - 1)
    assert f"{needed - 1} bytes: the features of 13 images need {needed}" in str(caught.value)
    assert not (tmp_path / "less" / "work").exists()  # before any is computed
    fitted(tmp_path / "enough", mode="depth", feature_cache=needed)


def test_without_samples_there_is_no_training(tmp_path: Path) -> None:
    for training, held_out in (([], HELD_OUT), (TRAINING, [])):
        with pytest.raises(ConfigError, match="expected at least one of each"):
            Ast(AstOptions(**SMALL)).fit(training, held_out, tmp_path, seed=1, device="cpu", progress=silent)


def test_fewer_images_than_a_batch_and_16_bit_ones_can_be_learnt(tmp_path: Path) -> None:
    wide = [replace(one, image=np.asarray(one.image).astype(np.uint16) * 257) for one in TRAINING[:3]]
    detector = Ast(AstOptions(**SMALL))
    told = detector.fit([*wide, TRAINING[4]], HELD_OUT[:1], tmp_path, seed=1, device="cpu", progress=silent)
    assert all(math.isfinite(loss) for loss in told["student"]["train_loss"])


@pytest.mark.parametrize(
    "settings",
    [
        {"backbone": "efficientnet_b9"},
        {"blocks": [99]},
        {"blocks": None},
        {"mode": "xyz"},
        {"teacher_width": 5},
        {"student_width": 20_000},  # 14 GB for each of its layers
        {"teacher_width": 10**12},
        {"grid": "x"},
        {"grid": 3},
        {"resolution": 2**20, "grid": 2**16},  # 550 GB of positional encoding
    ],
)
def test_a_folder_whose_settings_are_not_its_weights_is_refused(edited: Callable[..., Path], settings: dict[str, Any]) -> None:
    with pytest.raises(ModelRefused):
        loaded(edited("rgb", **settings))


def test_a_folder_of_another_kind_or_format_is_refused(edited: Callable[..., Path]) -> None:
    for settings in ({"kind": "autoencoder"}, {"format": 2}):
        with pytest.raises(ModelRefused, match="not a model of ast, format 1"):
            loaded(edited("rgb", **settings))


def test_a_model_that_was_trained_on_another_backbone_is_refused(edited: Callable[..., Path]) -> None:
    with pytest.raises(ModelRefused, match="trained on efficientnet_lite2 of sha256 abc, found 9656183e"):
        loaded(edited("rgb", backbone_sha256="abc"))


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """As on a machine without the package that ships the weights, and with an empty cache. A copy of the weights elsewhere."""
    file = shipped(ARCHITECTURES["efficientnet_lite2"].checkpoint)
    assert file is not None
    weights = tmp_path / "elsewhere" / "my-weights.pth"
    weights.parent.mkdir()
    shutil.copy(file, weights)
    monkeypatch.setattr(detectors.checkpoints, "shipped", lambda pin: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return weights


@pytest.mark.usefixtures("no_package")
def test_missing_weights_are_a_mistake_in_the_configuration(tmp_path: Path, models: dict[str, Model]) -> None:
    with pytest.raises(ConfigError, match="nothing is downloaded"):
        fitted(tmp_path / "fit")
    with pytest.raises(ConfigError, match="nothing is downloaded"):
        loaded(models["rgb"].folder)
    loaded(models["depth"].folder)  # needs none


def test_the_path_of_the_weights_counts_in_training_and_at_load_alike(tmp_path: Path, models: dict[str, Model], no_package: Path) -> None:
    folder, _ = fitted(tmp_path / "fit", backbone_weights=no_package)
    assert (folder / "weights.safetensors").read_bytes() == (models["rgb"].folder / "weights.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "cache")
    detector = loaded(models["rgb"].folder, backbone_weights=no_package)
    assert np.isfinite(score(detector, TEST).values).all()


def test_where_the_path_of_the_training_leads_nowhere_a_model_finds_the_weights_of_this_machine(
    tmp_path: Path, models: dict[str, Model], no_package: Path
) -> None:
    elsewhere = tmp_path / "nowhere.pth"  # a model brings the options it was trained with, e.g. on another machine
    with pytest.raises(ConfigError, match="nothing is downloaded"):
        loaded(models["rgb"].folder, backbone_weights=elsewhere)
    place = cache() / ARCHITECTURES["efficientnet_lite2"].checkpoint.file
    place.parent.mkdir(parents=True)
    shutil.copy(no_package, place)
    loaded(models["rgb"].folder, backbone_weights=elsewhere)
    with pytest.raises(ConfigError, match="cannot be read"):
        fitted(tmp_path / "fit", backbone_weights=elsewhere)
