"""Pictures of an evaluation: curves, histograms, maps and overlays. All on one scale, so that two samples can be compared."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_curve

from monitor.evaluation.evaluate import Evaluation
from monitor.evaluation.sound import MAX_FALSE_ALARM_RATE
from monitor.types import FloatArray, Sample

Pixels = NDArray[np.uint8]

NORMAL, DEFECT, LINE = "#4477aa", "#cc3311", "#222222"
UNMEASURED = (32, 48, 96)
"""The colour, a dark blue, where a scan has no depth."""
CLEAR = np.float32(0.3)
"""Up to this heat, 60 % of a map threshold above 0, an overlay leaves the image as it is."""


class Scale:
    """Map values -> [0, 1], the same for every sample of a model: one half is the map threshold, one is twice as far from 0.

    Scaled by each image's own extremes, every normal image would seem to have a defect.
    """

    def __init__(self, map_threshold: float) -> None:
        reach = abs(map_threshold) or 1.0
        self.black = map_threshold - reach
        self.white = map_threshold + reach

    def heat(self, one: FloatArray) -> FloatArray:
        """(H, W) -> the same."""
        share = (one - np.float32(self.black)) / np.float32(self.white - self.black)
        return np.asarray(np.clip(share, 0, 1), dtype=np.float32)


def write_curves(evaluation: Evaluation, folder: Path) -> list[Path]:
    """roc.png, pr.png, histograms.png."""
    figures = evaluation.figures()
    anomalous, sound = evaluation.labelled.anomalous, evaluation.labelled.clips is not None
    all_clips = " of all clips" if sound else ""
    false_rate, recall, _ = roc_curve(anomalous, evaluation.scores)
    roc, axes = _figure("False-alarm rate", "Recall", f"ROC{all_clips}, area {auc(false_rate, recall):.3f}")
    axes.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1)
    if sound:
        axes.axvspan(0, MAX_FALSE_ALARM_RATE, color="#f0f0f0", label="counts for pAUC")
    axes.plot(false_rate, recall, color=DEFECT)
    _operating_point(axes, figures["false_alarm_rate"], figures["recall"])
    precision, recall, _ = precision_recall_curve(anomalous, evaluation.scores)
    area = average_precision_score(anomalous, evaluation.scores)
    pr, axes = _figure("Recall", "Precision", f"Precision and recall{all_clips}, AP {area:.3f}")
    axes.axhline(float(anomalous.mean()), color="#bbbbbb", linewidth=1)
    axes.step(recall, precision, where="post", color=DEFECT)
    alerted = evaluation.alerted
    if alerted.any():
        _operating_point(axes, figures["recall"], float(anomalous[alerted].mean()))
    written = []
    for name, figure in (("roc", roc), ("pr", pr), ("histograms", _histograms(evaluation))):
        written.append(folder / f"{name}.png")
        figure.savefig(written[-1])
    return written


def pictures(sample: Sample) -> list[Pixels]:
    """What there is to look at, each (H, W, 3) uint8 RGB: the image, the depth, both in this order, or nothing."""
    drawn = []
    if sample.image is not None:
        image = sample.image if sample.image.dtype == np.uint8 else sample.image // 257
        drawn.append(np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)), dtype=np.uint8))
    if sample.depth is not None:
        drawn.append(_relief(sample.depth, sample.measured))
    return drawn


def _relief(depth: FloatArray, measured: NDArray[np.bool_]) -> Pixels:
    """Near is white, far is black, from the 1st to the 99th percentile of what was measured; what was not is UNMEASURED."""
    pixels = np.full((*depth.shape, 3), UNMEASURED, dtype=np.uint8)
    if measured.any():
        near, far = np.percentile(depth[measured], (1, 99))
        grey = 255 * (far - depth[measured]) / max(far - near, np.finfo(np.float32).tiny)
        pixels[measured] = np.clip(grey, 0, 255).round().astype(np.uint8)[:, None]
    return pixels


def overlay(image: Pixels, heat: FloatArray, mask: NDArray[np.bool_]) -> Pixels:
    """(H, W, 3) RGB under its heat (H, W), the more opaque the hotter, from CLEAR on; the true defect is outlined."""
    colours = cv2.cvtColor(cv2.applyColorMap((heat * 255).round().astype(np.uint8), cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    opaque = np.float32(0.75) * np.clip((heat[..., None] - CLEAR) / (1 - 2 * CLEAR), 0, 1)
    blended = np.asarray(image * (1 - opaque) + colours * opaque).round().astype(np.uint8)
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    thickness = max(1, round(min(heat.shape) / 250))
    drawn = cv2.drawContours(blended, outlines, -1, (0, 230, 118), thickness)
    return np.asarray(drawn, dtype=np.uint8)


def write_png(path: Path, pixels: NDArray[Any]) -> None:
    """Grey of 8 or 16 bit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())


def jpeg(pixels: Pixels, *, side: int | None = None, quality: int = 90) -> bytes:
    """(H, W, 3) RGB, shrunk until its longer side is `side`."""
    height, width = pixels.shape[:2]
    if side is not None and max(height, width) > side:
        factor = side / max(height, width)
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    encoded = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return encoded.tobytes()


def _figure(x: str, y: str, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.4, 4.0), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=x, ylabel=y, title=title, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.grid(color="#e6e6e6")
    return figure, axes


def _operating_point(axes: Axes, x: float, y: float) -> None:
    axes.plot([x], [y], "o", color=LINE, label=f"at the threshold: {x:.2f}, {y:.2f}")
    axes.legend(loc="lower right", frameon=False)


def _histograms(evaluation: Evaluation) -> Figure:
    """One panel per score that the method knows; the threshold belongs to the one that serves."""
    anomalous, serving = evaluation.labelled.anomalous, evaluation.serving
    strange = "defect" if evaluation.labelled.clips is None else "anomalous"
    panels = {f"{serving} (serves)": evaluation.scores} | {name: values for name, values in evaluation.named.items() if name != serving}
    columns, width, height = (3, 4.4, 3.4) if len(panels) <= 6 else (4, 3.3, 2.3)  # smaller ones would not be read on a page
    columns = min(len(panels), columns)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(width * columns, height * rows), dpi=120, layout="constrained")
    for place, (name, values) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, place + 1)
        edges = np.histogram_bin_edges(values.astype(np.float64), bins=30).tolist()
        axes.hist(values[~anomalous], edges, color=NORMAL, alpha=0.6, label="normal")
        axes.hist(values[anomalous], edges, color=DEFECT, linewidth=1.5, histtype="step", label=strange)
        if place == 0:
            axes.axvline(evaluation.threshold.value, color=LINE, linestyle="--", label="threshold")
            axes.legend(frameon=False)
        axes.set(xlabel=name, ylabel="samples" if place % columns == 0 else None)
        axes.ticklabel_format(axis="x", style="sci", scilimits=(-3, 4))
        axes.locator_params(axis="x", nbins=5)
    return figure
