"""What monitor.ports.Detector promises, of every registered kind, on every device. A kind that is not in CASES fails."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import detectors.rdna.training
import detectors.synthesis
from detectors.aegan_ad.options import PRESETS as AEGAN_AD_PRESETS
from detectors.ast.options import PRESETS
from detectors.rdna.options import PRESETS as RDNA_PRESETS
from monitor.errors import BadSample, ConfigError, ModelRefused
from monitor.ports import Detector
from monitor.registry import kinds, options_class, resolve
from monitor.types import Batch, FloatArray, Sample, Scores

AST = {"backbone": "efficientnet_lite2", "blocks": (2, 6), "resolution": 64, "stride": 8, "teacher_width": 8, "student_width": 16}
AST |= {"teacher_epochs": 3, "student_epochs": 3, "batch_size": 4, "learning_rate": 1e-3}
AEGAN_AD = {"width": 4, "epochs": 3, "batch_size": 6, "stride": 128, "scoring_stride": 24}
RDNA = {"width": 4, "resolution": 32, "epochs": 3, "batch_size": 4, "learning_rate": 1e-3, "score_window": 5}
CASES: dict[str, list[dict[str, Any]]] = {
    "autoencoder": [
        {"variant": "baseline", "resolution": 32, "epochs": 3, "batch_size": 4, "border": 2, "smoothing": 1.0, "map": "ssim"},
        {"variant": "multiscale", "resolution": 32, "epochs": 3, "batch_size": 4, "border": 2, "smoothing": 1.0},
    ],
    "ast": [
        {**AST, "mode": "rgb", "stride": 16},
        {**AST, "mode": "depth", "preset": "paper", "smoothing": 0.5},
        {**AST, "mode": "rgb+depth", "preset": "paper", "standardise": True},
        {**AST, "mode": "rgb", "preset": "paper", "standardise": True, "student": "flow", "positional_encoding": False},
    ],
    "aegan_ad": [
        {**AEGAN_AD, "machine": "dcase2020_fan"},
        {**AEGAN_AD, "machine": "dcase2022_gearbox", "preset": "paper", "score": "D_knn", "map": "reference"},
    ],
    "rdna": [
        {**RDNA, "weights": "held_out", "smoothing": 1.0},
        {**RDNA, "preset": "paper", "score": "auto", "adversarial_reconstruction": 0.01, "adversarial_segmentation": 0.01},
    ],
}
"""kind -> options small enough to be trained in seconds on CPU; every variant of a kind is one entry."""

OTHERS: dict[str, dict[str, Any]] = {
    "autoencoder": {"resolution": 64, "border": 0},
    "ast": {"resolution": 128, "stride": 32, "blocks": (4,), "teacher_width": 4, "student_width": 8, "clamp": 1.0, "smoothing": 2.0},
    "aegan_ad": {"width": 8, "scoring_stride": 7, "machine": "dcase2022_fan", "score": "D_cos", "map": "reference", "smoothing": 0.0},
    "rdna": {"width": 8, "resolution": 64, "score": "max", "score_window": 3, "smoothing": 2.0},
}
"""kind -> options that would score otherwise, but that those in a model's folder outweigh."""

RATE = 2000
FEWEST_SAMPLES = 127 * 512
"""Of sound: where so many are too few, or a rate lower than that of the training, a sample is bad."""

TOLERANCE = 1e-4  # of one precision, relative: alone, in any batch, saved and loaded
ACROSS = 0.02  # between precisions, relative
REFUSES_BROKEN = frozenset({"aegan_ad"})
"""Kinds that keep what they compare with beside their weights, and look at it when they load."""
LEARNT_LONGER = frozenset({"rdna"})
"""Kinds that mark no place before a training longer than these; tests/unit/test_rdna.py looks at one."""
LIKELIHOODS = frozenset({"teacher_mean", "teacher_max"})
"""Scores that cross 0: their largest counts, where of others each counts by itself."""
CANCELLING = ("G_z", "D_")
"""Scores that are small differences of what a network that has hardly learnt makes alike of all: rounding is most of them.
tests/bench/aegan_streaming.py looks at those of one that has learnt."""


