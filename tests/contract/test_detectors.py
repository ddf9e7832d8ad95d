"""What monitor.ports.Detector promises, of every registered kind, on every device. A kind that is not in CASES fails."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from monitor.errors import BadSample, ConfigError, ModelRefused
from monitor.ports import Detector
from monitor.registry import kinds, options_class, resolve
from monitor.types import Batch, Sample, Scores

CASES: dict[str, list[dict[str, Any]]] = {
    "autoencoder": [
        {"variant": "baseline", "resolution": 32, "epochs": 3, "batch_size": 4, "border": 2, "smoothing": 1.0, "map": "ssim"},
        {"variant": "multiscale", "resolution": 32, "epochs": 3, "batch_size": 4, "border": 2, "smoothing": 1.0},
    ],
}
"""kind -> options small enough to be trained in seconds on CPU; every variant of a kind is one entry."""

TOLERANCE = 1e-4  # of one precision, relative: alone, in any batch, saved and loaded
ACROSS = 0.02  # between precisions, relative


@dataclass(frozen=True)
class Case:
    kind: str
    options: Mapping[str, Any]
    device: str

    def new(self, **changed: Any) -> Detector:
        options = options_class("detectors", self.kind)(**(dict(self.options) | changed))
        detector: Detector = resolve(options.implementation)(options)
        return detector


def sample(image: np.ndarray[Any, Any] | None, position: str, **sensors: Any) -> Sample:
    return Sample(source="test", topic="t", position=position, stream="s", captured=0.0, received=0.0, image=image, **sensors)


def normals(count: int, seed: int) -> list[Sample]:
    """Images (48, 40, 3): two soft waves and a little noise."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:48, :40]
    found = []
    for index in range(count):
        phase = random.uniform(0, 6)
        waves = 120 + 50 * np.sin(rows / 7 + phase) + 40 * np.cos(columns / 5 - phase)
        image = waves[..., None] * [1.0, 0.8, 0.6] + random.normal(0, 4, (48, 40, 3))
        found.append(sample(np.clip(image, 0, 255).astype(np.uint8), f"{seed}-{index}"))
    return found


def silent(phase: str, step: int, steps: int, figures: Mapping[str, float]) -> None:
    assert phase
    assert 1 <= step <= steps


def fit(detector: Detector, folder: Path, device: str, progress: Callable[..., None] = silent, seed: int = 5) -> Mapping[str, Any]:
    return detector.fit(normals(12, 1), normals(4, 2), folder, seed=seed, device=device, progress=progress)


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
                found.append(pytest.param(Case(kind, options, device), id=f"{kind}-{options.get('variant', number)}-{device}", marks=mark))
    return found


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small lose more than they gain by threads, most of all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=all_cases())
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@dataclass(frozen=True)
class Trained:
    folder: Path
    info: Mapping[str, Any]


