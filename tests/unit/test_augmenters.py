"""The ten texture augmenters: each value by arithmetic of its own, and the published ranges."""

from collections import Counter
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from detectors import augmenters
from detectors.augmenters import AUGMENTERS, augmented, turned

RAMP: NDArray[np.uint8] = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
"""Every value once, in each channel."""
COLOURS: NDArray[np.uint8] = np.random.default_rng(5).integers(0, 256, (24, 32, 3), dtype=np.uint8)


class Scripted(Generator):
    """Draws what the test says, and remembers the limits it was asked for."""

    def __init__(self, *values: Any) -> None:
        super().__init__(np.random.PCG64(0))
        self.values = list(values)
        self.asked: list[tuple[Any, ...]] = []

    def uniform(self, *limits: Any) -> Any:  # type: ignore[override]
        self.asked.append(("uniform", *limits))
        return self.values.pop(0)

    def integers(self, *limits: Any) -> Any:  # type: ignore[override]
        self.asked.append(("integers", *limits))
        return self.values.pop(0)

    def random(self) -> Any:  # type: ignore[override]
        self.asked.append(("random",))
        return self.values.pop(0)


def seeds(count: int) -> list[Generator]:
    return [np.random.default_rng(seed) for seed in range(count)]


@pytest.mark.parametrize("name", AUGMENTERS)
def test_each_gives_a_new_texture_of_the_same_kind_and_leaves_the_old(name: str) -> None:
    before = COLOURS.copy()
    before.flags.writeable = False
    for random in seeds(12):
        found = AUGMENTERS[name](before, random)
        assert found.shape == before.shape
        assert found.dtype == np.uint8
    np.testing.assert_array_equal(before, COLOURS)


@pytest.mark.parametrize("name", sorted(set(AUGMENTERS) - {"invert", "equalize"}))
def test_each_draws_from_its_generator_alone(name: str) -> None:
    def three(seed: int) -> NDArray[np.uint8]:
        random = np.random.default_rng(seed)
        return np.stack([AUGMENTERS[name](COLOURS, random) for _ in range(3)])

    np.testing.assert_array_equal(three(1), three(1))
    assert any((three(1) != three(seed)).any() for seed in range(2, 6))


def test_gamma_is_by_channel_and_truncated() -> None:
    random = Scripted(np.array([0.5, 1.5, 2.0]))
    found = augmenters.gamma_contrast(RAMP, random)
    assert random.asked == [("uniform", 0.5, 2.0, 3)]
    assert found[0, 10].tolist() == [int(255 * (10 / 255) ** 0.5), int(255 * (10 / 255) ** 1.5), int(100 / 255)] == [50, 1, 0]
    assert found[12, 8].tolist() == [int(255 * (200 / 255) ** 0.5), int(255 * (200 / 255) ** 1.5), 156] == [225, 177, 156]
    assert found[15, 15].tolist() == [255, 255, 255]


