"""Options of AST."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from monitor.ports import Options

Mode = Literal["rgb", "depth", "rgb+depth"]
Student = Literal["cnn", "flow"]
Score = Literal["mean", "top_10", "top_1", "max"]
BackboneName = Literal["efficientnet_lite2", "efficientnet_b5"]
BLOCKS: dict[BackboneName, int] = {"efficientnet_lite2": 21, "efficientnet_b5": 39}
"""How many blocks each has; told here, without torch, so that `monitor check` knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """What an option leaves open comes from here."""

    backbone: BackboneName
    blocks: tuple[int, ...]
    resolution: int
    stride: int
    standardise: bool
    teacher_width: int
    student_width: int
    clamp: float
    teacher_epochs: int
    student_epochs: int
    steps: int
    """Of an epoch at least: few images are passed several times."""
    batch_size: int
    learning_rate: float
    cosine: bool
    clip: float | None
    mixed_precision: bool


PRESETS = {
    # as released (specification, section 6a)
    "paper": Preset(
        backbone="efficientnet_b5",
        blocks=(35,),
        resolution=768,
        stride=32,
        standardise=False,
        teacher_width=64,
        student_width=1024,
        clamp=1.9,
        teacher_epochs=72,
        student_epochs=72,
        steps=1,
        batch_size=8,
        learning_rate=2e-4,
        cosine=False,
        clip=None,
        mixed_precision=False,
    ),
    "cpu": Preset(
        backbone="efficientnet_lite2",
        blocks=(6, 14),
        resolution=256,
        stride=16,
        standardise=True,
        teacher_width=64,
        student_width=256,
        clamp=1.9,
        teacher_epochs=10,
        student_epochs=16,
        steps=20,
        batch_size=8,
        learning_rate=1e-3,
        cosine=True,
        clip=10.0,
        mixed_precision=True,
    ),
}


class AstOptions(Options):
    """Asymmetric student-teacher: a flow learns what is normal, a plain network learns to repeat it, and cannot where something is strange."""

    implementation: ClassVar[str] = "detectors.ast.detector:Ast"

    mode: Mode = "rgb"
    """What it looks at: the image, the depth, or both. With depth, only the foreground counts."""
    preset: Literal["paper", "cpu"] = "cpu"
    """paper: the released settings; needs the weights of EfficientNet-B5. cpu: one category on two cores in minutes. Sets what is left open below."""
    score: Literal["auto", "mean", "top_10", "top_1", "max"] = "auto"
    """Of the distances at all positions: mean, mean of the largest 10 or 1 %, or maximum. auto: what tells synthetic defects best from normals,
    within 0.01 of AUROC the one over the most positions.

    Published are the mean for images and the maximum with depth."""
    backbone: BackboneName | None = None
    """What sees the image; nothing in mode depth, which needs no weights. Paper efficientnet_b5, cpu efficientnet_lite2."""
    backbone_weights: Path | None = None
    """File of its weights; without it they are taken from the installed package that ships them, else from ~/.cache/plant-monitor/backbones
    (in $XDG_CACHE_HOME where that is set). Where a model serves without this file, they are looked for there too; their hash is always checked."""
    blocks: tuple[int, ...] | None = None
    """Blocks of the backbone whose outputs are looked at, ascending; several are resized to one grid and joined. Paper 35, cpu 6 and 14."""
    resolution: int | None = Field(default=None, ge=32, le=2048, multiple_of=32)
    """Side in pixels to which images are resized; depth gets 8 pixels for each position (`stride`). Paper 768, cpu 256."""
    stride: Literal[8, 16, 32] | None = None
    """Pixels of `resolution` from one position, at which student and teacher are compared, to the next. Paper 32, cpu 16."""
    standardise: bool | None = None
    """Give every feature mean 0 and deviation 1 over the training images. Paper no, cpu yes."""
    positional_encoding: bool = True
    """Tell student and teacher where on the image they are looking."""
    student: Student = "cnn"
    """cnn: as published. flow: one of the teacher's kind, which repeats it too well also where something is strange."""
    teacher_width: int | None = Field(default=None, ge=1)
    """Hidden channels of the teacher's subnetworks, and of those of a flow as student. 64."""
    student_width: int | None = Field(default=None, ge=1)
    """Hidden channels of a cnn as student; a flow has none. Paper 1024, cpu 256."""
    clamp: float | None = Field(default=None, gt=0)
    """Bound of the logarithm of a scale in the teacher's couplings. 1.9."""
    teacher_epochs: int | None = Field(default=None, ge=1)
    """Epochs of the teacher. Paper 72; cpu 10, of at least 20 steps each."""
    student_epochs: int | None = Field(default=None, ge=1)
    """Epochs of the student. Paper 72; cpu 16, of at least 20 steps each."""
    batch_size: int | None = Field(default=None, ge=1)
    """Images per training step. 8."""
    learning_rate: float | None = Field(default=None, gt=0, lt=1)
    """Adam's. Paper 0.0002, all the time; cpu 0.001, warmed up and then falling to 0 along a cosine."""
    mixed_precision: bool | None = None
    """Train in bf16 where the device has it in hardware. Paper no, cpu yes."""
    smoothing: float = Field(default=0.0, ge=0, le=8)
    """Sigma in positions of the Gaussian that smooths distances before they are scored and shown; 0 for none."""
    feature_cache: int = Field(default=8 * 1024**3, ge=1)
    """Bytes on disk that the features of training and held-out images may take while it trains; more is refused before any is computed."""

    @field_validator("blocks")
    @classmethod
    def _are_there(cls, blocks: tuple[int, ...] | None, others: ValidationInfo) -> tuple[int, ...] | None:
        if blocks is not None and {"preset", "backbone"} <= others.data.keys():  # else those are what is told
            backbone: BackboneName = others.data["backbone"] or PRESETS[others.data["preset"]].backbone
            there = range(BLOCKS[backbone])
            if not blocks or [*blocks] != sorted({*blocks}.intersection(there)):
                raise ValueError(f"expected one or more of 0 to {there[-1]}, ascending, of {backbone} (it is {[*blocks]})")
        return blocks
