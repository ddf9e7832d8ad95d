"""Each of AEGAN-AD's 19 scores against a slow, obvious reference: loops over the formulas of its specification."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf, ledoit_wolf
from torch import Tensor

from detectors.aegan_ad.options import SCORES
from detectors.aegan_ad.scores import DISTANCES, FEWEST_CLIPS, POOL_SCORES, Pool, Residuals, clip_scores, residuals, window_distances
from monitor.types import FloatArray

Vector = NDArray[np.float64]


def test_nineteen_in_the_order_of_the_paper_and_one_more() -> None:
    in_order = (
        *("D_maha", "D_knn", "D_lof", "D_cos"),
        *("G_x_2_sum", "G_x_2_min", "G_x_2_max", "G_x_1_sum", "G_x_1_min", "G_x_1_max"),
        *("G_z_2_sum", "G_z_2_min", "G_z_2_max", "G_z_1_sum", "G_z_1_min", "G_z_1_max"),
        *("G_z_cos_sum", "G_z_cos_min", "G_z_cos_max"),
        "R_maha",
    )
    assert in_order == SCORES


# the generator's


def windows(counts: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, G(x), E(x), E(G(x)) of the windows of several clips; smaller than real ones."""
    generator = torch.Generator().manual_seed(5)
    n = sum(counts)
    x = torch.rand(n, 1, 16, 16, generator=generator) * 2 - 1
    z = torch.randn(n, 24, 1, 1, generator=generator)
    return (
        x,
        x + 0.3 * torch.randn(x.shape, generator=generator),
        z,
        z + 0.5 * torch.randn(z.shape, generator=generator),
    )


def obvious_distance(name: str, first: Tensor, second: Tensor) -> float:
    a, b = ([float(value) for value in tensor.flatten()] for tensor in (first, second))
    if name.endswith("_2"):
        return sum((p - q) ** 2 for p, q in zip(a, b, strict=True))
    if name.endswith("_1"):
        return sum(abs(p - q) for p, q in zip(a, b, strict=True))
    return 1 - sum(p * q for p, q in zip(a, b, strict=True)) / math.sqrt(sum(p * p for p in a) * sum(q * q for q in b))


def obvious_g(name: str, counts: list[int], tensors: tuple[Tensor, Tensor, Tensor, Tensor]) -> list[float]:
    """name: e.g. G_z_cos_max. Sums are plain."""
    _, which, distance, reduction = name.split("_")
    first, second = tensors[:2] if which == "x" else tensors[2:]
    reduce: Callable[[list[float]], float] = {"sum": sum, "min": min, "max": max}[reduction]
    scores, begin = [], 0
    for count in counts:
        scores.append(reduce([obvious_distance(f"_{distance}", first[i], second[i]) for i in range(begin, begin + count)]))
        begin += count
    return scores


@pytest.mark.parametrize("name", [name for name in SCORES if name.startswith("G_")])
def test_generator_scores(name: str) -> None:
    counts = [7, 7, 7]
    tensors = windows(counts)
    found = clip_scores(window_distances(*tensors), counts, 7)
    assert set(found) == {score for score in SCORES if score.startswith("G_")}
    assert found[name].dtype == torch.float32
    np.testing.assert_allclose(found[name].numpy(), obvious_g(name, counts, tensors), rtol=2e-6)


def test_a_clip_of_another_length_has_its_sums_brought_to_the_usual_one() -> None:
    counts = [8, 2, 1]
    tensors = windows(counts)
    found = clip_scores(window_distances(*tensors), counts, 8)
    for distance in DISTANCES:
        sums = obvious_g(f"G_{distance}_sum", counts, tensors)
        np.testing.assert_allclose(found[f"G_{distance}_sum"].numpy(), [sums[0], 4 * sums[1], 8 * sums[2]], rtol=2e-6)
        for extreme in ("min", "max"):
            np.testing.assert_allclose(found[f"G_{distance}_{extreme}"].numpy(), obvious_g(f"G_{distance}_{extreme}", counts, tensors), rtol=2e-6)


def test_without_latents_only_what_needs_none() -> None:
    x, reconstructed, *_ = windows([4])
    found = clip_scores(window_distances(x, reconstructed), [4], 4)
    assert set(found) == {f"G_{distance}_{reduction}" for distance in ("x_2", "x_1") for reduction in ("sum", "min", "max")}


def test_a_cosine_distance_far_below_the_precision_of_float32() -> None:
    z = torch.randn(1, 256, generator=torch.Generator().manual_seed(1))
    again = z.clone()
    again[0, 0] += 1e-3
    found = window_distances(z, z, z, again)["z_cos"]
    assert float(found[0]) == pytest.approx(obvious_distance("_cos", z, again), rel=1e-4)
    assert 0 < float(found[0]) < 1e-8