@dataclass(frozen=True)
class Case:
    kind: str
    options: Mapping[str, Any]
    device: str

    def new(self, **changed: Any) -> Detector:
        options = options_class("detectors", self.kind)(**(dict(self.options) | changed))
        detector: Detector = resolve(options.implementation)(options)
        return detector

    @property
    def sensors(self) -> set[str]:
        """What its samples hold: "image", "depth" or both; or "waveform"."""
        if self.new().modality == "sound":
            return {"waveform"}
        return {"image" if part == "rgb" else part for part in self.options.get("mode", "rgb").split("+")}

    def sample(self, image: np.ndarray[Any, Any], position: str) -> Sample:
        """What this case looks at: the image, a relief of its height and width, or both; or a hum."""
        if "waveform" in self.sensors:
            return sample(None, position, waveform=hum(seed=list(position.encode())), rate=RATE)
        depth = relief(*image.shape[:2], seed=list(position.encode()))
        return sample(image if "image" in self.sensors else None, position, depth=depth if "depth" in self.sensors else None)

    def normals(self, count: int, seed: int) -> list[Sample]:
        return [self.sample(image, f"{seed}-{index}") for index, image in enumerate(images(count, seed))]


def sample(image: np.ndarray[Any, Any] | None, position: str, **sensors: Any) -> Sample:
    return Sample(source="test", topic="t", position=position, stream="s", captured=0.0, received=0.0, image=image, **sensors)


def images(count: int, seed: int) -> list[np.ndarray[Any, Any]]:
    """(48, 40, 3): two soft waves and a little noise."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:48, :40]
    found = []
    for _ in range(count):
        phase = random.uniform(0, 6)
        waves = 120 + 50 * np.sin(rows / 7 + phase) + 40 * np.cos(columns / 5 - phase)
        image = waves[..., None] * [1.0, 0.8, 0.6] + random.normal(0, 4, (48, 40, 3))
        found.append(np.clip(image, 0, 255).astype(np.uint8))
    return found


def relief(height: int, width: int, seed: Sequence[int]) -> FloatArray:
    """(height, width) in metres: a tilted table at 0.5 m, in its middle a block 3 cm high with a wave on top; a little noise, some pixels missing."""
    random = np.random.default_rng(seed)
    down, across = np.meshgrid((np.arange(height) + 0.5) / height - 0.5, (np.arange(width) + 0.5) / width - 0.5, indexing="ij")
    top = 0.03 + 0.003 * np.sin(9 * across + 7 * down + random.uniform(0, 6))
    depth = 0.5 + 0.02 * down + 0.01 * across - np.where(np.maximum(np.abs(down), np.abs(across)) < 0.36, top, 0)
    depth += random.normal(0, 1e-4, depth.shape)
    depth[random.random(depth.shape) < 0.02] = 0
    return depth.astype(np.float32)


def hum(samples: int = 66_000, *, seed: Sequence[int]) -> FloatArray:
    """(1, samples) at RATE: harmonics of 50 Hz that swell, and noise, louder or fainter."""
    random = np.random.default_rng(seed)
    seconds = np.arange(samples) / RATE
    tones = [random.uniform(0.5, 1) / k * np.sin(2 * np.pi * 50 * k * seconds + random.uniform(0, 6)) for k in (1, 2, 3, 5, 8)]
    swell = 1 + 0.3 * np.sin(2 * np.pi * 0.2 * seconds + random.uniform(0, 6))
    noise = random.normal(0, random.uniform(0.02, 0.1), samples)
    return (0.1 * (swell * sum(tones) + noise)).astype(np.float32)[None]


def silent(phase: str, step: int, steps: int, figures: Mapping[str, float]) -> None:
    assert phase
    assert 1 <= step <= steps


def fit(case: Case, detector: Detector, folder: Path, progress: Callable[..., None] = silent, seed: int = 5) -> Mapping[str, Any]:
    return detector.fit(case.normals(12, 1), case.normals(4, 2), folder, seed=seed, device=case.device, progress=progress)


def score(detector: Detector, samples: Sequence[Sample], *, every: bool = False) -> Scores:
    return detector.score(detector.stack(samples, [detector.prepare(one) for one in samples]), every=every)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def assert_same_model(one: Path, other: Path, device: str) -> None:
    if device == "cpu":
        assert bytes_of(one) == bytes_of(other)
        return
    for path in one.glob("*.safetensors"):  # a GPU adds in no fixed order
        for name, value in load_file(other / path.name).items():
            torch.testing.assert_close(load_file(path)[name], value, rtol=1e-2, atol=1e-3)


def all_cases() -> list[Any]:
    found = []
    for kind, variants in CASES.items():
        for number, options in enumerate(variants):
            for device in ("cpu", "cuda"):
                missing = device == "cuda" and not torch.cuda.is_available()
                mark = [pytest.mark.skip(reason="no CUDA device")] if missing else []
                variant = [options[name] for name in ("variant", "mode", "student", "machine") if name in options] or [str(number)]
                found.append(pytest.param(Case(kind, options, device), id="-".join([kind, *variant, device]), marks=mark))
    return found


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small lose more than they gain by threads, most of all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def short() -> Iterator[None]:
    """What no option shortens: here it does not matter which score is chosen, nor how well it was learnt."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detectors.synthesis, "DEFECTS", 20)
        patch.setitem(PRESETS, "cpu", replace(PRESETS["cpu"], steps=6))
        for preset, settings in RDNA_PRESETS.items():
            patch.setitem(RDNA_PRESETS, preset, replace(settings, steps=8))
        patch.setattr(detectors.rdna.training, "HELD_OUT_SAMPLES", 8)
        patch.setattr(detectors.rdna.training, "CHECKPOINT_EVERY", 0.0)
        patch.setitem(AEGAN_AD_PRESETS, "cpu", replace(AEGAN_AD_PRESETS["cpu"], steps=2))
        yield


