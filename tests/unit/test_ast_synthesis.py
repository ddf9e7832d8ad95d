"""The synthetic defects on which AST chooses its score."""

from typing import Any

import numpy as np
import pytest

from detectors.ast.depth import Scan
from detectors.ast.features import View, view
from detectors.ast.synthesis import damaged, foreground
from monitor.types import FloatArray, Sample
from scans import scan


def sample(number: int) -> Sample:
    """A scan of 48 x 48 pixels with its image."""
    found = scan("good", side=48, seed=[number])
    depth = np.ascontiguousarray(found.xyz[..., 2])
    return Sample(source="s", topic="t", position=f"{number}", stream="s", captured=0.0, received=0.0, image=found.image, depth=depth)


SCANS = [sample(number) for number in range(9)]


def views(mode: Any) -> list[View]:
    return [view(one, mode, 64, 8) for one in SCANS]


def changed(one: View, other: View) -> tuple[bool, bool]:
    """Whether pixels and relief differ."""
    pixels = one.pixels is not None and not np.array_equal(one.pixels, np.asarray(other.pixels))
    relief = one.scan is not None and other.scan is not None and not np.array_equal(one.scan.depth, other.scan.depth)
    return pixels, relief


@pytest.mark.parametrize(("mode", "allowed"), [("rgb", {(True, False)}), ("depth", {(False, True)}), ("rgb+depth", {(True, False), (False, True)})])
def test_a_synthetic_defect_is_in_one_sensor_and_on_the_object(mode: str, allowed: set[tuple[bool, bool]]) -> None:
    random = np.random.default_rng(4)
    normals = views(mode)
    kinds = []
    for index in range(60):
        normal = normals[index % len(normals)]
        before = normal.digest()
        found = damaged(normal, random)
        assert normal.digest() == before  # drawn on a copy
        kinds.append(changed(normal, found))
        if normal.scan is None:
            continue
        assert found.scan is not None
        assert np.array_equal(found.scan.mask, normal.scan.mask)
        where = found.scan.depth != normal.scan.depth
        if normal.pixels is not None and found.pixels is not None and not where.any():
            where = (found.pixels != normal.pixels).any(axis=2)
        else:
            assert 0.05 < np.abs(found.scan.depth - normal.scan.depth).max() <= 0.6 + 1e-5  # centimetres
            assert not (where & ~foreground(normal.scan.mask, where.shape)).any()
        assert (where & foreground(normal.scan.mask, where.shape)).any()
    assert set(kinds) == allowed


def test_a_synthetic_defect_keeps_the_type_of_the_pixels() -> None:
    random = np.random.default_rng(4)
    one = views("rgb")[0]
    assert one.pixels is not None
    unit = View(one.pixels.astype(np.float32) / np.float32(255), None)
    for normal in (one, unit):
        found = damaged(normal, random)
        assert normal.pixels is not None
        assert found.pixels is not None
        assert found.pixels.dtype == normal.pixels.dtype
        assert found.pixels.max() <= normal.pixels.dtype.type(255 if normal is one else 1)


def test_an_object_smaller_than_a_position_gets_its_dent_too() -> None:
    mask: FloatArray = np.zeros((8, 8), np.float32)
    mask[0, 0] = 0.25
    normal = View(None, Scan(np.zeros((64, 64), np.float32), mask))
    found = damaged(normal, np.random.default_rng(1))
    assert found.scan is not None
    assert np.abs(found.scan.depth[:8, :8]).max() > 0.05
