"""Depth for AST: each step against the specification written out with torch and SciPy, and what real scans lack."""

import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional

from detectors.ast.depth import UNSHUFFLE, Scan, filled, foreground, scan
from monitor.errors import BadSample
from monitor.types import FloatArray, Sample

_TWIST = 0.04  # metres that the far corner of a table lies off the plane through the three others


def _sample(depth: FloatArray | None) -> Sample:
    image = np.zeros((4, 4, 3), np.uint8)
    return Sample(source="s", topic="t", position="0", stream="press/1", captured=1.0, received=2.0, image=image, depth=depth)


def _plane(height: int, width: int) -> FloatArray:
    """A table at 0.5 m, tilted: 6 cm from top to bottom and 3 cm from left to right."""
    down, across = np.meshgrid(np.linspace(0, 0.06, height), np.linspace(0, 0.03, width), indexing="ij")
    return np.asarray(0.5 + down + across, np.float32)


def _scene(height: int, width: int, missing: float = 0.1, seed: int = 0) -> FloatArray:
    """The table with a bumpy block 2 to 4 cm high in its middle, noise of 0.5 mm, and pixels lost at random, but none near the corners."""
    random = np.random.default_rng(seed)
    z = _plane(height, width) + random.normal(0, 0.0005, (height, width))
    rows, columns = slice(height // 4, 2 * height // 3), slice(width // 3, 3 * width // 4)
    z[rows, columns] -= random.uniform(0.02, 0.04, z[rows, columns].shape)
    lost = random.random(z.shape) < missing
    lost[np.ix_([0, 1, -2, -1], [0, 1, -2, -1])] = False
    z[lost] = 0
    return z.astype(np.float32)


def _as_specified(z: FloatArray, grid: int) -> Scan:
    """Steps 1 to 6 one after the other, in loops and fp64, row 0 and column 0 filled like all others."""
    z = z.astype(np.float64)
    height, width = z.shape
    for _ in range(3):
        before = z.copy()
        for row, column in zip(*np.nonzero(before == 0), strict=True):
            around = before[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            z[row, column] = around[around > 0].mean() if (around > 0).any() else 0
    corners = [corner[corner > 0].mean() for corner in (z[:2, :2], z[:2, -2:], z[-2:, :2], z[-2:, -2:])]
    v = np.arange(height)[:, None] / (height - 1)
    u = np.arange(width)[None, :] / (width - 1)
    plane = (1 - v) * ((1 - u) * corners[0] + u * corners[1]) + v * ((1 - u) * corners[2] + u * corners[3])
    fg = ((np.abs(plane - z) > 0.007) & (z > 0)).astype(np.float64)
    mean = (fg * z).sum() / fg.sum()
    relief = 100 * (fg * z + (1 - fg) * mean - mean)

    def interpolated(array: np.ndarray, side: int) -> np.ndarray:
        return functional.interpolate(torch.from_numpy(array)[None, None], size=(side, side), mode="bilinear", align_corners=False)[0, 0].numpy()

    dilated = ndimage.binary_dilation(interpolated(fg, 8 * grid) > 0, structure=np.ones((8, 8)))
    depth, mask = interpolated(relief, 8 * grid), interpolated(dilated.astype(np.float64), grid)
    return Scan(depth=depth.astype(np.float32), mask=mask.astype(np.float32))


@pytest.mark.parametrize(
    ("height", "width", "grid", "missing"),
    [(100, 100, 3, 0.1), (64, 64, 8, 0.3), (50, 83, 4, 0.1), (31, 47, 8, 0.2), (128, 128, 8, 0.6), (160, 90, 5, 0.1), (800, 800, 24, 0.005)],
)
def test_a_scan_is_what_the_specification_computes(height: int, width: int, grid: int, missing: float) -> None:
    z = _scene(height, width, missing)
    z[z > 0] += (_TWIST * np.linspace(0, 1, height)[:, None] * np.linspace(0, 1, width))[z > 0]
    z[height // 2 :, width // 2 : width // 2 + 7] = 0  # three passes leave one pixel of this slot
    found, expected = scan(_sample(z), grid), _as_specified(z, grid)
    assert found.depth.shape == (UNSHUFFLE * grid, UNSHUFFLE * grid)
    assert found.mask.shape == (grid, grid)
    assert found.depth.dtype == found.mask.dtype == np.float32
    assert np.ptp(expected.depth) > 2
    np.testing.assert_allclose(found.depth, expected.depth, atol=2e-4)  # centimetres
    np.testing.assert_array_equal(found.mask, expected.mask)
    assert 0 < expected.mask.mean() < 1


def test_a_block_on_a_table_has_its_height_and_its_place() -> None:
    """A block of 64 x 64 pixels, half of it 3 cm and half of it 5 cm above the table, at the size of the networks already."""
    z = np.full((192, 192), 0.5, np.float32)
    z[64:128, 64:96] = 0.47
    z[64:128, 96:128] = 0.45
    found = scan(_sample(z), 24)
    expected = np.zeros((192, 192), np.float32)
    expected[64:128, 64:96] = 1.0  # the mean of the block is 0.46 m: one half is 1 cm farther, one 1 cm nearer
    expected[64:128, 96:128] = -1.0
    np.testing.assert_allclose(found.depth, expected, atol=1e-4)
    mask = np.zeros((24, 24), np.float32)
    mask[8:16, 8:16] = 1
    mask[7, 8:16] = mask[8:16, 7] = 0.5  # dilation reaches 4 pixels up and left, into the middle's second pixel,
    mask[7, 7] = 0.25
    np.testing.assert_array_equal(found.mask, mask)  # and 3 pixels down and right, short of any middle


@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, 40), (63, 63), (7, 0), (20, 20), (35, 36), (59, 4)])
def test_dilation_is_scipy_s_and_no_object_falls_through(row: int, column: int) -> None:
    """One pixel of object: it sets rows r - 4 .. r + 3, so it always reaches one of the pixels that the mask looks at."""
    z = np.full((64, 64), 0.5, np.float32)
    z[row, column] = 0.3
    if row in (0, 63) and column in (0, 63):
        z[row, column] = 0.52  # a corner pixel moves the plane itself by a quarter of its height
    dilated = ndimage.binary_dilation(foreground(z), structure=np.ones((8, 8))).astype(np.float32)
    expected = functional.interpolate(torch.from_numpy(dilated)[None, None], size=(8, 8), mode="bilinear", align_corners=False)[0, 0]
    found = scan(_sample(z), 8).mask
    np.testing.assert_array_equal(found, expected.numpy())
    assert found.max() > 0