@pytest.fixture(scope="module", params=all_cases())
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


class Killed(BaseException):
    pass


@dataclass(frozen=True)
class Step:
    """One call of `progress`."""

    phase: str
    step: int
    epoch: bool
    """Of a network's training, which may have several: it tells a loss."""


@dataclass
class Watch:
    """A `progress` that remembers what it was told, and where the training is killed."""

    end: Step | None = None
    told: list[Step] = field(default_factory=list)

    def __call__(self, phase: str, step: int, steps: int, figures: Mapping[str, float]) -> None:
        silent(phase, step, steps, figures)
        self.told.append(Step(phase, step, "loss" in figures))
        if self.told[-1] == self.end:
            raise Killed

    @property
    def epochs(self) -> list[Step]:
        return [step for step in self.told if step.epoch]


@dataclass(frozen=True)
class Trained:
    folder: Path
    info: Mapping[str, Any]
    work: Path
    """Where it was fitted, as the fit left it."""
    watch: Watch


@pytest.fixture(scope="module")
def trained(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    detector, watch = case.new(), Watch()
    info = fit(case, detector, folder / "work", watch)
    detector.save(folder / "model")
    return Trained(folder / "model", info, folder / "work", watch)


@pytest.fixture(scope="module")
def loaded(case: Case, trained: Trained) -> Detector:
    detector = case.new()
    detector.load(trained.folder, device=case.device, precision="fp32")
    return detector


def test_every_registered_kind_is_in_the_suite() -> None:
    ours = {kind for kind in kinds("detectors") if options_class("detectors", kind).__module__.startswith("detectors.")}
    assert set(CASES) == ours  # the fakes of other tests are beside


def test_what_fit_tells_fits_in_a_manifest(trained: Trained) -> None:
    told = json.loads(json.dumps(dict(trained.info), allow_nan=False))
    assert told["seed"] == 5
    assert {"options", "epochs", "seconds", "device"} <= set(told)
    assert told["epochs"] == len(trained.watch.epochs)
    assert told["seconds"] > 0


def test_the_folder_holds_nothing_executable(trained: Trained) -> None:
    assert {path.suffix for path in trained.folder.iterdir()} <= {".safetensors", ".json"}


def test_the_same_seed_gives_the_same_model(case: Case, trained: Trained, tmp_path: Path) -> None:
    detector = case.new()
    torch.manual_seed(99)  # what the process drew before must not matter
    fit(case, detector, tmp_path / "work")
    detector.save(tmp_path / "model")
    assert_same_model(trained.folder, tmp_path / "model", case.device)


def test_training_leaves_the_process_random_numbers_alone(case: Case, tmp_path: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    fit(case, case.new(), tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_every_network_is_trained_for_as_many_epochs_as_it_is_told(case: Case, trained: Trained) -> None:
    epochs: dict[str, list[int]] = {}
    for step in trained.watch.epochs:
        epochs.setdefault(step.phase, []).append(step.step)
    assert len(epochs) == sum(name.endswith("epochs") for name in case.options)
    assert all(steps == [1, 2, 3] for steps in epochs.values())


@pytest.mark.parametrize("first", [0, 1])
def test_an_interrupted_training_ends_as_if_it_had_not_been(case: Case, trained: Trained, tmp_path: Path, first: int) -> None:
    """Killed after each epoch of each network, and where each phase without epochs (features, ..) first tells of itself.

    One training is killed at every second of these places, and goes on from there to the next; another at those between.
    """
    told, phases = trained.watch.told, [step.phase for step in trained.watch.told]
    places = [index for index, step in enumerate(told) if step.epoch or index == phases.index(step.phase)]
    done = 0
    for place in places[first::2]:
        killed = Watch(end=told[place])
        with pytest.raises(Killed):
            fit(case, case.new(), tmp_path / "work", killed)
        assert killed.epochs == [step for step in told[done : place + 1] if step.epoch]
        done = place + 1
    detector, watch = case.new(), Watch()
    info = fit(case, detector, tmp_path / "work", watch)
    assert watch.epochs == [step for step in told[done:] if step.epoch]
    assert info["epochs"] == trained.info["epochs"]
    detector.save(tmp_path / "model")
    assert_same_model(trained.folder, tmp_path / "model", case.device)


def test_a_checkpoint_of_another_training_is_refused(case: Case, trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.work, tmp_path / "work")
    with pytest.raises(ConfigError, match="another training"):
        fit(case, case.new(), tmp_path / "work", seed=6)


def test_the_folder_does_not_change_by_loading_and_saving_needs_a_fit(case: Case, trained: Trained, tmp_path: Path) -> None:
    before = bytes_of(trained.folder)
    detector = case.new()
    with pytest.raises(RuntimeError, match="fit"):
        detector.save(tmp_path)
    detector.load(trained.folder, device=case.device, precision="fp32")
    assert bytes_of(trained.folder) == before


def test_it_says_where_and_in_what_it_scores(case: Case, trained: Trained) -> None:
    detector = case.new()
    detector.load(trained.folder, device="auto" if case.device == "cpu" else "cuda", precision="auto")
    assert detector.precision in ("fp32", "bf16", "fp16")
    if not torch.cuda.is_available():
        assert detector.device == "cpu"
    if case.device == "cuda":
        assert detector.device == "cuda:0"


@pytest.mark.parametrize(("device", "precision"), [("cuda:99", "auto"), ("tpu", "auto"), ("auto", "fp7"), ("cpu", "fp16")])
def test_a_device_or_precision_that_is_not_here_is_a_mistake_in_the_configuration(case: Case, trained: Trained, device: str, precision: str) -> None:
    with pytest.raises(ConfigError, match=r"expected|not here"):
        case.new().load(trained.folder, device=device, precision=precision)


def test_samples_can_be_prepared_before_the_fit(case: Case) -> None:
    assert case.new().prepare(case.normals(1, 9)[0]) is not None


def test_a_folder_without_a_model_is_refused(case: Case, tmp_path: Path) -> None:
    with pytest.raises(ModelRefused):
        case.new().load(tmp_path, device=case.device, precision="fp32")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.9])
def test_weights_that_are_cut_off_are_refused(case: Case, trained: Trained, tmp_path: Path, share: float) -> None:
    shutil.copytree(trained.folder, tmp_path / "model")
    for path in (tmp_path / "model").glob("*.safetensors"):
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ModelRefused):
        case.new().load(tmp_path / "model", device=case.device, precision="fp32")