def test_brightness_is_multiplied_and_added_to_in_either_order() -> None:
    grey = np.full((2, 2, 3), 201, np.uint8)
    hsv = 1
    multiplied_first = Scripted(hsv, 1.19, 20.6, 0.2)
    assert (augmenters.brightness(grey, multiplied_first) == 255).all()  # of 239 + 21
    assert (augmenters.brightness(grey, Scripted(hsv, 0.83, -20.6, 0.2)) == int(201 * 0.83) - 21).all()  # 166 - 21
    assert (augmenters.brightness(grey, Scripted(hsv, 0.83, -20.6, 0.7)) == int((201 - 21) * 0.83)).all()  # 149
    assert (augmenters.brightness(grey // 20, Scripted(hsv, 0.83, -20.6, 0.2)) == 0).all()
    assert multiplied_first.asked == [("integers", 6), ("uniform", 0.8, 1.2), ("uniform", -30, 30), ("random",)]


@pytest.mark.parametrize(
    ("place", "there", "channel"),
    [
        (0, cv2.COLOR_RGB2YCrCb, 0),
        (1, cv2.COLOR_RGB2HSV, 2),
        (2, cv2.COLOR_RGB2HLS, 1),
        (3, cv2.COLOR_RGB2LAB, 0),
        (4, cv2.COLOR_RGB2LUV, 0),
        (5, cv2.COLOR_RGB2YUV, 0),
    ],
)
def test_brightness_leaves_the_colour(place: int, there: int, channel: int) -> None:
    muted = (100 + COLOURS // 8).astype(np.uint8)  # no value leaves its range
    found = augmenters.brightness(muted, Scripted(place, 1.1, 12.0, 0.2))
    before, after = (cv2.cvtColor(image, there).astype(int) for image in (muted, found))
    assert np.abs(after[..., channel] - (np.trunc(before[..., channel] * 1.1) + 12)).max() <= 2  # there and back in 8 bit
    others = [one for one in range(3) if one != channel]
    if place in (0, 3, 4, 5):
        assert np.abs(after[..., others] - before[..., others]).max() <= 3
    assert found.mean() > muted.mean() + 10


def test_sharpness_reaches_from_smoothed_to_twice_the_edges() -> None:
    random = Scripted(0.0)
    smoothed = augmenters.sharpness(COLOURS, random)
    assert random.asked == [("uniform", 0, 2)]
    np.testing.assert_array_equal(smoothed, np.asarray(Image.fromarray(COLOURS).filter(ImageFilter.SMOOTH)))
    np.testing.assert_array_equal(augmenters.sharpness(COLOURS, Scripted(1.0)), COLOURS)
    twice = 2 * COLOURS.astype(int) - smoothed
    np.testing.assert_array_equal(augmenters.sharpness(COLOURS, Scripted(2.0)), np.clip(twice, 0, 255))


@pytest.mark.parametrize(("hue", "saturation"), [(50, 20), (-50, -50), (-1, 50), (3, -7)])
def test_hue_goes_round_and_saturation_is_clipped(hue: int, saturation: int) -> None:
    hsv = np.stack(np.meshgrid(np.arange(0, 180, 2), np.arange(0, 256, 5)), axis=2).astype(np.uint8)
    hsv = np.concatenate([hsv, np.full((*hsv.shape[:2], 1), 255, np.uint8)], axis=2)
    texture = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    random = Scripted(np.array([hue, saturation]))
    found = augmenters.hue_and_saturation(np.asarray(texture, np.uint8), random)
    assert random.asked == [("integers", -50, 51, 2)]
    start = cv2.cvtColor(texture, cv2.COLOR_RGB2HSV).astype(int)
    turned_by = {50: 35, -50: -35, -1: 0, 3: 2}[hue]  # of 180: truncated towards 0
    wanted = start.copy()
    wanted[..., 0] = (start[..., 0] + turned_by) % 180
    wanted[..., 1] = np.minimum(np.maximum(start[..., 1] + saturation, 0), 255)
    np.testing.assert_array_equal(found, cv2.cvtColor(wanted.astype(np.uint8), cv2.COLOR_HSV2RGB))


def test_solarize_inverts_from_the_floor_of_its_threshold_on() -> None:
    random = Scripted(0.4, 99.9)
    found = augmenters.solarize(RAMP, random).reshape(256, 3)
    assert ("uniform", 32, 128) in random.asked
    np.testing.assert_array_equal(found[:99], RAMP.reshape(256, 3)[:99])
    np.testing.assert_array_equal(found[99:], 255 - RAMP.reshape(256, 3)[99:])
    np.testing.assert_array_equal(augmenters.solarize(RAMP, Scripted(0.6)), RAMP)


def test_solarize_happens_in_half_of_all_cases() -> None:
    found = [(augmenters.solarize(RAMP, random) != RAMP).any() for random in seeds(600)]
    assert 0.42 < np.mean(found) < 0.58


@pytest.mark.parametrize("bits", range(1, 9))
def test_posterize_falls_to_the_lower_edge(bits: int) -> None:
    random = Scripted(bits)
    found = augmenters.posterize(RAMP, random)
    assert random.asked == [("integers", 1, 9)]
    assert len(np.unique(found)) == 2**bits
    np.testing.assert_array_equal(found, RAMP & np.uint8(256 - 2 ** (8 - bits)))


def test_invert() -> None:
    assert augmenters.invert(np.array([[[0, 100, 255]]], np.uint8), np.random.default_rng(0)).tolist() == [[[255, 155, 0]]]


def test_autocontrast_cuts_both_ends_and_stretches_each_channel() -> None:
    random = Scripted(0)
    texture = np.stack([np.linspace(*ends, 100) for ends in ((50, 100), (0, 255), (200, 250))], axis=1).astype(np.uint8)[None]
    found = augmenters.autocontrast(texture, random)
    assert random.asked == [("integers", 0, 21)]
    assert found.min(axis=(0, 1)).tolist() == [0, 0, 0]
    assert found.max(axis=(0, 1)).min() >= 254  # PIL truncates
    cut = augmenters.autocontrast(texture, Scripted(20))
    assert 0.18 <= (cut[..., 1] == 0).mean() <= 0.22
    assert 0.18 <= (cut[..., 1] == 255).mean() <= 0.22


def test_equalize_makes_each_histogram_flat() -> None:
    dark = np.tile(np.stack([RAMP[..., 0] // 4, RAMP[..., 0] // 2, 255 - RAMP[..., 0] // 8], axis=2), (8, 8, 1))
    found = augmenters.equalize(dark, np.random.default_rng(0))
    for channel, levels in enumerate((64, 128, 32)):
        rank = dark[..., channel] - dark[..., channel].min()
        assert np.abs(found[..., channel] - 255 * (rank / (levels - 1))).max() <= max(4, 256 / levels)


def test_turning_is_about_the_centre_and_leaves_black() -> None:
    np.testing.assert_array_equal(turned(COLOURS[:, :24], 90), np.rot90(COLOURS[:, :24]))
    random = Scripted(30.0)
    found = augmenters.rotate(np.full((65, 65, 3), 200, np.uint8), random)
    assert random.asked == [("uniform", -45, 45)]
    assert (found[0, 0] == 0).all()
    assert (found[32, 32] == 200).all()


def test_three_of_ten_without_replacement_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []

    def noted(name: str) -> Any:
        def apply(texture: Any, _: Generator) -> Any:
            drawn.append(name)
            return texture

        return apply

    monkeypatch.setattr(augmenters, "AUGMENTERS", {name: noted(name) for name in AUGMENTERS})
    random = np.random.default_rng(7)
    orders = []
    for _ in range(2000):
        drawn.clear()
        assert augmented(COLOURS, random) is COLOURS
        assert len(set(drawn)) == len(drawn) == 3
        orders.append(tuple(drawn))
    counts = Counter(name for order in orders for name in order)
    assert set(counts) == set(AUGMENTERS)
    assert len(AUGMENTERS) == 10
    assert all(520 < count < 680 for count in counts.values())  # 600 expected; 4 deviations are 82
    assert len(set(orders)) > 600  # of 720
