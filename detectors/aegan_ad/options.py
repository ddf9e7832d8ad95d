"""Options of AEGAN-AD."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from pydantic import Field

from monitor.ports import Options

Norm = Literal["layer", "batch"]
Machine = Literal[
    "dcase2020_fan",
    "dcase2020_pump",
    "dcase2020_slider",
    "dcase2020_toycar",
    "dcase2020_toyconveyor",
    "dcase2020_valve",
    "dcase2022_bearing",
    "dcase2022_fan",
    "dcase2022_gearbox",
    "dcase2022_slider",
    "dcase2022_toycar",
]
Score = Literal[
    "D_maha",
    "D_knn",
    "D_lof",
    "D_cos",
    "G_x_2_sum",
    "G_x_2_min",
    "G_x_2_max",
    "G_x_1_sum",
    "G_x_1_min",
    "G_x_1_max",
    "G_z_2_sum",
    "G_z_2_min",
    "G_z_2_max",
    "G_z_1_sum",
    "G_z_1_min",
    "G_z_1_max",
    "G_z_cos_sum",
    "G_z_cos_min",
    "G_z_cos_max",
    "R_maha",
]
SCORES: tuple[Score, ...] = get_args(Score)
"""The published 19 in the order of the original, which decides between equals, and R_maha, which is our own."""
Map = Literal["reference", "reconstruction"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSettings:
    """What the published results were trained with, by machine type (specification, section 5)."""

    norm: Norm
    first_norm: bool
    """Whether the generator's first convolution is followed by a norm."""
    feature_weight: float
    """Of the feature matching beside the reconstruction error."""
    match_deviation: bool
    """Whether not only the mean of the features over a batch is matched, but their standard deviation too."""
    beta1: float
    """Adam's, of both networks."""
    epochs: int


def _of(
    weight: float, *, norm: Norm = "layer", first_norm: bool = True, deviation: bool = False, beta1: float = 0.5, epochs: int = 50
) -> MachineSettings:
    return MachineSettings(norm=norm, first_norm=first_norm, feature_weight=weight, match_deviation=deviation, beta1=beta1, epochs=epochs)


MACHINES: dict[Machine, MachineSettings] = {
    "dcase2020_fan": _of(1.0),
    "dcase2020_pump": _of(1.0, deviation=True),
    "dcase2020_slider": _of(1.0, norm="batch"),
    "dcase2020_toycar": _of(1.0, deviation=True),
    "dcase2020_toyconveyor": _of(0.05),
    "dcase2020_valve": _of(0.05, norm="batch"),
    "dcase2022_bearing": _of(0.1, first_norm=False, epochs=60),
    "dcase2022_fan": _of(0.1, first_norm=False, epochs=60),
    "dcase2022_gearbox": _of(0.1, norm="batch", deviation=True, epochs=60),
    "dcase2022_slider": _of(0.1, epochs=60),
    "dcase2022_toycar": _of(0.1, first_norm=False, beta1=0.0, epochs=60),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """What an option leaves open comes from here."""

    width: int
    stride: int
    scoring_stride: int
    epochs: int | None
    """None: those of the machine."""
    patience: int
    steps: int
    """Of an epoch at least: few windows are passed several times."""
    batch_size: int
    mixed_precision: bool


PRESETS: dict[Literal["paper", "cpu"], Preset] = {
    "paper": Preset(width=32, stride=1, scoring_stride=1, epochs=None, patience=60, steps=1, batch_size=512, mixed_precision=False),
    "cpu": Preset(width=8, stride=32, scoring_stride=8, epochs=40, patience=6, steps=100, batch_size=8, mixed_precision=True),
}


class AeganAdOptions(Options):
    """AEGAN-AD (Jiang, Zhang, Deng, Fan, Liu, ICASSP 2023): an autoencoder of log-mel windows, trained beside a WGAN critic."""

    implementation: ClassVar[str] = "detectors.aegan_ad.detector:AeganAd"

    preset: Literal["paper", "cpu"] = "cpu"
    """`paper`: the published training, for a GPU and thousands of clips. `cpu`: narrower networks and fewer windows, for two CPU cores."""
    machine: Machine = "dcase2020_fan"
    """The published settings to train with, by data set and machine: norms, feature matching, beta1, epochs of `paper`."""
    width: int | None = Field(default=None, ge=4, le=64)
    """Channels after the first convolution, doubled at each of the next four; 32 is published. By default the preset's."""
    stride: int | None = Field(default=None, ge=1, le=128)
    """Frames from one training window to the next, from another first frame in each epoch. By default the preset's."""
    epochs: int | None = Field(default=None, ge=1, le=10_000)
    """By default the preset's."""
    patience: int | None = Field(default=None, ge=1)
    """Epochs without a lower reconstruction error of held-out clips after which training ends. By default the preset's."""
    batch_size: int | None = Field(default=None, ge=2, le=4096)
    """Windows per training step. By default the preset's."""
    scoring_stride: int | None = Field(default=None, ge=1, le=128)
    """Frames from one scored window to the next; the last window ends where the clip ends. 1 is published: 186 windows per 10 s.
    By default the preset's."""
    hop_seconds: float | None = Field(default=None, ge=0.1)
    """Seconds from the beginning of one segment of a recording to that of the next. Segments are as long as the training clips;
    by default they do not overlap."""
    score: Literal["auto", Score] = "auto"
    """G: how badly windows are reconstructed, in x (the spectrogram) or z (its code); squared, absolute or by cosine; sum, least or
    largest of a clip. D: how far the critic's embedding of a clip is from those of the training clips. R, not published: how
    far what reconstruction leaves in each band is from what it leaves of them. `auto` takes the one that tells synthetic faults best."""
    map: Map = "reconstruction"
    """`reconstruction`: input against reconstruction, in each band as a multiple of its usual error. `reference`, as published:
    reconstruction against the mean spectrum of the training clips."""
    smoothing: float = Field(default=1.5, ge=0, le=20)
    """Sigma of the Gaussian that smooths maps, in mel bands and frames."""