@pytest.fixture(scope="module")
def trained(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    detector = case.new()
    info = fit(detector, folder / "work", case.device)
    detector.save(folder / "model")
    return Trained(folder / "model", info)


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


def test_the_folder_holds_nothing_executable(trained: Trained) -> None:
    assert {path.suffix for path in trained.folder.iterdir()} <= {".safetensors", ".json"}


def test_the_same_seed_gives_the_same_model(case: Case, trained: Trained, tmp_path: Path) -> None:
    detector = case.new()
    torch.manual_seed(99)  # what the process drew before must not matter
    fit(detector, tmp_path / "work", case.device)
    detector.save(tmp_path / "model")
    assert_same_model(trained.folder, tmp_path / "model", case.device)


def test_training_leaves_the_process_random_numbers_alone(case: Case, tmp_path: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    fit(case.new(), tmp_path, case.device)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_an_interrupted_training_ends_as_if_it_had_not_been(case: Case, trained: Trained, tmp_path: Path, stop_after: int) -> None:
    class Killed(BaseException):
        pass

    def kill(phase: str, step: int, steps: int, figures: Mapping[str, float]) -> None:
        if phase == "train" and step == stop_after:
            raise Killed

    with pytest.raises(Killed):
        fit(case.new(), tmp_path / "work", case.device, kill)
    trained_steps = []
    detector = case.new()

    def note(phase: str, step: int, steps: int, figures: Mapping[str, float]) -> None:
        if phase == "train":
            trained_steps.append(step)

    fit(detector, tmp_path / "work", case.device, note)
    assert trained_steps == list(range(stop_after + 1, 4))
    detector.save(tmp_path / "model")
    assert_same_model(trained.folder, tmp_path / "model", case.device)


def test_a_checkpoint_of_another_training_is_refused(case: Case, tmp_path: Path) -> None:
    fit(case.new(), tmp_path, case.device)
    with pytest.raises(ConfigError, match="another training"):
        fit(case.new(), tmp_path, case.device, seed=6)


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


def test_a_folder_without_a_model_is_refused(case: Case, tmp_path: Path) -> None:
    with pytest.raises(ModelRefused):
        case.new().load(tmp_path, device=case.device, precision="fp32")


def test_loaded_twice_it_scores_the_same(case: Case, trained: Trained, loaded: Detector) -> None:
    again = case.new()
    again.load(trained.folder, device=case.device, precision="fp32")
    samples = normals(5, 3)
    np.testing.assert_allclose(score(again, samples).values, score(loaded, samples).values, rtol=TOLERANCE)


def test_the_options_of_the_folder_act(trained: Trained, case: Case, loaded: Detector) -> None:
    other = case.new(resolution=64, border=0)
    other.load(trained.folder, device=case.device, precision="fp32")
    samples = normals(3, 3)
    np.testing.assert_allclose(score(other, samples).values, score(loaded, samples).values, rtol=TOLERANCE)


def test_one_score_and_one_map_per_sample_in_order(loaded: Detector) -> None:
    samples = normals(6, 3)
    normal_maps = score(loaded, samples).maps
    strange = np.array(samples[4].image)
    strange[10:30, 10:30] = (255, 0, 255)
    samples[4] = sample(strange, "strange")
    found = score(loaded, samples)
    assert found.values.shape == (6,)
    assert found.values.dtype == np.float32
    assert found.maps is not None
    assert [map_.shape for map_ in found.maps] == [(48, 40)] * 6
    assert all(map_.dtype == np.float32 for map_ in found.maps)
    backwards = score(loaded, samples[::-1])
    np.testing.assert_allclose(backwards.values[::-1], found.values, rtol=TOLERANCE)
    assert normal_maps is not None
    row, column = np.unravel_index(np.abs(found.maps[4] - normal_maps[4]).argmax(), (48, 40))
    assert 6 <= row < 34
    assert 6 <= column < 34


def test_the_batch_keeps_the_samples(loaded: Detector) -> None:
    samples = normals(2, 3)
    batch = loaded.stack(samples, [loaded.prepare(one) for one in samples])
    assert isinstance(batch, Batch)
    assert batch.samples == tuple(samples)


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_alone_and_in_any_batch_it_scores_the_same(case: Case, trained: Trained, precision: str) -> None:
    detector = case.new()
    detector.load(trained.folder, device=case.device, precision=precision)
    samples = normals(9, 3)
    alone = np.concatenate([score(detector, [one]).values for one in samples])
    for size in (2, 3, 9):
        groups = [samples[start : start + size] for start in range(0, 9, size)]
        together = np.concatenate([score(detector, group).values for group in groups])
        np.testing.assert_allclose(together, alone, rtol=TOLERANCE if detector.precision == "fp32" else ACROSS / 4)


def test_a_faster_precision_scores_nearly_the_same(case: Case, trained: Trained, loaded: Detector) -> None:
    samples = normals(9, 3)
    exact = score(loaded, samples, every=True)
    for precision in ("bf16",) if case.device == "cpu" else ("bf16", "fp16"):
        fast = case.new()
        fast.load(trained.folder, device=case.device, precision=precision)
        assert fast.precision == precision
        rounded = score(fast, samples, every=True)
        for name, values in exact.named.items():
            np.testing.assert_allclose(rounded.named[name], values, rtol=ACROSS, err_msg=name)


def test_every_names_all_scores_and_holds_the_chosen_one(loaded: Detector) -> None:
    samples = normals(4, 3)
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
    if loaded.modality != "image":
        pytest.skip(f"{case.kind} hears")
    samples = [sample(image, name) for name, image in odd_images().items()]
    found = score(loaded, samples)
    assert np.isfinite(found.values).all()
    assert found.maps is not None
    for one, map_ in zip(samples, found.maps, strict=True):
        assert one.image is not None
        assert map_.shape == one.image.shape[:2]
        assert np.isfinite(map_).all()


def test_16_bit_is_scaled_by_its_range_and_not_by_its_content(loaded: Detector) -> None:
    image = normals(1, 3)[0].image
    assert image is not None
    wide = sample(image.astype(np.uint16) * 257, "16 bit")
    np.testing.assert_allclose(score(loaded, [wide]).values, score(loaded, [sample(image, "8 bit")]).values, rtol=0.02)


def test_what_can_never_be_scored_is_a_bad_sample(loaded: Detector) -> None:
    sound = sample(None, "sound", waveform=np.zeros((1, 16000), np.float32), rate=16000)
    shapes = [np.zeros((0, 5, 3), np.uint8), np.zeros((5, 5, 2), np.uint8), np.zeros((5, 5), np.uint8), np.zeros((5, 5, 3), np.float64)]
    for bad in [sound, *(sample(image, "bad") for image in shapes)]:
        with pytest.raises(BadSample):
            loaded.prepare(bad)


def test_prepare_is_thread_safe(loaded: Detector) -> None:
    samples = normals(8, 3) * 8
    alone = [loaded.prepare(one) for one in samples]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(loaded.prepare, samples))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_next_batch_may_be_stacked_in_another_thread(loaded: Detector) -> None:
    groups = [normals(3, seed) for seed in range(10, 18)]
    alone = [score(loaded, group).values for group in groups]
    with ThreadPoolExecutor(1) as pool:
        stack = [pool.submit(loaded.stack, group, [loaded.prepare(one) for one in group]) for group in groups]
        together = [loaded.score(batch.result()).values for batch in stack]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(other, one, rtol=TOLERANCE)


def test_broken_weights_score_as_not_a_number(case: Case, trained: Trained, tmp_path: Path) -> None:
    for path in trained.folder.iterdir():
        if path.suffix == ".safetensors":
            save_file(
                {name: torch.full_like(v, torch.nan) if v.is_floating_point() else v for name, v in load_file(path).items()}, tmp_path / path.name
            )
        else:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    for precision in ("fp32", "auto"):
        detector = case.new()
        detector.load(tmp_path, device=case.device, precision=precision)
        found = score(detector, normals(3, 3), every=True)
        assert np.isnan(found.values).all()
        assert all(np.isnan(values).all() for values in found.named.values())


def test_threads_of_torch_are_left_alone(case: Case, trained: Trained) -> None:
    before = torch.get_num_threads()
    case.new().load(trained.folder, device=case.device, precision="auto")
    assert torch.get_num_threads() == before
