"""Options of the autoencoder family."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from pydantic import Field

from monitor.ports import Options

Variant = Literal["baseline", "multiscale"]
Score = Literal["l1", "l1_topk", "ssim"]
Map = Literal["l1", "ssim"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Everything that a training needs; what an option leaves open comes from here."""

    resolution: int
    epochs: int
    steps: int
    """Few images make short epochs: epochs, plateau and patience are stretched until there are so many steps."""
    batch_size: int
    learning_rate: float
    weight_decay: float
    plateau: int
    patience: int
    clip: float | None
    mixed_precision: bool
    border: int


_PAPER_BASELINE = Preset(
    resolution=256,
    epochs=35,
    steps=0,
    batch_size=16,
    learning_rate=1e-3,
    weight_decay=1e-5,
    plateau=5,
    patience=10,
    clip=None,
    mixed_precision=False,
    border=0,
)
# 3 to 5 minutes for 200 to 300 images on two free cores with bf16; 375 steps are 25 epochs of 126 images
_CPU = replace(_PAPER_BASELINE, resolution=128, epochs=25, steps=375, batch_size=8, plateau=3, patience=8, clip=1.0, mixed_precision=True, border=6)
PRESETS: dict[tuple[str, Variant], Preset] = {
    ("paper", "baseline"): _PAPER_BASELINE,
    ("paper", "multiscale"): replace(_PAPER_BASELINE, epochs=45, batch_size=8, plateau=8, patience=15, clip=1.0),
    ("cpu", "baseline"): _CPU,
    ("cpu", "multiscale"): _CPU,
}


class AutoencoderOptions(Options):
    """Baseline and multi-scale (U-Net) autoencoder: what a network trained on normal images cannot draw is strange."""

    implementation: ClassVar[str] = "detectors.autoencoder.detector:Autoencoder"

    variant: Variant = "multiscale"
    """baseline: all goes through the bottleneck. multiscale: with skips, sharper, and it copies more of a defect."""
    score: Literal["auto", "l1", "l1_topk", "ssim"] = "auto"
    """l1: mean error. l1_topk: mean of the largest 1 %. ssim: mean of 1 - SSIM. auto: what tells synthetic defects best from normals."""
    map: Map = "l1"
    """What the heat map shows: the smoothed L1 error, or the smoothed 1 - SSIM."""
    preset: Literal["paper", "cpu"] = "cpu"
    """paper: the published settings. cpu: one category on two cores in a few minutes. Sets what is left open below."""
    resolution: int | None = Field(default=None, ge=32, le=2048, multiple_of=8)
    """Side in pixels to which images are resized. Paper 256, cpu 128."""
    epochs: int | None = Field(default=None, ge=1)
    """Epochs at most. Paper 35 (baseline) or 45; cpu 25, or as many as make 375 steps."""
    batch_size: int | None = Field(default=None, ge=1)
    """Images per training step. Paper 16 (baseline) or 8, cpu 8."""
    learning_rate: float | None = Field(default=None, gt=0, lt=1)
    """Adam's; halved whenever the held-out loss stops falling. 0.001."""
    patience: int | None = Field(default=None, ge=1)
    """Training ends after so many epochs without a lower held-out loss. Paper 10 (baseline) or 15, cpu 8."""
    mixed_precision: bool | None = None
    """Train in bf16 where the device has it in hardware. Paper no, cpu yes."""
    border: int | None = Field(default=None, ge=0)
    """Band along the edges, in pixels of `resolution`, that scores and maps ignore: zero padding makes it hot. Paper 0, cpu 6."""
    smoothing: float = Field(default=3.0, ge=0, le=32)
    """Sigma in pixels of `resolution` of the Gaussian that smooths maps; 0 for none."""