def test_channels_of_depth_are_eight_times_the_row_plus_the_column() -> None:
    depth = scan(_sample(_scene(96, 96)), 6).depth
    channels = functional.pixel_unshuffle(torch.from_numpy(depth)[None, None], UNSHUFFLE)[0].numpy()
    assert channels.shape == (64, 6, 6)
    for row, column in [(0, 0), (0, 7), (3, 5), (7, 7)]:
        np.testing.assert_array_equal(channels[UNSHUFFLE * row + column], depth[row::UNSHUFFLE, column::UNSHUFFLE])


def test_gaps_narrow_by_one_pixel_a_pass_from_what_was_there_before_it() -> None:
    z = np.full((9, 12), 0.5, np.float32)
    z[:, 2:10] = 0
    z[:, 10:] = 0.7
    np.testing.assert_array_equal((filled(z, 1) > 0).sum(axis=1), 6)
    np.testing.assert_array_equal((filled(z, 3) > 0).sum(axis=1), 10)
    closed = filled(z, 4)
    np.testing.assert_allclose(closed[4], [0.5] * 6 + [0.7] * 6, rtol=1e-6)
    np.testing.assert_array_equal(filled(z, 0), z)


def test_what_was_measured_stays_as_it_was_measured() -> None:
    z = _scene(40, 30)
    before = z.copy()
    after = filled(z)
    np.testing.assert_array_equal(after[z > 0], z[z > 0])
    np.testing.assert_array_equal(z, before)


def test_row_and_column_0_are_filled_like_all_others() -> None:
    z = np.full((8, 8), 0.5, np.float32)
    z[0, 3] = z[4, 0] = z[0, 0] = z[7, 7] = 0
    np.testing.assert_allclose(filled(z, 1), 0.5, rtol=1e-6)


def test_filling_sees_no_farther_than_its_neighbours() -> None:
    """A far pixel neither blurs nor rounds off what is filled elsewhere in its row."""
    z = np.full((5, 40), 0.5, np.float32)
    z[2, 30] = 900.0
    z[2, 5] = z[2, 35] = 0
    found = filled(z, 1)
    np.testing.assert_allclose(found[2, [5, 35]], 0.5, rtol=1e-6)


