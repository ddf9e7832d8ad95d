"""The threshold rule: exact at whole numbers, honest about what it cannot support, and covering as promised."""

import json
import math

import numpy as np
import pytest

from monitor.calibration import Calibration, normals_needed
from monitor.errors import ModelRefused


def of(n: int) -> Calibration:
    """Scores 1, 2, ... n, so that the k-th smallest is k."""
    return Calibration.of(np.arange(n, 0, -1, dtype=np.float32), None)


@pytest.mark.parametrize(
    ("n", "probability", "k"), [(99, 0.01, 99), (199, 0.01, 198), (9, 0.1, 9), (19, 0.05, 19), (100, 0.01, 100), (999, 0.001, 999)]
)
def test_the_kth_smallest(n: int, probability: float, k: int) -> None:
    threshold = of(n).threshold(probability)
    assert threshold.value == k
    assert threshold.supported is None
    assert threshold.more_needed == 0
    assert threshold.words is None


def test_whole_numbers_survive_floating_point() -> None:
    for n in range(1, 2000):  # (n + 1)(1 - p) is a whole number whenever p = j / (n + 1)
        assert math.isclose(of(n).threshold(0.5).value, math.ceil((n + 1) / 2))
    assert of(99).threshold(0.07).value == 93  # in floats (1 - 0.07) * 100 = 92.99999999999999
    assert of(99).threshold(0.29).value == 71
    assert of(999).threshold(0.007).value == 993


def test_too_few_normals_are_said() -> None:
    threshold = of(62).threshold(0.01)
    assert threshold.value == 62
    assert threshold.supported == 1 / 63
    assert threshold.words == "supported 1/63, asked 0.01, 37 more normals needed"
    assert normals_needed(0.01) == 99
    assert of(99).threshold(0.01).supported is None
    assert of(98).threshold(0.01).more_needed == 1


def test_p_value_counts_ties_as_strange() -> None:
    calibration = Calibration.of([1.0, 2.0, 2.0, 3.0], None)
    assert calibration.p_value(2.0) == 4 / 5
    assert calibration.p_value(3.5) == 1 / 5
    assert calibration.p_value(0.0) == 1.0
    assert Calibration.of([0.1], None).p_value(float(np.float32(0.1))) == 1.0  # 0.1 as float32 is not 0.1 as float


def test_a_score_equal_to_the_threshold_is_normal_after_json() -> None:
    scores = np.random.default_rng(0).random(101, dtype=np.float32)
    calibration = Calibration.of(scores, scores * 2)
    back = Calibration.from_manifest(json.loads(json.dumps({"calibration": calibration.to_manifest()})))
    assert np.array_equal(back.scores, calibration.scores)
    value = back.threshold(0.01).value
    assert int((scores > value).sum()) == 0
    assert back.map_threshold(0.01) == pytest.approx(2 * value)
    assert int((scores > back.threshold(0.1).value).sum()) <= 10


def test_coverage_is_as_asked() -> None:
    generator = np.random.default_rng(20261122)
    rounds, n, probability = 4000, 59, 0.05
    scores = generator.lognormal(size=(rounds, n + 1)).astype(np.float32)
    false_alarms = sum(row[-1] > Calibration.of(row[:-1], None).threshold(probability).value for row in scores)
    error = 3 * math.sqrt(probability * (1 - probability) / rounds)
    assert abs(false_alarms / rounds - probability) < error


@pytest.mark.parametrize("scores", [[], [1.0, float("nan")], [float("inf")], [[1.0]]])
def test_refused_scores(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="calibration scores"):
        Calibration.of(scores, None)


@pytest.mark.parametrize("probability", [0.0, 1.0, -0.1, float("nan")])
def test_refused_probabilities(probability: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        of(3).threshold(probability)


@pytest.mark.parametrize("manifest", [{}, {"calibration": 3}, {"calibration": {"scores": ["a"], "map_peaks": None}}])
def test_an_unreadable_manifest_is_refused(manifest: dict[str, object]) -> None:
    with pytest.raises(ModelRefused, match="calibration"):
        Calibration.from_manifest(manifest)
