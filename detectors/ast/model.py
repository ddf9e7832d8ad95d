"""Teacher, student and what both are told: from features to the distance at each position, and its scores. Saved as one model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detectors.ast.features import DEPTH_CHANNELS
from detectors.ast.networks import ENCODING, ConvolutionalStudent, Flow, positional_encoding, student_loss, teacher_loss
from detectors.ast.options import AstOptions, BackboneName, Mode, Score, Student
from detectors.backbones import levels
from detectors.model_folder import read_network, save_network

SCORES: tuple[Score, ...] = ("mean", "top_10", "top_1", "max")
SHARES = {"top_10": 0.1, "top_1": 0.01}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What scoring needs of the options, as resolved in training; saved beside the weights."""

    mode: Mode
    backbone: BackboneName
    blocks: tuple[int, ...]
    backbone_sha256: str
    resolution: int
    grid: int
    positional_encoding: bool
    student: Student
    teacher_width: int
    student_width: int
    clamp: float
    score: Score
    smoothing: float

    @property
    def channels(self) -> int:
        """Of the features of both networks."""
        image = 0 if self.mode == "depth" else sum(level.channels for level in levels(self.backbone, self.blocks))
        return image + (0 if self.mode == "rgb" else DEPTH_CHANNELS)


class Pair(nn.Module):
    """Teacher and student; the features' mean and deviation, and the positional encoding, which they share."""

    mean: Tensor
    deviation: Tensor
    encoding: Tensor

    def __init__(self, settings: Settings) -> None:
        """With random weights, a mean of 0 and a deviation of 1."""
        super().__init__()
        channels, condition = settings.channels, ENCODING if settings.positional_encoding else 0
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("deviation", torch.ones(1, channels, 1, 1))
        self.register_buffer("encoding", positional_encoding(settings.grid)[:, :condition], persistent=False)
        self.teacher = Flow(channels, settings.teacher_width, settings.clamp, condition)
        self.student: Flow | ConvolutionalStudent
        if settings.student == "cnn":
            self.student = ConvolutionalStudent(channels, settings.student_width, condition)
        else:
            self.student = Flow(channels, settings.teacher_width, settings.clamp, condition)

    def standardise_by(self, features: Tensor, masks: Tensor) -> None:
        """Mean and deviation over the foreground of (N, C, g, g), weighted by (N, 1, g, g). A constant channel keeps deviation 1."""
        total = torch.zeros((), dtype=torch.float64)
        first = torch.zeros(features.shape[1], dtype=torch.float64)
        second = torch.zeros_like(first)
        for one, mask in zip(features, masks, strict=True):  # one at a time: they lie on the disk
            weighted = one.double() * mask
            total += mask.sum()
            first += weighted.sum(dim=(1, 2))
            second += (weighted * one).sum(dim=(1, 2))
        mean = first / total
        deviation = (second / total - mean.square()).clamp(min=0).sqrt()
        self.mean.copy_(mean[None, :, None, None])
        self.deviation.copy_(torch.where(deviation > 1e-6, deviation, 1.0)[None, :, None, None])

    def taught(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B, C, g, g) -> inputs x, encoding (B, 32 or 0, g, g), the teacher's z, its log-determinant (B, g, g)."""
        x = (features - self.mean) / self.deviation
        condition = self.encoding.expand(len(x), -1, -1, -1)
        z, log_determinant = self.teacher(x, condition)
        return x, condition, z, log_determinant

    def likelihood(self, features: Tensor, mask: Tensor) -> Tensor:
        """The teacher's loss at each position: (B, C, g, g), (B, 1, g, g) -> (B, g, g)."""
        _, _, z, log_determinant = self.taught(features)
        return teacher_loss(z, log_determinant, mask)

    def distances(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Squared distance of student and teacher, and the teacher's loss, at each position: twice (B, g, g), fp32."""
        with torch.no_grad():
            x, condition, z, log_determinant = self.taught(features)
        repeated = self.student(x, condition)
        if isinstance(self.student, Flow):
            repeated, _ = repeated
        return student_loss(z, repeated, mask), teacher_loss(z, log_determinant, mask)


def named_scores(distances: Tensor, names: Sequence[Score]) -> dict[str, Tensor]:
    """Score name -> (B,): over all positions of (B, g, g), the background of a scan included, where the distance is 0."""
    flat = distances.flatten(1)
    found: dict[str, Tensor] = {}
    for name in names:
        if name == "mean":
            found[name] = flat.mean(dim=1)
        elif name == "max":
            found[name] = flat.amax(dim=1)
        else:
            found[name] = flat.topk(max(1, math.ceil(SHARES[name] * flat.shape[1])), dim=1).values.mean(dim=1)
    return found


def save_model(folder: Path, settings: Settings, pair: Pair) -> None:
    """weights.safetensors and detector.json. The backbone stays where it is; its hash is written down."""
    save_network(folder, "ast", asdict(settings), pair)


def read_model(folder: Path) -> tuple[Settings, Pair]:
    """What `save_model` wrote. Raises ModelRefused for anything else."""
    return read_network(folder, "ast", checked, Pair)


def checked(saved: Mapping[str, Any]) -> Settings:
    """As they were saved. Raises KeyError, TypeError or ValueError where no option could have led to them."""
    settings = Settings(**(dict(saved) | {"blocks": tuple(saved["blocks"])}))
    AstOptions.model_validate({name: value for name, value in saved.items() if name in AstOptions.model_fields})
    if settings.resolution not in [stride * settings.grid for stride in (8, 16, 32)]:
        raise ValueError(f"a grid of {settings.grid} at {settings.resolution} pixels")
    return settings
