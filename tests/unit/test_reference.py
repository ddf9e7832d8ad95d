"""Reference samples: kept without loss, scored again at load, and what happens when they do not repeat."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fake_detector import FakeDetector, FakeOptions
from monitor import reference
from monitor.calibration import Calibration
from monitor.errors import BadSample, ConfigError, DeviceLost, ModelRefused, MonitorError
from monitor.store import ModelStore
from monitor.types import ModelVersion, Sample


def sample(seed: int, side: int = 40, dtype: type = np.uint8) -> Sample:
    image: NDArray[np.uint8] = np.random.default_rng(seed).integers(0, 100, (side, side, 3)).astype(dtype)
    return Sample(source="s", topic="t", position=f"{seed}", stream="press/7", captured=1.5, received=2.5, image=image)


def published(tmp_path: Path, *, tolerance: float = 1e-5, **options: Any) -> ModelVersion:
    chosen = FakeOptions(**options)
    detector = FakeDetector(chosen)
    samples = [sample(seed) for seed in range(5)]
    built = tmp_path / "built"
    built.mkdir()
    detector.fit(samples, samples, tmp_path, seed=0, device="cpu", progress=lambda *_: None)
    detector.save(built)
    scores = [float(value) for _, batch in reference.scored(detector, samples[:3], 2) for value in batch.values]
    reference.write(built, samples[:3])
    facts = {
        "kind": "fake",
        "options": json.loads(chosen.model_dump_json()),
        "reference": {"scores": scores, "tolerance": tolerance},
    }
    return ModelStore(tmp_path / "store").publish("bottle", built, facts)


def test_what_cannot_be_scored_is_named() -> None:
    blind = Sample(source="s", topic="t", position="7", stream="x", captured=0.0, received=0.0, depth=np.ones((3, 4), np.float32))
    with pytest.raises(BadSample, match=f"{blind.id}: an image is needed") as caught:
        list(reference.scored(FakeDetector(FakeOptions()), [blind], 2))
    assert caught.value.reason == "unsupported"


class Reports(list[tuple[str, dict[str, Any]]]):
    def __call__(self, what: str, **facts: Any) -> None:
        self.append((what, facts))


def test_samples_come_back_bit_for_bit_and_equal_samples_make_equal_files(tmp_path: Path) -> None:
    image = sample(1, dtype=np.uint16)
    depth = Sample(
        source="s", topic="t", position="2", stream="x", captured=1.0, received=2.0, image=image.image, depth=np.full((3, 4), np.pi, np.float32)
    )
    gaps = np.array([[np.nan, 0.0, 0.5], [np.float32(0.1), -1e-30, 2.5]], np.float32)
    scan = Sample(source="s", topic="t", position="4", stream="x", captured=1.0, received=2.0, depth=gaps)
    sound = Sample(source="s", topic="t", position="3", stream="x", captured=0.1, received=0.3, waveform=np.ones((2, 9), np.float32), rate=16000)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        reference.write(tmp_path / name, [image, depth, scan, sound])
    assert (tmp_path / "a" / reference.FILE).read_bytes() == (tmp_path / "b" / reference.FILE).read_bytes()
    for before, after in zip([image, depth, scan, sound], reference.read(tmp_path / "a"), strict=True):
        assert (after.id, after.stream, after.rate) == (before.id, before.stream, before.rate)
        for array in ("image", "depth", "waveform"):
            one, other = getattr(before, array), getattr(after, array)
            assert (one is None) == (other is None)
            if one is not None:
                assert one.dtype == other.dtype
                assert one.tobytes() == other.tobytes()


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="cannot be read"):
        reference.read(tmp_path)
    np.savez(tmp_path / reference.FILE, facts=np.array([{"a": 1}], dtype=object))  # a pickle inside
    with pytest.raises(ModelRefused, match="cannot be read"):
        reference.read(tmp_path)


def test_the_choice_spans_the_scores_and_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [sample(seed) for seed in range(10)]
    scores = np.array([5, 3, 9, 1, 0, 2, 8, 7, 6, 4], np.float32)
    chosen = reference.choose(samples, scores)
    assert [float(scores[index]) for index in chosen] == [9, 6, 3, 0]
    assert reference.choose(samples[:2], scores[:2]) == [0, 1]
    monkeypatch.setattr(reference, "MOST_BYTES", 40 * 40 * 3 * 2 + 1)
    assert len(reference.choose(samples, scores)) == 2
    monkeypatch.setattr(reference, "MOST_BYTES", 1)
    assert len(reference.choose(samples, scores)) == 1


def test_the_tolerance_is_a_tenth_of_the_way_to_the_threshold() -> None:
    calibration = Calibration.of(np.arange(1, 100, dtype=np.float32), None)
    assert reference.tolerance(calibration, calibration.threshold(0.01)) == pytest.approx((99 - 50) / 10)
    same = Calibration.of(np.full(9, 0.5, np.float32), None)
    assert 0 < reference.tolerance(same, same.threshold(0.1)) < 1e-5


def test_a_sound_model_loads_and_its_references_pass(tmp_path: Path) -> None:
    reports = Reports()
    version = published(tmp_path)
    detector = reference.load_detector(version, device="cpu", precision="auto", report=reports)
    assert (detector.device, detector.precision) == ("cpu", "fp32")
    assert reference.references_pass(detector, version)
    assert reports == []


def test_auto_falls_back_to_fp32_and_says_so(tmp_path: Path) -> None:
    reports = Reports()
    version = published(tmp_path, bf16_error=0.01)
    assert reference.load_detector(version, device="auto", precision="auto", report=reports).precision == "fp32"
    [(what, facts)] = reports
    assert what == "precision_refused"
    assert facts["precision"] == "bf16"
    assert facts["deviation"] == pytest.approx(0.01, rel=1e-3)
    with pytest.raises(ModelRefused, match=r"on cpu in bf16: off by 0\.01, tolerance"):
        reference.load_detector(version, device="auto", precision="bf16", report=reports)


def test_a_precision_within_the_tolerance_serves(tmp_path: Path) -> None:
    reports = Reports()
    version = published(tmp_path, bf16_error=0.01, tolerance=0.02)
    assert reference.load_detector(version, device="auto", precision="auto", report=reports).precision == "bf16"
    assert reports == []


def test_a_changed_byte_is_refused_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = published(tmp_path)
    weights = version.folder / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    monkeypatch.setattr(FakeDetector, "load", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(ModelRefused, match="was changed"):
        reference.load_detector(version, device="cpu", precision="fp32", report=Reports())


def test_a_loader_that_fails_refuses_the_model_and_a_missing_device_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = published(tmp_path)
    with pytest.raises(ConfigError, match="device"):
        reference.load_detector(version, device="cuda:7", precision="auto", report=Reports())
    monkeypatch.setattr(FakeDetector, "load", lambda *_, **__: {"a": 1}["weights"])
    with pytest.raises(ModelRefused, match="cannot be loaded"):
        reference.load_detector(version, device="cpu", precision="fp32", report=Reports())


def test_a_model_that_breaks_later_fails_its_references(tmp_path: Path) -> None:
    sabotage = tmp_path / "sabotage"
    version = published(tmp_path, sabotage=sabotage)
    detector = reference.load_detector(version, device="cpu", precision="fp32", report=Reports())
    for how in ("nan", "raise"):
        sabotage.write_text(how)
        assert not reference.references_pass(detector, version)
        with pytest.raises(ModelRefused, match="do not repeat"):
            reference.load_detector(version, device="cpu", precision="fp32", report=Reports())
    sabotage.write_text("lost")
    with pytest.raises(DeviceLost):
        reference.references_pass(detector, version)
    sabotage.unlink()
    assert reference.references_pass(detector, version)


@pytest.mark.parametrize("facts", [{"kind": "nothing"}, {"kind": "fake", "options": {"unknown": 1}}, {"kind": "fake", "options": {}}])
def test_a_manifest_that_says_too_little_is_refused(tmp_path: Path, facts: dict[str, Any]) -> None:
    published(tmp_path)
    version = ModelStore(tmp_path / "store").publish("other", tmp_path / "built", facts)
    with pytest.raises(ModelRefused):
        reference.load_detector(version, device="cpu", precision="fp32", report=Reports())


def test_scores_that_are_not_finite_are_an_error() -> None:
    detector = FakeDetector(FakeOptions())
    bad = sample(0)
    assert bad.image is not None
    bad.image[0, 0] = (249, 5, 79)
    with pytest.raises(MonitorError, match="not finite"):
        list(reference.scored(detector, [sample(1), bad], 2))