def test_loaded_twice_it_scores_the_same(case: Case, trained: Trained, loaded: Detector) -> None:
    again = case.new()
    again.load(trained.folder, device=case.device, precision="fp32")
    samples = case.normals(5, 3)
    np.testing.assert_allclose(score(again, samples).values, score(loaded, samples).values, rtol=TOLERANCE)


def test_the_options_of_the_folder_act(trained: Trained, case: Case, loaded: Detector) -> None:
    other = case.new(**OTHERS[case.kind])
    other.load(trained.folder, device=case.device, precision="fp32")
    samples = case.normals(3, 3)
    np.testing.assert_allclose(score(other, samples).values, score(loaded, samples).values, rtol=TOLERANCE)


def test_one_score_and_one_map_per_sample_in_order(case: Case, loaded: Detector) -> None:
    samples = case.normals(6, 3)
    normal_maps = score(loaded, samples).maps
    strange = {name: np.array(getattr(samples[4], name)) for name in case.sensors}
    if "image" in strange:
        strange["image"][10:30, 10:30] = (255, 0, 255)
    if "depth" in strange:
        strange["depth"][10:30, 10:30] += np.float32(0.01)
    if "waveform" in strange:  # a whistle
        strange["waveform"][:, 20_000:40_000] += 0.5 * np.sin(2 * np.pi * 700 / RATE * np.arange(20_000)).astype(np.float32)
    samples[4] = replace(samples[4], **strange)
    found = score(loaded, samples)
    assert found.values.shape == (6,)
    assert found.values.dtype == np.float32
    assert found.maps is not None
    height, width = (48, 40) if loaded.modality != "sound" else (128, 129)
    assert [map_.shape for map_ in found.maps] == [(height, width)] * 6
    assert all(map_.dtype == np.float32 for map_ in found.maps)
    backwards = score(loaded, samples[::-1])
    np.testing.assert_allclose(backwards.values[::-1], found.values, rtol=TOLERANCE)
    assert normal_maps is not None
    row, column = np.unravel_index(np.abs(found.maps[4] - normal_maps[4]).argmax(), (height, width))
    if loaded.modality != "sound" and case.kind not in LEARNT_LONGER:
        assert 6 <= row < 34
        assert 6 <= column < 34