@pytest.mark.parametrize("mark", [0.0, -1.0, -32768.0, np.nan, -np.inf])
def test_zero_negative_and_nan_all_say_not_measured(mark: float) -> None:
    z = _scene(80, 60)
    z[30:45, 20:40] = 0  # too wide to be filled, inside the block
    marked = np.where(z == 0, np.float32(mark), z)
    with warnings.catch_warnings(action="error"):
        found = scan(_sample(marked), 4)
    expected = scan(_sample(z), 4)
    np.testing.assert_array_equal(found.depth, expected.depth)
    np.testing.assert_array_equal(found.mask, expected.mask)
    assert np.isfinite(found.depth).all()


def test_what_was_not_measured_is_no_foreground() -> None:
    z = _plane(60, 60)
    z[20:40, 20:40] = 0
    assert not foreground(filled(z)).any()


def test_the_threshold_is_in_metres_on_both_sides_of_the_table() -> None:
    z = np.full((40, 40), 0.5, np.float32)
    z[10, 10], z[10, 20], z[20, 10], z[20, 20] = 0.492, 0.494, 0.506, 0.508
    assert np.argwhere(foreground(z)).tolist() == [[10, 10], [20, 20]]
    assert np.argwhere(foreground(z, threshold=0.005)).tolist() == [[10, 10], [10, 20], [20, 10], [20, 20]]


@pytest.mark.parametrize("corner", [(slice(0, 8), slice(0, 8)), (slice(0, 8), slice(-8, None)), (slice(-8, None), slice(0, 8))])
def test_a_corner_that_was_not_measured_lies_on_the_plane_of_the_others(corner: tuple[slice, slice]) -> None:
    """Published: its mean is NaN, and so is the plane, the depth, and after one step of training every weight."""
    z = _scene(100, 80, missing=0)
    whole = foreground(z)
    z[corner] = 0
    found = foreground(filled(z))
    np.testing.assert_array_equal(found, whole & (filled(z) > 0))
    assert 0 < found.mean() < 0.5


@pytest.mark.parametrize("lost", [np.s_[:, :13], np.s_[-14:], np.s_[[*range(12), *range(148, 160)]]])
def test_corners_beyond_a_lost_band_are_looked_for_in_larger_windows(lost: tuple[slice, slice]) -> None:
    """A stereo camera measures nothing along its left border. The table's tilt must not move what is found farther in."""
    z = _scene(160, 120, missing=0)
    whole = foreground(z)
    z[lost] = 0
    np.testing.assert_array_equal(foreground(filled(z)), whole)


def test_a_twisted_table_is_bilinear_also_between_corners_found_farther_in() -> None:
    twist = _TWIST * np.linspace(0, 1, 160)[:, None] * np.linspace(0, 1, 120)
    z = (_scene(160, 120, missing=0) + twist).astype(np.float32)
    whole = foreground(z)
    assert 0 < whole.mean() < 0.3
    z[:6] = z[-6:] = 0
    z[:, :6] = z[:, -6:] = 0
    np.testing.assert_array_equal(foreground(z), whole & (z > 0))


def test_windows_grow_no_more_than_they_must() -> None:
    """Of a scan without its border, the table shows beside a frame that an eighth of the scan would reach."""
    z = np.full((160, 160), 0.5, np.float32)
    z[12:-12, 12:-12] = 0.45
    z[:6] = z[-6:] = 0
    z[:, :6] = z[:, -6:] = 0
    np.testing.assert_array_equal(foreground(z), z == np.float32(0.45))


def test_two_corners_or_one_still_make_a_plane_without_a_slope_of_their_own() -> None:
    level = np.full((100, 100), 0.5, np.float32)
    level[40:60, 40:60] = 0.45
    expected = foreground(level)
    for lost in (np.s_[:, 70:], np.s_[:30]):
        z = level.copy()
        z[lost] = 0
        np.testing.assert_array_equal(foreground(z), expected)
    tilted = (_plane(100, 100) - np.linspace(0, 0.03, 100)).astype(np.float32)  # from top to bottom only
    tilted[40:60, 40:60] -= 0.05
    tilted[:, 70:] = 0
    np.testing.assert_array_equal(foreground(tilted), expected)
    three_lost = level.copy()
    three_lost[:, 70:] = three_lost[70:] = 0
    np.testing.assert_array_equal(foreground(three_lost), expected)
    diagonal = level.copy()
    diagonal[:30, 70:] = diagonal[70:, :30] = 0
    np.testing.assert_array_equal(foreground(diagonal), expected)


