"""Synthetic anomalies: Perlin noise, masks, training samples, defects and dents, against the figures of the specification."""

import math
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.random import Generator
from numpy.typing import NDArray

from detectors import synthesis
from detectors.synthesis import Synthetic, anomaly_mask, blended, defect, dent, perlin, synthetic, synthetic_auroc
from detectors.textures import procedural
from monitor.types import FloatArray

SIDE = 64
IMAGE: NDArray[np.uint8] = np.random.default_rng(2).integers(1, 256, (SIDE, SIDE, 3), dtype=np.uint8)
"""Without a black pixel: black is what a rotation leaves."""


def by_definition(height: int, width: int, cells: tuple[int, int], angle: NDArray[np.float64]) -> NDArray[np.float64]:
    """Perlin noise pixel by pixel, as textbooks have it."""

    def fade(t: float) -> float:
        return 6 * t**5 - 15 * t**4 + 10 * t**3

    found = np.zeros((height, width))
    for row in range(height):
        for column in range(width):
            y, x = row * cells[0] / height, column * cells[1] / width
            j, i = int(y), int(x)
            v, u = y - j, x - i
            corner = {}
            for b in (0, 1):
                for a in (0, 1):
                    turn = angle[j + b, i + a]
                    corner[b, a] = math.cos(turn) * (u - a) + math.sin(turn) * (v - b)
            above = corner[0, 0] + fade(u) * (corner[0, 1] - corner[0, 0])
            below = corner[1, 0] + fade(u) * (corner[1, 1] - corner[1, 0])
            found[row, column] = math.sqrt(2) * (above + fade(v) * (below - above))
    return found


@pytest.mark.parametrize(("height", "width", "cells"), [(32, 32, (1, 1)), (32, 32, (32, 4)), (24, 40, (8, 16)), (13, 7, (2, 32))])
def test_perlin_noise_is_that_of_the_definition(height: int, width: int, cells: tuple[int, int]) -> None:
    angle = np.random.default_rng(9).uniform(0, 2 * np.pi, (cells[0] + 1, cells[1] + 1))
    found = perlin(height, width, cells, np.random.default_rng(9))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, by_definition(height, width, cells, angle), atol=2e-6)


def test_perlin_noise_lies_between_minus_one_and_one() -> None:
    random = np.random.default_rng(1)
    planes = np.stack([perlin(64, 64, (4, 4), random) for _ in range(200)])
    assert -1 <= planes.min() < -0.85
    assert 0.85 < planes.max() <= 1
    assert abs(planes.mean()) < 0.01
    assert (np.abs(planes[:, ::16, ::16]) < 1e-6).all()  # 0 on the lattice


def test_masks_are_as_rare_and_as_large_as_specified(monkeypatch: pytest.MonkeyPatch) -> None:
    cells: list[tuple[int, int]] = []

    def noted(height: int, width: int, one: tuple[int, int], random: Generator) -> FloatArray:
        cells.append(one)
        return perlin(height, width, one, random)

    monkeypatch.setattr(synthesis, "perlin", noted)
    random = np.random.default_rng(11)
    covered = np.array([anomaly_mask(256, 256, random).mean() for _ in range(4000)])
    assert set(cells) == {(2**a, 2**b) for a in range(6) for b in range(6)}
    exponents = np.log2(np.array(cells)).sum(axis=1)
    assert (covered == 0).mean() == pytest.approx(0.051, abs=0.014)
    for exponent, empty in ((0, 0.56), (1, 0.35), (2, 0.16), (3, 0.03)):
        chosen = covered[exponents == exponent]
        assert (chosen == 0).mean() == pytest.approx(empty, abs=4.5 * math.sqrt(empty * (1 - empty) / len(chosen)))
    assert (covered[exponents >= 4] == 0).mean() < 0.01
    some = covered[covered > 0]
    assert some.mean() == pytest.approx(0.051, abs=0.003)
    np.testing.assert_allclose(np.quantile(some, (0.05, 0.5, 0.95)), (0.017, 0.047, 0.094), atol=0.005)


