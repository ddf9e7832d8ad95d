"""RDNA as it is saved and as it scores; the discriminators are gone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from detectors.rdna.networks import ReconstructiveNetwork, SegmentationNetwork
from detectors.rdna.options import SCORES, RdnaOptions, Score

TOP_SHARE = 0.01
EXACT = ("reconstruction.decoder.7", "reconstruction.out", "segmentation")
"""fp32 in every precision: what draws the reconstruction at full size, and all of the network that compares it with the image. With both
last layers alone exact, bf16 moves scores ten times as far, beyond what is tolerated, for a seventh more images per second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What scoring needs of the options, as resolved in training; saved beside the weights."""

    width: int
    resolution: int
    score: Score
    score_window: int
    smoothing: float


class RdnaModel(nn.ModuleDict):
    """`reconstruction` and `segmentation`. Settings decide the widths."""

    def __init__(self, settings: Settings) -> None:
        super().__init__({"reconstruction": ReconstructiveNetwork(settings.width), "segmentation": SegmentationNetwork(settings.width)})
        self.settings = settings

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, S, S) fp32 in [0, 1] -> reconstructions of the same shape, and logits (B, 2, S, S) of normal and anomalous; fp32."""
        reconstructions = self["reconstruction"](images)
        return reconstructions, self["segmentation"](reconstructions, images)

    @torch.inference_mode()
    def maps(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) fp32 in [0, 1] -> (B, S, S) fp32: the probability of an anomaly at each pixel."""
        return anomalous(self(images)[1])[:, 0]


def checked(saved: Mapping[str, Any]) -> Settings:
    """As they were saved. Raises TypeError or ValueError where no training could have left them: also "auto", null, and "5" for 5."""
    settings = Settings(**saved)
    RdnaOptions.model_validate(saved, strict=True)
    if None in saved.values() or settings.score not in SCORES:
        raise ValueError(f"settings that no training leaves: {dict(saved)}")
    return settings


def anomalous(logits: Tensor) -> Tensor:
    """(B, 2, H, W) -> probability of an anomaly (B, 1, H, W), fp32."""
    return functional.softmax(logits.float(), dim=1)[:, 1:]


def named_scores(maps: Tensor, window: int, names: Sequence[Score] = SCORES) -> dict[str, Tensor]:
    """Score name -> (B,), of maps (B, H, W)."""
    found: dict[str, Tensor] = {}
    for name in names:
        if name == "average_max":
            found[name] = averaged(maps, window).amax(dim=(1, 2))
        elif name == "max":
            found[name] = maps.amax(dim=(1, 2))
        else:
            flat = maps.flatten(1)
            found[name] = flat.topk(max(1, int(TOP_SHARE * flat.shape[1])), dim=1).values.mean(dim=1)
    return found


def averaged(maps: Tensor, window: int) -> Tensor:
    """(B, H, W) -> the same: means over window x window, what lies beyond the border counting as 0; down and across, one after the other."""
    half = window // 2
    down = functional.avg_pool2d(maps[:, None], (window, 1), stride=1, padding=(half, 0))
    return functional.avg_pool2d(down, (1, window), stride=1, padding=(0, half))[:, 0]