def test_where_recordings_are_cut_is_known_of_sound_only(case: Case, loaded: Detector) -> None:
    assert case.new().segmentation is None
    cut = loaded.segmentation
    if loaded.modality != "sound":
        assert cut is None
        return
    assert cut is not None
    assert cut.length == pytest.approx(66_000 / RATE)
    assert cut.hop > 0
    assert cut.shortest == pytest.approx(FEWEST_SAMPLES / RATE)


def test_maps_of_sound_have_axes_that_hold_all_of_it(loaded: Detector) -> None:
    if loaded.modality != "sound":
        pytest.skip("maps of pictures lie where the picture does")
    samples = [sample(None, f"{length}", waveform=hum(length, seed=[1]), rate=RATE) for length in (66_000, 90_000, FEWEST_SAMPLES, 66_001)]
    found = score(loaded, samples)
    assert found.maps is not None
    assert found.axes is not None
    for one, map_, axes in zip(samples, found.maps, found.axes, strict=True):
        assert one.waveform is not None
        assert (len(axes.hertz) - 1, len(axes.seconds) - 1) == map_.shape
        assert axes.seconds[0] == 0
        assert axes.seconds[-1] == pytest.approx(one.waveform.shape[1] / RATE)
        assert (axes.hertz[0], axes.hertz[-1]) == (RATE / 2, 0)
        assert (np.diff(axes.seconds) > 0).all()
        assert (np.diff(axes.hertz) < 0).all()


def test_the_batch_keeps_the_samples(case: Case, loaded: Detector) -> None:
    samples = case.normals(2, 3)
    batch = loaded.stack(samples, [loaded.prepare(one) for one in samples])
    assert isinstance(batch, Batch)
    assert batch.samples == tuple(samples)


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_alone_and_in_any_batch_it_scores_the_same(case: Case, trained: Trained, precision: str) -> None:
    detector = case.new()
    detector.load(trained.folder, device=case.device, precision=precision)
    samples = case.normals(9, 3)
    if "waveform" in case.sensors:  # of two lengths
        samples[4:] = [replace(one, waveform=hum(80_000, seed=[index])) for index, one in enumerate(samples[4:])]
    alone = np.concatenate([score(detector, [one]).values for one in samples])
    for size in (2, 3, 9):
        groups = [samples[start : start + size] for start in range(0, 9, size)]
        together = np.concatenate([score(detector, group).values for group in groups])
        np.testing.assert_allclose(together, alone, rtol=TOLERANCE if detector.precision == "fp32" else ACROSS / 4)