def test_masks_are_always_turned(monkeypatch: pytest.MonkeyPatch) -> None:
    angles: list[float] = []

    def noted(noise: Any, degrees: float) -> Any:
        angles.append(degrees)
        return noise

    monkeypatch.setattr(synthesis, "turned", noted)
    for seed in range(300):
        anomaly_mask(16, 16, np.random.default_rng(seed))
    assert len(angles) == 300
    assert -90 <= min(angles) < -80
    assert 80 < max(angles) <= 90


def samples(count: int, image: NDArray[Any] = IMAGE) -> list[Synthetic]:
    textures = procedural(*image.shape[:2])
    return [synthetic(image, textures, np.random.default_rng([7, place])) for place in range(count)]


def test_a_sample_is_that_of_its_generator() -> None:
    first, again = samples(40), samples(40)
    for one, other in zip(first, again, strict=True):
        for name in ("image", "clean", "mask"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert len({one.image.tobytes() for one in first if one.mask.any()}) == sum(one.mask.any() for one in first) > 10


def test_outside_the_mask_is_the_clean_image_and_inside_is_the_texture() -> None:
    before = IMAGE.copy()
    for one in samples(200):
        assert one.image.dtype == one.clean.dtype == np.float32
        assert one.mask.dtype == np.bool_
        assert one.image.min() >= 0
        assert one.image.max() <= 1
        np.testing.assert_array_equal(one.image[~one.mask], one.clean[~one.mask])
        if one.mask.any():
            assert (one.image[one.mask] != one.clean[one.mask]).any(axis=1).mean() > 0.9
    np.testing.assert_array_equal(IMAGE, before)


def test_so_many_samples_are_turned_and_carry_an_anomaly_as_specified() -> None:
    drawn = samples(3000)
    anomalous = np.array([one.mask.any() for one in drawn])
    rotated = np.array([not np.array_equal(one.clean, IMAGE / np.float32(255)) for one in drawn])
    assert anomalous.mean() == pytest.approx(0.474, abs=0.04)  # 4 deviations
    assert rotated.mean() == pytest.approx(0.3, abs=0.035)
    assert rotated[anomalous].mean() == pytest.approx(0.3, abs=0.05)
    black = np.array([(one.clean[0, 0] == 0).all() for one in drawn])
    assert not black[~rotated].any()
    assert black[rotated].mean() > 0.9  # the target is turned as the image is, and its corners are empty


def test_a_16_bit_image_is_not_rounded_to_8_bit() -> None:
    fine = (np.arange(SIDE * SIDE * 3, dtype=np.float32) / np.float32(SIDE * SIDE * 3)).reshape(SIDE, SIDE, 3)
    drawn = samples(30, fine)
    assert any(np.array_equal(one.clean, fine) for one in drawn)
    assert all(one.image.dtype == np.float32 for one in drawn)
    assert all(len(np.unique(one.image[~one.mask])) > 2000 for one in drawn)


def test_the_texture_is_changed_and_shines_through_by_its_opacity(monkeypatch: pytest.MonkeyPatch) -> None:
    opacities: list[float] = []

    def noted(clean: Any, texture: Any, mask: Any, opacity: float) -> Any:
        assert (texture == 55).all()  # what the augmenters made of it
        opacities.append(opacity)
        return blended(clean, texture, mask, opacity)

    monkeypatch.setattr(synthesis, "blended", noted)
    monkeypatch.setattr(synthesis, "augmented", lambda texture, random: texture + 5)
    for place in range(800):
        synthetic(IMAGE, lambda _: np.full_like(IMAGE, 50), np.random.default_rng(place))
    assert 0.2 <= min(opacities) < 0.22
    assert 0.98 < max(opacities) <= 1
    assert np.mean(opacities) == pytest.approx(0.6, abs=0.05)


def test_blending_is_a_mean_by_opacity() -> None:
    clean = np.full((2, 2, 3), 0.5, np.float32)
    mask = np.array([[True, False], [False, False]])
    found = blended(clean, np.full((2, 2, 3), 255, np.uint8), mask, 0.25)
    np.testing.assert_allclose(found[0, 0], 0.75 * 0.5 + 0.25, rtol=1e-6)
    np.testing.assert_array_equal(found[~mask], clean[~mask])
    assert (clean == 0.5).all()


def test_textures_must_have_the_size_of_the_image() -> None:
    with pytest.raises(ValueError, match=r"\(64, 64, 3\) needs textures of its size, got \(32, 64, 3\)"):
        defect(np.zeros((64, 64, 3), np.float32), procedural(32, 64), np.random.default_rng(0))


@pytest.mark.parametrize(("height", "width"), [(96, 128), (64, 64), (9, 8)])
def test_defects_are_seeded_within_their_mask_and_never_missing(height: int, width: int) -> None:
    normal = np.full((height, width, 3), (0.5, 0.4, 0.5), np.float32)
    textures = procedural(height, width)
    sizes, changes = [], []
    for seed in range(150):
        changed, mask = defect(normal, textures, np.random.default_rng(seed))
        again, _ = defect(normal, textures, np.random.default_rng(seed))
        np.testing.assert_array_equal(changed, again)
        assert changed.dtype == np.float32
        assert changed.min() >= 0
        assert changed.max() <= 1
        assert mask.any()
        assert cv2.connectedComponents(mask.astype(np.uint8))[0] == 2  # with the background
        np.testing.assert_array_equal(changed[~mask], normal[~mask])
        sizes.append(mask.mean())
        changes.append(np.abs(changed - normal).max())
    assert max(sizes) < 0.5
    assert np.unique(sizes).size > 10
    assert np.mean(np.array(changes) > 0.05) > 0.9
    assert (normal == np.float32((0.5, 0.4, 0.5))).all()


def test_anomalies_on_grey_images_are_grey() -> None:
    grey = np.repeat(IMAGE[..., :1], 3, axis=2)
    drawn = samples(40, grey)
    assert any(one.mask.any() for one in drawn)
    assert all((one.image == one.image[..., :1]).all() for one in drawn)
    assert any((one.image != one.image[..., :1]).any() for one in samples(40))
    changed, _ = defect(np.full((32, 32, 3), 0.5, np.float32), procedural(32, 32), np.random.default_rng(1))
    assert (changed == changed[..., :1]).all()


def test_one_pixel_has_no_room_for_a_defect() -> None:
    with pytest.raises(ValueError, match="no room"):
        defect(np.zeros((1, 1, 3), np.float32), lambda _: np.zeros((1, 1, 3), np.uint8), np.random.default_rng(0))


def test_dents_are_local_of_some_millimetres_and_inside() -> None:
    relief = np.random.default_rng(0).normal(size=(96, 128)).astype(np.float32)
    inside = np.zeros(relief.shape, np.bool_)
    inside[20:70, 30:100] = True
    heights, sizes = [], []
    for seed in range(120):
        found = dent(relief, inside, np.random.default_rng(seed))
        np.testing.assert_array_equal(found, dent(relief, inside, np.random.default_rng(seed)))
        assert found.dtype == np.float32
        change = found - relief
        assert (change[~inside] == 0).all()
        heights.append(change.flat[np.abs(change).argmax()])
        sizes.append((np.abs(change) > 0.5 * np.abs(change).max()).mean())
    assert np.abs(heights).min() > 0.05
    assert np.abs(heights).max() <= 0.6 + 1e-5  # centimetres
    assert 0.3 < np.mean(np.array(heights) > 0) < 0.7
    assert max(sizes) < 0.1
    assert np.median(sizes) > 0.002


def test_a_score_that_sees_the_defect_is_told_from_one_that_does_not() -> None:
    normals = [float(value) for value in np.random.default_rng(0).normal(size=40)]

    def damaged(normal: float, random: Generator) -> float:
        return normal + random.uniform(10, 20)

    told: list[tuple[int, int]] = []
    figures = synthetic_auroc(
        normals, damaged, lambda one: {"sees": one, "blind": 0.0}, seed=3, progress=lambda _, step, steps, __: told.append((step, steps))
    )
    assert figures == {"sees": 1.0, "blind": 0.5}
    assert told[-1] == (240, 240)