def test_distances_of_bf16_are_fp32() -> None:
    x, reconstructed, z, again = (tensor.bfloat16() for tensor in windows([3]))
    found = window_distances(x, reconstructed, z, again)
    assert {values.dtype for values in found.values()} == {torch.float32}
    np.testing.assert_allclose(found["x_2"].numpy(), [obvious_distance("_2", a, b) for a, b in zip(x, reconstructed, strict=True)], rtol=2e-6)


def test_a_nan_in_one_window_makes_its_clip_nan_and_no_other() -> None:
    counts = [3, 3]
    x, reconstructed, z, again = windows(counts)
    reconstructed[1, 0, 2, 3] = torch.nan
    again[1, 5] = torch.nan
    for name, values in clip_scores(window_distances(x, reconstructed, z, again), counts, 3).items():
        assert values[0].isnan(), name
        assert values[1].isfinite(), name


# the critic's


def embeddings(count: int, dimensions: int, seed: int = 0) -> FloatArray:
    """Around a common direction, with correlated dimensions of very different sizes."""
    shared = np.random.default_rng(99)
    mix = shared.normal(size=(dimensions, dimensions)) * shared.uniform(0.01, 1, dimensions)
    centre = shared.normal(0, 3, dimensions)
    generator = np.random.default_rng(seed)
    return np.asarray(centre + generator.normal(size=(count, dimensions)) @ mix * 0.1, np.float32)


def cosine(a: Vector, b: Vector) -> float:
    return 1 - float(sum(a * b)) / math.sqrt(float(sum(a * a)) * float(sum(b * b)))


def obvious_maha(e: Vector, pool: Vector) -> float:
    mean = sum(pool) / len(pool)
    dimensions = pool.shape[1]
    covariance = np.zeros((dimensions, dimensions))
    for row in pool:
        covariance += np.outer(row - mean, row - mean)
    covariance /= len(pool) - 1
    return math.sqrt((e - mean) @ np.linalg.solve(covariance, e - mean))


def obvious_knn(e: Vector, pool: Vector) -> float:
    return sum(sorted(cosine(e, other) for other in pool)[:2])


def obvious_lof(e: Vector, pool: Vector) -> float:
    def nearest(a: Vector, own: int | None) -> list[tuple[float, int]]:
        return sorted((cosine(a, other), index) for index, other in enumerate(pool) if index != own)[:4]

    def density(a: Vector, own: int | None) -> float:
        reaches = [max(nearest(pool[index], index)[3][0], distance) for distance, index in nearest(a, own)]
        return 1 / (sum(reaches) / 4 + 1e-10)

    return sum(density(pool[index], index) for _, index in nearest(e, None)) / 4 / density(e, None)


def obvious_cos(e: Vector, pool: Vector) -> float:
    return cosine(e, sum(pool) / len(pool))


OBVIOUS = {"D_maha": obvious_maha, "D_knn": obvious_knn, "D_lof": obvious_lof, "D_cos": obvious_cos}


@pytest.mark.parametrize("name", POOL_SCORES)
def test_critic_scores(name: str) -> None:
    training, clips = embeddings(60, 12), np.concatenate([embeddings(4, 12, seed=1), embeddings(2, 12, seed=2) * 3 + 1])
    pool = Pool(training)
    assert pool.covariance == "empirical"
    found = pool.scores(clips)[name]
    assert (found.shape, found.dtype) == ((6,), np.float32)
    expected = [OBVIOUS[name](clip.astype(np.float64), training.astype(np.float64)) for clip in clips]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_mahalanobis_of_512_dimensions_on_more_clips() -> None:
    training, clips = embeddings(700, 512), embeddings(3, 512, seed=1)
    pool = Pool(training)
    assert pool.covariance == "empirical"
    expected = [obvious_maha(clip.astype(np.float64), training.astype(np.float64)) for clip in clips]
    np.testing.assert_allclose(pool.scores(clips)["D_maha"], expected, rtol=1e-4)


@pytest.mark.parametrize("clips", [FEWEST_CLIPS, 14, 512])
def test_mahalanobis_with_few_clips_is_shrunk(clips: int) -> None:
    """Towards a multiple of the identity: the formula, with the share that scikit-learn's function of Ledoit and Wolf gives."""
    training, others = embeddings(clips, 512), embeddings(3, 512, seed=1)
    pool = Pool(training)
    assert pool.covariance == "shrunk"
    exact = training.astype(np.float64)
    centred = exact - exact.mean(axis=0)
    empirical = centred.T @ centred / clips
    _, share = ledoit_wolf(exact)
    assert 0 < share <= 1
    covariance = (1 - share) * empirical + share * np.trace(empirical) / 512 * np.eye(512)
    off = others.astype(np.float64) - exact.mean(axis=0)
    expected = [math.sqrt(row @ np.linalg.solve(covariance, row)) for row in off]
    np.testing.assert_allclose(pool.scores(others)["D_maha"], expected, rtol=1e-5)


