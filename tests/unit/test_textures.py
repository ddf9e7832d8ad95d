"""Where textures come from: a folder of images, or patterns drawn at random."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from detectors import textures
from detectors.textures import PATTERNS, from_folder, procedural
from monitor.errors import ConfigError


def write(path: Path, colour: tuple[int, int, int], shape: tuple[int, int] = (20, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((*shape, 3), colour[::-1], np.uint8))


def test_a_folder_gives_its_images_at_any_depth_in_rgb(tmp_path: Path) -> None:
    write(tmp_path / "red.png", (255, 0, 0))
    write(tmp_path / "a" / "b" / "green.BMP", (0, 255, 0), (100, 7))
    write(tmp_path / "höher" / "blue.png", (0, 0, 255))
    (tmp_path / "licence.txt").write_text("free")
    source = from_folder(tmp_path, 16, seed=0)
    random = np.random.default_rng(0)
    drawn = [source(random) for _ in range(60)]
    assert {one.shape for one in drawn} == {(16, 16, 3)}
    assert {tuple(one[8, 8].tolist()) for one in drawn} == {(255, 0, 0), (0, 255, 0), (0, 0, 255)}
    assert all((one == one[0, 0]).all() for one in drawn)
    with pytest.raises(ValueError, match="read-only"):
        drawn[0][0, 0] = 1  # all draws of an image share it


def test_grey_and_16_bit_become_8_bit_rgb(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((8, 8), 0x8000, np.uint16))
    found = from_folder(tmp_path, 8, seed=0)(np.random.default_rng(0))
    assert found.dtype == np.uint8
    assert (found == 128).all()


def test_of_many_images_the_seed_draws_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(30):
        write(tmp_path / f"{number:02}.png", (number, 0, 0))
    monkeypatch.setattr(textures, "MOST", 5)

    def held(seed: int) -> set[int]:
        source, random = from_folder(tmp_path, 8, seed), np.random.default_rng(1)
        return {int(source(random)[0, 0, 0]) for _ in range(200)}

    assert len(held(1)) == 5
    assert held(1) == held(1)
    assert held(1) != held(2)


def test_what_is_wrong_with_a_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gone: no such folder"):
        from_folder(tmp_path / "gone", 16, 0)
    with pytest.raises(ConfigError, match=r"no image in it or below .*\.png"):
        from_folder(tmp_path, 16, 0)
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n, and no more")
    with pytest.raises(ConfigError, match=r"torn\.png: not an image"):
        from_folder(tmp_path, 16, 0)
    (tmp_path / "torn.png").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"torn\.png: not an image"):
        from_folder(tmp_path, 16, 0)
    (tmp_path / "torn.png").unlink()
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ConfigError, match=r"folder\.png: cannot be read"):
        from_folder(tmp_path, 16, 0)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 80), (8, 9)])
def test_patterns_have_the_size_and_are_seeded(height: int, width: int) -> None:
    source = procedural(height, width)
    for seed in range(40):
        one = source(np.random.default_rng(seed))
        assert one.shape == (height, width, 3)
        assert one.dtype == np.uint8
        np.testing.assert_array_equal(one, source(np.random.default_rng(seed)))


@pytest.mark.parametrize("pattern", sorted(set(PATTERNS), key=lambda one: one.__name__))
def test_each_pattern_is_a_plane_within_limits_that_is_not_level(pattern: textures.Pattern) -> None:
    for seed in range(20):
        field = pattern(64, 48, np.random.default_rng(seed))
        assert field.shape == (64, 48)
        assert field.dtype == np.float32
        assert field.min() >= -1e-5
        assert field.max() <= 1 + 1e-5
        assert np.ptp(field) > 0.05


def test_patterns_vary_in_colour_contrast_and_scale() -> None:
    source, random = procedural(64, 64), np.random.default_rng(3)
    drawn = [source(random).astype(np.float32) for _ in range(200)]
    lightness = [one.mean() for one in drawn]
    assert np.quantile(lightness, 0.1) < 80
    assert np.quantile(lightness, 0.9) > 170
    contrast = [one.mean(axis=2).std() for one in drawn]
    assert np.median(contrast) > 15
    colour = [np.ptp(one.mean(axis=(0, 1))) for one in drawn]  # 0 is grey
    assert np.quantile(colour, 0.1) < 25
    assert np.quantile(colour, 0.9) > 50
    fine = [np.abs(np.diff(one.mean(axis=2), axis=1)).mean() / spread for one, spread in zip(drawn, contrast, strict=True)]
    assert np.quantile(fine, 0.9) > 4 * np.quantile(fine, 0.1)