def test_a_faster_precision_scores_nearly_the_same(case: Case, trained: Trained, loaded: Detector) -> None:
    samples = case.normals(9, 3)
    exact = score(loaded, samples, every=True)
    for precision in ("bf16",) if case.device == "cpu" else ("bf16", "fp16"):
        fast = case.new()
        fast.load(trained.folder, device=case.device, precision=precision)
        assert fast.precision == precision
        rounded = score(fast, samples, every=True)
        for name, values in exact.named.items():
            if name.startswith(CANCELLING):
                assert np.isfinite(rounded.named[name]).all()
                continue
            within = ACROSS * (np.abs(values).max() if name in LIKELIHOODS else np.abs(values))
            assert (np.abs(rounded.named[name] - values) <= within).all(), f"{name}: {values} became {rounded.named[name]}"


def test_every_names_all_scores_and_holds_the_chosen_one(case: Case, loaded: Detector) -> None:
    samples = case.normals(4, 3)
    found = score(loaded, samples, every=True)
    assert len(found.named) >= 1
    assert all(values.shape == (4,) and values.dtype == np.float32 for values in found.named.values())
    assert any(np.array_equal(values, found.values) for values in found.named.values())
    assert not score(loaded, samples).named


def odd_images() -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(0)
    return {
        "one pixel": np.full((1, 1, 3), 90, np.uint8),
        "grey": random.integers(0, 256, (50, 60, 1), np.uint8),
        "16 bit": random.integers(0, 65536, (50, 60, 3), np.uint16),
        "grey 16 bit": random.integers(0, 65536, (20, 30, 1), np.uint16),
        "very wide": random.integers(0, 256, (2, 40_000, 3), np.uint8),
        "very high": random.integers(0, 256, (40_000, 1, 3), np.uint8),
        "mirrored view": random.integers(0, 256, (50, 60, 3), np.uint8)[:, ::-1],
        "black": np.zeros((33, 65, 3), np.uint8),
    }


def test_odd_images_are_scored_together_and_their_maps_have_their_size(case: Case, loaded: Detector) -> None:
    if loaded.modality == "sound":
        pytest.skip(f"{case.kind} hears")
    samples = [case.sample(image, name) for name, image in odd_images().items()]
    if "depth" in case.sensors:
        assert samples.pop(0).position == "one pixel"  # which shows no object
    found = score(loaded, samples)
    assert np.isfinite(found.values).all()
    assert found.maps is not None
    for one, map_ in zip(samples, found.maps, strict=True):
        sent = one.depth if one.image is None else one.image
        assert sent is not None
        assert map_.shape == sent.shape[:2]
        assert np.isfinite(map_).all()


def odd_sounds() -> dict[str, tuple[FloatArray, int]]:
    whole = hum(seed=[3])
    return {
        "two channels": (np.concatenate((whole, 0.5 * whole)), RATE),
        "eight channels": (np.repeat(whole, 8, axis=0), RATE),
        "a higher rate": (np.repeat(whole, 3, axis=1), 3 * RATE),
        "as short as can be": (whole[:, :FEWEST_SAMPLES], RATE),
        "longer": (np.tile(whole, 3), RATE),
        "silence": (np.zeros_like(whole), RATE),
        "nearly silence": (whole * np.float32(1e-7), RATE),
        "full scale": (np.sign(whole), RATE),
        "all on one side": (whole + np.float32(0.5), RATE),
    }


