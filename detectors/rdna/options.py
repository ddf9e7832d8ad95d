"""Options of RDNA."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, get_args

from pydantic import Field, field_validator

from monitor.ports import Options

Score = Literal["average_max", "max", "top_1"]
SCORES: tuple[Score, ...] = get_args(Score)
Weights = Literal["last", "held_out"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """What an option leaves open comes from here."""

    width: int
    resolution: int
    epochs: int
    steps: int
    """Of an epoch at least: few images are passed several times, each time with other anomalies."""
    batch_size: int
    learning_rate: float
    mixed_precision: bool
    score_window: int


PRESETS: dict[Literal["paper", "cpu"], Preset] = {
    "paper": Preset(width=128, resolution=256, epochs=800, steps=1, batch_size=4, learning_rate=1e-4, mixed_precision=False, score_window=21),
    "cpu": Preset(width=16, resolution=128, epochs=30, steps=100, batch_size=8, learning_rate=1e-3, mixed_precision=True, score_window=11),
}


class RdnaOptions(Options):
    """RDNA (Liu, Li, Cheng, Luo): an image is reconstructed without its anomalies, a second network marks them by comparing the two.

    Both learn from synthetic anomalies on normal images, each against a discriminator. Without these (both weights 0) it is
    DRAEM (Zavrtanik, Kristan, Skočaj, ICCV 2021)."""

    implementation: ClassVar[str] = "detectors.rdna.detector:Rdna"

    preset: Literal["paper", "cpu"] = "cpu"
    """`paper`: the released settings, for a GPU. `cpu`: narrow networks on small images, half an hour for one category on two cores.
    Sets what is left open below."""
    width: int | None = Field(default=None, ge=4, le=256, multiple_of=2)
    """Channels of the reconstructive network's first stage; the others begin with half of it. Even. Time grows with its square. Paper 128, cpu 16."""
    resolution: int | None = Field(default=None, ge=32, le=2048, multiple_of=32)
    """Side in pixels to which images are resized, a multiple of 32. Paper 256, cpu 128."""
    anomaly_source: Path | None = None
    """Folder of pictures, the more varied the better, whose textures make the anomalies; needed in training only. Without it they are computed.
    Of more than 1000 the seed draws 1000; they are held in memory, 200 MB at 256 px."""
    adversarial_reconstruction: float = Field(default=0.0, ge=0, le=10)
    """Weight of deceiving the discriminator of reconstructions, beside 1 for the other losses; 0: there is no such discriminator."""
    adversarial_segmentation: float = Field(default=0.0, ge=0, le=10)
    """The same for that of the maps."""
    epochs: int | None = Field(default=None, ge=1, le=100_000)
    """Passes over the images, in cpu of at least 100 steps each. The rate falls to a fifth after 8 and again after 9 tenths of them.
    Paper 800, cpu 30."""
    batch_size: int | None = Field(default=None, ge=1, le=1024)
    """Images per training step. Paper 4, cpu 8."""
    learning_rate: float | None = Field(default=None, gt=0, lt=1)
    """Adam's, of all networks. Paper 0.0001, cpu 0.001."""
    mixed_precision: bool | None = None
    """Train in bf16 where the device has it in hardware. Paper no, cpu yes."""
    weights: Weights = "last"
    """Which weights are kept: those after the `last` epoch, as published, or those with the lowest loss on `held_out` images with
    synthetic anomalies."""
    score: Literal["auto", Score] = "average_max"
    """Of the map: the largest average over a window, as published; its maximum; or the mean of its largest 1 %. auto: what tells synthetic
    anomalies best from normals."""
    score_window: int | None = Field(default=None, ge=1, le=255)
    """Side of that window in pixels of `resolution`, odd. Paper 21, cpu 11."""
    smoothing: float = Field(default=0.0, ge=0, le=32)
    """Sigma in pixels of `resolution` of the Gaussian that smooths maps; 0 for none, as published."""

    @field_validator("score_window")
    @classmethod
    def _is_odd(cls, window: int | None) -> int | None:
        if window is not None and window % 2 == 0:
            raise ValueError(f"expected an odd number (it is {window})")
        return window
