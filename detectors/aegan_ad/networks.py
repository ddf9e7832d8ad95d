"""Generator (an autoencoder) and critic of AEGAN-AD (Jiang, Zhang, Deng, Fan, Liu, ICASSP 2023), layer for layer.

Both take windows (B, 1, 128, 128): mel bands x frames, normals in [-1, 1]. Shapes in the comments are channels x side for width 32, as published.
No convolution has a bias. A convolution over all of a 4 x 4 input, or onto one, is written as the linear map that it is. Weights are
drawn as published: N(0, 0.02) for convolutions, N(1, 0.02) for batch norm, torch's own for the critic's head.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from detectors.aegan_ad.options import Norm

SIDE = 128
"""Mel bands and frames of a window: five halvings lead to 4 x 4, which the last convolution takes whole."""
MOMENTUM = 1 - (1 - 0.1) ** 2
"""Of batch norm's running statistics: the published training runs the generator twice on each batch, at torch's 0.1 each time; ours once."""


class WholeNorm(nn.Module):
    """Layer norm over all of a (C, H, W) sample: one mean and biased variance, weight and bias for each element.

    As group norm of one group, which leaves channels-last tensors as they lie.
    """

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, channels, side, side))
        self.bias = nn.Parameter(torch.zeros(1, channels, side, side))

    def forward(self, x: Tensor) -> Tensor:
        normed = functional.group_norm(x, 1, eps=1e-5)
        return torch.addcmul(self.bias.to(normed.dtype), normed, self.weight.to(normed.dtype))


def _norm(kind: Norm | None, channels: int, side: int) -> list[nn.Module]:
    if kind is None:
        return []
    return [WholeNorm(channels, side) if kind == "layer" else nn.BatchNorm2d(channels, momentum=MOMENTUM)]


def _halvings(width: int, norm: Norm, *, first_norm: bool) -> nn.Sequential:
    """Five convolutions that halve the side: 1 x 128 -> 512 x 4."""
    channels = [1, *(width << step for step in range(5))]
    layers: list[nn.Module] = []
    for step, (before, after) in enumerate(pairwise(channels)):
        layers += [
            nn.Conv2d(before, after, 4, stride=2, padding=1, bias=False),
            *_norm(norm if step or first_norm else None, after, SIDE >> (step + 1)),
            nn.LeakyReLU(0.2, inplace=True),
        ]
    return nn.Sequential(*layers)


class Generator(nn.Module):
    """An autoencoder without skips: x -> z (256) -> x. `first_norm`: whether the first convolution is followed by a norm."""

    def __init__(self, width: int, norm: Norm, *, first_norm: bool) -> None:
        super().__init__()
        widest, latent = 16 * width, 8 * width
        self.encoder = _halvings(width, norm, first_norm=first_norm)
        self.to_latent = nn.Linear(widest * 16, latent, bias=False)
        channels = [widest >> step for step in range(5)]
        layers: list[nn.Module] = [
            nn.Linear(latent, widest * 16, bias=False),
            nn.Unflatten(1, (widest, 4, 4)),
            *_norm(norm, widest, 4),
            nn.ReLU(inplace=True),
        ]
        for step, (before, after) in enumerate(pairwise(channels)):  # -> 32 x 64
            layers += [
                nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False),
                *_norm(norm, after, 8 << step),
                nn.ReLU(inplace=True),
            ]
        self.decoder = nn.Sequential(*layers)
        self.out = nn.ConvTranspose2d(width, 1, 4, stride=2, padding=1, bias=False)  # 32 x 64 -> 1 x 128
        self.apply(_drawn)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))

    def encode(self, x: Tensor) -> Tensor:
        """(B, 1, 128, 128) -> z: (B, 256)."""
        code = _through(self.encoder, x)
        latent: Tensor = self.to_latent(code.flatten(1).to(self.to_latent.weight.dtype))
        return latent

    def decode(self, z: Tensor) -> Tensor:
        """(B, 256) -> (B, 1, 128, 128) fp32 in (-1, 1)."""
        decoded = self.decoder(z.to(next(self.decoder.parameters()).dtype))
        return torch.tanh(self.out(decoded.to(self.out.weight.dtype)).float())


class Critic(nn.Module):
    """WGAN critic with a depthwise embedding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widest = 16 * width
        self.encoder = _halvings(width, "layer", first_norm=True)
        self.embedding = nn.Parameter(torch.empty(widest, 4, 4).normal_(0.0, 0.02))  # a depthwise convolution, 512 x 4 -> 512 x 1
        self.head = nn.Sequential(nn.LayerNorm(widest), nn.LeakyReLU(0.2), nn.Linear(widest, 1))
        self.apply(_drawn)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 128, 128) -> (B,) unbounded: the higher, the more normal."""
        embedded = self.embed(x)
        with torch.autocast(x.device.type, enabled=False):  # the last layer is exact
            score: Tensor = self.head(embedded)
        return score.squeeze(1)

    def embed(self, x: Tensor) -> Tensor:
        """(B, 1, 128, 128) -> (B, 512): what features are matched in, and clips compared by."""
        return (_through(self.encoder, x).float() * self.embedding.float()).sum(dim=(2, 3))


def _through(layers: nn.Sequential, x: Tensor) -> Tensor:
    """The first layer may stay fp32 beside half precision weights."""
    first, *rest = layers
    *_, last = layers.parameters()
    x = first(x).to(last.dtype)
    for layer in rest:
        x = layer(x)
    return x


def _drawn(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) or (isinstance(layer, nn.Linear) and layer.bias is None):
        nn.init.normal_(layer.weight, 0.0, 0.02)
    elif isinstance(layer, nn.BatchNorm2d):
        nn.init.normal_(layer.weight, 1.0, 0.02)