def test_where_the_background_was_cut_out_all_that_was_measured_is_foreground() -> None:
    z = np.zeros((80, 80), np.float32)
    z[20:60, 25:55] = 0.5
    z[30:40, 30:40] = 0.504  # within 7 mm of everything: only the cut shows the object
    np.testing.assert_array_equal(foreground(z), z > 0)
    found = scan(_sample(z), 10)
    assert found.mask.max() == 1
    assert found.depth.max() > 0.3


@pytest.mark.parametrize("depth", [np.zeros((30, 40)), np.zeros((0, 5)), np.full((30, 40), np.nan), np.full((2, 2), -1)])
def test_a_scan_without_a_measured_pixel_is_empty(depth: FloatArray) -> None:
    with pytest.raises(BadSample, match="no measured pixel") as refused:
        scan(_sample(depth.astype(np.float32)), 4)
    assert refused.value.reason == "empty"


def test_a_scan_of_a_bare_table_is_empty() -> None:
    with pytest.raises(BadSample, match=r"more than 0\.007 m off the plane") as refused:
        scan(_sample(_plane(60, 40)), 4)
    assert refused.value.reason == "empty"


def test_an_object_between_the_pixels_that_the_networks_see_is_none() -> None:
    """2000 pixels to 16: one of 125 is looked at. Its mask would be 0 everywhere, and 0 the score of whatever it is."""
    z = np.full((2000, 2000), 0.5, np.float32)
    z[1000:1003, 1000:1003] = 0.4
    with pytest.raises(BadSample) as refused:
        scan(_sample(z), 2)
    assert refused.value.reason == "empty"


@pytest.mark.parametrize("unit", [1000, 100])
def test_millimetres_and_centimetres_are_refused_in_words(unit: int) -> None:
    with pytest.raises(BadSample, match=r"median of \d+(\.\d+)? and .* metres are expected") as refused:
        scan(_sample(_scene(60, 40) * np.float32(unit)), 4)
    assert refused.value.reason == "unsupported"


@pytest.mark.parametrize("mark", [65535.0, 1e10, np.inf, float(np.finfo(np.float32).max)])
def test_a_sensor_s_own_mark_for_not_measured_is_refused_in_words(mark: float) -> None:
    z = _scene(60, 40)
    z[z == 0] = mark
    with pytest.raises(BadSample, match="0, negative or NaN for what was not measured") as refused, warnings.catch_warnings(action="error"):
        scan(_sample(z), 4)
    assert refused.value.reason == "unsupported"


def test_no_depth_and_depth_of_another_shape_are_unsupported() -> None:
    with pytest.raises(BadSample, match="depth is needed, this is image") as refused:
        scan(_sample(None), 4)
    assert refused.value.reason == "unsupported"
    for depth in (np.ones((8, 8, 3), np.float32), np.ones((8, 8)), np.ones((8, 8), np.uint16)):
        with pytest.raises(BadSample, match="expected") as refused:
            scan(_sample(depth), 4)  # type: ignore[arg-type]
        assert refused.value.reason == "unsupported"


@pytest.mark.parametrize("shape", [(1, 300), (300, 1), (5, 5), (2, 100_000)])
def test_odd_shapes_are_scans_too(shape: tuple[int, int]) -> None:
    z = np.full(shape, 0.5, np.float32)
    z.ravel()[z.size // 3 : z.size // 2 + 1] = 0.4
    found = scan(_sample(z), 4)
    assert found.depth.shape == (32, 32)
    assert np.isfinite(found.depth).all()
    assert found.mask.max() > 0


def test_scans_that_only_point_into_a_message_and_cannot_be_written_are_read() -> None:
    z = _scene(60, 40)
    xyz = np.zeros((60, 40, 3), np.float32)
    xyz[..., 2] = z
    payload = np.frombuffer(xyz.tobytes(), np.float32).reshape(60, 40, 3)
    np.testing.assert_array_equal(scan(_sample(payload[..., 2]), 4).depth, scan(_sample(z), 4).depth)


def test_many_threads_compute_what_one_does() -> None:
    samples = [_sample(_scene(120, 100, seed=seed)) for seed in range(8)]
    expected = [scan(sample, 4) for sample in samples]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(scan, samples * 4, [4] * 32))
    for one, other in zip(found, expected * 4, strict=True):
        np.testing.assert_array_equal(one.depth, other.depth)
        np.testing.assert_array_equal(one.mask, other.mask)