def test_odd_sounds_are_scored_together_and_their_maps_have_their_length(loaded: Detector) -> None:
    if loaded.modality != "sound":
        pytest.skip("looks at pictures")
    samples = [sample(None, name, waveform=waveform, rate=rate) for name, (waveform, rate) in odd_sounds().items()]
    found = score(loaded, samples, every=True)
    assert all(np.isfinite(values).all() for values in found.named.values())
    assert found.maps is not None
    for one, map_ in zip(samples, found.maps, strict=True):
        assert one.waveform is not None
        assert one.rate is not None
        assert map_.shape == (128, 1 + one.waveform.shape[1] * RATE // one.rate // 512)
        assert np.isfinite(map_).all()


def test_16_bit_is_scaled_by_its_range_and_not_by_its_content(case: Case, loaded: Detector) -> None:
    if "image" not in case.sensors:
        pytest.skip("looks at no image")
    sent = case.normals(1, 3)[0]
    assert sent.image is not None
    wide = replace(sent, image=sent.image.astype(np.uint16) * 257)
    np.testing.assert_allclose(score(loaded, [wide]).values, score(loaded, [sent]).values, rtol=0.02)


def bad_images() -> list[np.ndarray[Any, Any] | None]:
    return [None, np.zeros((0, 5, 3), np.uint8), np.zeros((5, 5, 2), np.uint8), np.zeros((5, 5), np.uint8), np.zeros((5, 5, 3), np.float64)]


def bad_depths() -> list[np.ndarray[Any, Any] | None]:
    """None, of no depth's shape or type, nothing measured, no object, millimetres."""
    whole = relief(48, 40, seed=[1])
    return [None, whole[..., None], whole.astype(np.float64), whole[:0], whole * 0, whole * np.float32(np.nan), whole[:1, :1], whole * 1000]


def test_what_can_never_be_scored_is_a_bad_sample(case: Case, loaded: Detector) -> None:
    good = case.normals(1, 3)[0]
    sound = np.zeros((1, 2 * FEWEST_SAMPLES), np.float32)
    if "waveform" in case.sensors:
        too_short, none_at_all = sound[:, : FEWEST_SAMPLES - 1], sound[:, :0]
        bad = [sample(np.zeros((48, 40, 3), np.uint8), "image"), replace(good, rate=RATE - 1), replace(good, rate=None), replace(good, waveform=None)]
        bad += [replace(good, waveform=waveform) for waveform in (too_short, none_at_all, sound[:0])]
    else:
        bad = [sample(None, "sound", waveform=sound, rate=16000)]
    if "image" in case.sensors:
        bad += [replace(good, image=image) for image in bad_images()]
    if "depth" in case.sensors:
        bad += [replace(good, depth=depth) for depth in bad_depths()]
    for one in bad:
        with pytest.raises(BadSample):
            loaded.prepare(one)


def arrays(prepared: Any) -> list[np.ndarray[Any, Any]]:
    """All that is in what a detector prepared: an array, or a dataclass of them."""
    if prepared is None:
        return []
    if isinstance(prepared, np.ndarray):
        return [prepared]
    return [array for part in fields(prepared) for array in arrays(getattr(prepared, part.name))]


def test_prepare_is_thread_safe(case: Case, loaded: Detector) -> None:
    samples = case.normals(8, 3) * 8
    alone = [loaded.prepare(one) for one in samples]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(loaded.prepare, samples))
    for one, other in zip(alone, together, strict=True):
        assert len(arrays(one)) >= len(case.sensors)
        for array, again in zip(arrays(one), arrays(other), strict=True):
            np.testing.assert_array_equal(array, again)


def test_the_next_batch_may_be_stacked_in_another_thread(case: Case, loaded: Detector) -> None:
    groups = [case.normals(3, seed) for seed in range(10, 18)]
    alone = [score(loaded, group).values for group in groups]
    with ThreadPoolExecutor(1) as pool:
        stack = [pool.submit(loaded.stack, group, [loaded.prepare(one) for one in group]) for group in groups]
        together = [loaded.score(batch.result()).values for batch in stack]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(other, one, rtol=TOLERANCE)


def test_broken_weights_score_as_not_a_number_if_they_are_not_refused(case: Case, trained: Trained, tmp_path: Path) -> None:
    for path in trained.folder.iterdir():
        if path.suffix == ".safetensors":
            save_file(
                {name: torch.full_like(v, torch.nan) if v.is_floating_point() else v for name, v in load_file(path).items()}, tmp_path / path.name
            )
        else:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    for precision in ("fp32", "auto"):
        detector = case.new()
        if case.kind in REFUSES_BROKEN:
            with pytest.raises(ModelRefused, match="not finite"):
                detector.load(tmp_path, device=case.device, precision=precision)
            continue
        detector.load(tmp_path, device=case.device, precision=precision)
        found = score(detector, case.normals(3, 3), every=True)
        assert np.isnan(found.values).all()
        assert all(np.isnan(values).all() for values in found.named.values())


def test_threads_of_torch_are_left_alone(case: Case, trained: Trained) -> None:
    before = torch.get_num_threads()
    case.new().load(trained.folder, device=case.device, precision="auto")
    assert torch.get_num_threads() == before
