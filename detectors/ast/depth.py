"""A depth scan -> what the networks take of it: the object's relief and where the object is. NumPy and OpenCV only.

Source: Rudolph et al., Asymmetric Student-Teacher Networks, WACV 2023 (arXiv 2210.07829), and its published code.
    gaps filled -> plane through the background at the corners -> foreground -> relief in centimetres -> network size -> mask
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from monitor.errors import BadSample
from monitor.types import FloatArray, Sample

UNSHUFFLE = 8
"""Pixels of depth along each side of a position of the networks' grid; also the side of the dilation."""

_THRESHOLD = 0.007  # metres
_FARTHEST_MEDIAN = 20.0  # metres: a scan with a median beyond it is in millimetres or centimetres
_FARTHEST = 1000.0  # metres: even one pixel beyond it is a sensor's own mark for "not measured" (65535, 1e10, ...)


@dataclass(frozen=True, slots=True, eq=False)
class Scan:
    """One scan at the size of the networks, whose grid is (g, g). The mask is never all 0."""

    depth: FloatArray
    """(8g, 8g) float32: centimetres beyond the mean depth of the foreground, 0 on the background."""
    mask: FloatArray
    """(g, g) float32: how much of each position is foreground, 0, 1/4, .. 1."""


def scan(sample: Sample, grid: int) -> Scan:
    """What networks on a grid of (`grid`, `grid`) take of a sample's depth in metres; the aspect is not kept. Safe in many threads.

    A pixel was not measured where it is 0, negative or NaN. Raises BadSample where nothing was measured, nothing stands out
    of the background, or the depth cannot be in metres.
    """
    z = filled(_in_metres(sample))
    is_object = foreground(z)
    side = UNSHUFFLE * grid
    # as published: bilinear without anti-aliasing, and each pixel that the object has any part in is foreground
    small = (_resized(is_object.astype(np.float32), side) > 0).astype(np.uint8)
    if not small.any():
        what = f"at {side} x {side} pixels nothing is more than {_THRESHOLD} m off the plane through the corners"
        raise BadSample("empty", f"the depth shows no object: {what}")
    mean = np.float32(cv2.mean(z, is_object.view(np.uint8))[0])
    depth = 100 * _resized(np.where(is_object, z - mean, np.float32(0)), side)
    # a pixel (r, c) of the object sets rows r - 4 .. r + 3 and columns c - 4 .. c + 3
    dilated = cv2.dilate(small, np.ones((UNSHUFFLE, UNSHUFFLE), np.uint8), anchor=(UNSHUFFLE // 2 - 1,) * 2)
    return Scan(depth=depth, mask=_middles(np.asarray(dilated, np.uint8)))


def filled(z: FloatArray, passes: int = 3) -> FloatArray:
    """(H, W) -> the same with 0 where nothing was measured, after gaps were narrowed by one pixel from each side in each of the `passes`.

    A gap's pixel becomes the mean of what its 3x3 neighbourhood holds. The published code never fills row 0 and column 0, by
    an index below 0; here they fill like all others.
    """
    z = np.where(z > 0, z, np.float32(0))  # NaN too is not above 0
    for _ in range(passes):
        measured = z > 0
        if measured.all():
            break
        sums = cv2.filter2D(z, cv2.CV_32F, np.ones((3, 3), np.float32), borderType=cv2.BORDER_CONSTANT)
        counts = cv2.boxFilter(measured.view(np.uint8), cv2.CV_8U, (3, 3), normalize=False, borderType=cv2.BORDER_CONSTANT)
        np.divide(sums, counts, out=z, where=~measured & (counts > 0))
    return z


def foreground(z: FloatArray, threshold: float = _THRESHOLD) -> NDArray[np.bool_]:
    """Filled (H, W) in metres -> where it is measured and farther than `threshold` metres from the background.

    The background is bilinear between the means of the four 2x2 corners. The published code makes NaN of all of it where one
    corner holds no measured pixel; here `_background` does without that corner. Where no corner holds any, as in scans whose
    background was cut out, all that was measured is foreground.
    """
    corners = _background(z)
    if corners is None:
        return z > 0
    (top_left, top_right), (bottom_left, bottom_right) = corners
    down = np.linspace(0, 1, z.shape[0], dtype=np.float32)[:, None]
    left = top_left + (bottom_left - top_left) * down
    right = top_right + (bottom_right - top_right) * down
    height: FloatArray = (right - left) * np.linspace(0, 1, z.shape[1], dtype=np.float32)
    height += left
    height -= z
    far: NDArray[np.bool_] = np.abs(height, out=height) > threshold
    return far & (z > 0)


def _background(z: FloatArray) -> FloatArray | None:
    """(2, 2): how deep the background is at each corner of the scan; None where no corner holds a measured pixel.

    Where fewer than three of the 2x2 corners hold one, those without grow to 4x4, 8x8, .. and at last an eighth of the scan's
    shorter side: sensors lose a band along a border, and farther in is the object. What a grown corner holds counts where it
    lies. Three corners make a plane; two, or one, the plane of least slope through them.
    """
    height, width = z.shape
    side, largest = 2, max(2, min(height, width) // 8)
    found: dict[tuple[int, int], tuple[float, float, float]] = {}  # corner -> row and column from 0 to 1, and depth
    while True:
        for bottom, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
            top, left = bottom * max(height - side, 0), right * max(width - side, 0)
            window = z[top : top + side, left : left + side]
            if (bottom, right) in found or not (window > 0).any():
                continue
            row, column = float(bottom), float(right)  # as published: of 2x2, at the very corner
            if side > 2:
                rows, columns = np.nonzero(window)
                row, column = (top + rows.mean()) / (height - 1), (left + columns.mean()) / (width - 1)
            found[bottom, right] = (row, column, float(window[window > 0].mean()))
        if len(found) >= 3 or side == largest:
            break
        side = min(2 * side, largest)
    if not found:
        return None
    known = np.array(list(found.values()))
    at, depth = known[:, :2], known[:, 2]
    corners = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    if len(found) == 4:
        fitted = _bilinear(corners) @ np.linalg.solve(_bilinear(at), depth)
    else:
        slope = np.linalg.lstsq(at - at.mean(axis=0), depth - depth.mean())[0]  # the least of those that fit
        fitted = depth.mean() + (corners - at.mean(axis=0)) @ slope
    return np.asarray(fitted, np.float32).reshape(2, 2)


def _bilinear(at: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 2) rows and columns -> (N, 4): what a bilinear surface is a sum of there."""
    return np.column_stack([np.ones(len(at)), at, at[:, 0] * at[:, 1]])


def _in_metres(sample: Sample) -> FloatArray:
    """The sample's depth (H, W). Raises BadSample where it has none, or where that cannot be depth in metres."""
    z = sample.depth
    if z is None:
        raise BadSample("unsupported", f"depth is needed, this is {sample.sensors}")
    if z.ndim != 2 or z.dtype != np.float32:
        raise BadSample("unsupported", f"depth of {z.shape} {z.dtype}: expected (H, W) of float32")
    measured = np.count_nonzero(z > 0)
    if not measured:
        raise BadSample("empty", f"depth of {z.shape} has no measured pixel: all are 0, negative or NaN")
    if 2 * np.count_nonzero(z > _FARTHEST_MEDIAN) > measured or np.count_nonzero(z > _FARTHEST):
        median, most = np.median(z[z > 0]), np.nanmax(z)
        raise BadSample(
            "unsupported",
            f"depth with a median of {median:.6g} and at most {most:.6g}: metres are expected, and 0, negative or NaN for what was not measured",
        )
    return z


def _resized(plane: FloatArray, side: int) -> FloatArray:
    """-> (side, side), as torch's bilinear with align_corners=False."""
    return np.asarray(cv2.resize(plane, (side, side), interpolation=cv2.INTER_LINEAR), np.float32)


def _middles(dilated: NDArray[np.uint8]) -> FloatArray:
    """(8g, 8g) of 0 and 1 -> (g, g): bilinear at a scale of 1/8, which is the mean of the 2x2 pixels in the middle of each 8x8."""
    blocks = dilated.reshape(dilated.shape[0] // UNSHUFFLE, UNSHUFFLE, -1, UNSHUFFLE)
    return np.asarray(blocks[:, 3:5, :, 3:5].mean(axis=(1, 3), dtype=np.float32))