def test_many_clips_but_a_dimension_that_never_moves_is_shrunk() -> None:
    training = embeddings(60, 12)
    training[:, 3] = 1.5
    pool = Pool(training)
    assert pool.covariance == "shrunk"
    assert np.isfinite(pool.scores(embeddings(2, 12, seed=1))["D_maha"]).all()


def test_a_clip_of_the_pool_is_its_own_neighbour_at_no_distance() -> None:
    training = embeddings(20, 12)
    found = Pool(training).scores(training[:1])["D_knn"]
    distances = sorted(cosine(training[0].astype(np.float64), other.astype(np.float64)) for other in training)
    assert found[0] == pytest.approx(distances[1], rel=1e-5)


def test_alone_as_in_a_batch_and_rebuilt() -> None:
    training, clips = embeddings(40, 512), embeddings(9, 512, seed=1)
    pool, again = Pool(training), Pool(training.copy())
    batch = pool.scores(clips)
    for name, values in again.scores(clips).items():
        np.testing.assert_array_equal(values, batch[name])
    for index in range(9):
        for name, values in pool.scores(clips[index : index + 1]).items():
            np.testing.assert_allclose(values[0], batch[name][index], rtol=1e-6)


def test_only_what_is_wanted() -> None:
    training = embeddings(20, 12)
    assert list(Pool(training).scores(training, ["D_lof", "G_x_2_sum"])) == ["D_lof"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_broken_embedding_scores_nan_and_leaves_the_others(value: float) -> None:
    clips = embeddings(3, 12, seed=1)
    pool = Pool(embeddings(20, 12))
    whole = pool.scores(clips)
    clips[1, 4] = value
    for name, values in pool.scores(clips).items():
        assert np.isnan(values[1]), name
        np.testing.assert_allclose(values[[0, 2]], whole[name][[0, 2]], rtol=1e-6)
    clips[:] = value
    assert all(np.isnan(values).all() for values in pool.scores(clips).values())


def test_refused() -> None:
    training = embeddings(20, 12)
    with pytest.raises(ValueError, match=r"4 training clips: .* need 5"):
        Pool(training[:4])
    with pytest.raises(ValueError, match="all alike"):
        Pool(np.repeat(training[:1], 20, axis=0))
    training[3, 3] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        Pool(training)


# what reconstruction leaves


def test_residuals_are_mean_and_deviation_of_each_band() -> None:
    random = np.random.default_rng(3)
    spectra, denoised = (torch.from_numpy(random.normal(size=(2, 128, 140)).astype(np.float32)) for _ in range(2))
    found = residuals(spectra, denoised).numpy()
    for clip in range(2):
        for band in (0, 77, 127):
            off = (spectra[clip, band] - denoised[clip, band]).double().numpy()
            assert found[clip, band] == pytest.approx(off.mean(), abs=1e-6)
            assert found[clip, 128 + band] == pytest.approx(off.std(ddof=1), rel=1e-5)


def test_r_maha_is_mahalanobis_distance_in_units_of_each_feature() -> None:
    random = np.random.default_rng(4)
    scale = 10.0 ** random.uniform(-3, 3, 12)
    clips = (random.normal(size=(40, 12)) * scale).astype(np.float32)
    others = (random.normal(1, 2, size=(7, 12)) * scale).astype(np.float32)
    exact = clips.astype(np.float64)
    mean, unit = exact.mean(axis=0), exact.std(axis=0)
    covariance = LedoitWolf().fit((exact - mean) / unit).covariance_
    found = Residuals(clips).scores(others)
    for clip in range(7):
        off = (others[clip] - mean) / unit
        assert found[clip] == pytest.approx(math.sqrt(off @ np.linalg.solve(covariance, off)), rel=1e-5)
    others[2, 5] = np.nan
    assert np.isnan(Residuals(clips).scores(others)).tolist() == [False, False, True, False, False, False, False]


def test_a_feature_that_never_changes_breaks_no_residuals() -> None:
    clips = np.random.default_rng(5).normal(size=(20, 6)).astype(np.float32)
    clips[:, 2] = 0.25
    found = Residuals(clips)
    changed = clips[:1].copy()
    changed[0, 2] = 0.3
    assert np.isfinite(found.scores(clips)).all()
    assert found.scores(changed)[0] > found.scores(clips[:1])[0]
    clips[3, 3] = np.inf
    with pytest.raises(ValueError, match="not finite"):
        Residuals(clips)
