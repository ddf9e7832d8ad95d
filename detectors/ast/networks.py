"""Teacher and student of AST (Rudolph et al., WACV 2023, arXiv 2210.07829), layer for layer as specified.

Both take features (B, C, g, g) and give (B, C, g, g) fp32. Convolutions have torch's default initialisation.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

ENCODING = 32
KERNELS = (3, 3, 3, 5)
SLOPE = 0.01
RESIDUAL_BLOCKS = 4
_LARGEST = 1e6


def positional_encoding(grid: int) -> Tensor:
    """(1, 32, grid, grid): channels 0..15 tell the column, 16..31 the row; even ones the sine of 8 frequencies, odd ones the cosine.

    Frequency k / 2 is exp(-k ln(1e4) / 16), k = 0, 2, .. 14 (CFLOW's encoding).
    """
    half = ENCODING // 2
    frequencies = torch.exp(-torch.arange(0, half, 2) * (math.log(1e4) / half))
    angles = frequencies[:, None] * torch.arange(grid)  # (8, grid)
    waves = torch.stack((angles.sin(), angles.cos()), dim=1).flatten(0, 1)  # (16, grid)
    columns = waves[:, None, :].expand(half, grid, grid)
    rows = waves[:, :, None].expand(half, grid, grid)
    return torch.cat((columns, rows))[None].contiguous()


class Subnetwork(nn.Module):
    """What a coupling computes from one half: conv, ReLU, conv, times gamma, which begins at 0: the flow begins as the identity."""

    def __init__(self, inputs: int, hidden: int, outputs: int, kernel: int) -> None:
        super().__init__()
        same = kernel // 2
        self.hidden = nn.Conv2d(inputs, hidden, kernel, padding=same, padding_mode="replicate")
        self.out = nn.Conv2d(hidden, outputs, kernel, padding=same, padding_mode="replicate")
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """-> (s, t), fp32, each half of the outputs."""
        hidden = functional.relu(self.hidden(x.to(self.hidden.weight.dtype)), inplace=True)
        s, t = (self.out(hidden.to(self.out.weight.dtype)).float() * self.gamma.float()).chunk(2, dim=1)
        return s, t

    @torch.no_grad()
    def fold_gamma(self) -> None:
        """Into the last layer, for inference: rounded to half precision, it would shift every score."""
        for parameter in self.out.parameters():
            parameter.mul_(self.gamma)
        self.gamma.fill_(1.0)


class Coupling(nn.Module):
    """A fixed permutation of the channels, then an affine coupling of both halves, conditioned on the positional encoding."""

    permutation: Tensor

    def __init__(self, channels: int, *, hidden: int, kernel: int, condition: int, clamp: float, seed: int) -> None:
        super().__init__()
        self.split = [channels // 2, channels - channels // 2]
        self.clamp = clamp
        # of its own generator: the published one reseeds the whole process
        self.register_buffer("permutation", torch.from_numpy(np.random.RandomState(seed).permutation(channels)))
        one, two = self.split
        self.f1 = Subnetwork(one + condition, hidden, 2 * two, kernel)
        self.f2 = Subnetwork(two + condition, hidden, 2 * one, kernel)

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, C, g, g) fp32 -> y of the same shape, log-determinant (B, g, g); it ignores the clipping, as published."""
        x1, x2 = torch.split(x[:, self.permutation], self.split, dim=1)
        s2, t2 = self.f2(torch.cat((x2, condition), dim=1))
        scale2 = self._bounded(s2)
        y1 = scale2.exp() * x1 + t2
        s1, t1 = self.f1(torch.cat((y1, condition), dim=1))
        scale1 = self._bounded(s1)
        y2 = scale1.exp() * x2 + t1
        y = torch.cat((y1, y2), dim=1).clamp(-_LARGEST, _LARGEST)
        return y, scale1.sum(dim=1) + scale2.sum(dim=1)

    def _bounded(self, s: Tensor) -> Tensor:
        return self.clamp * 0.636 * torch.atan(s / self.clamp)


class Flow(nn.Module):
    """Conditional normalising flow of four couplings: the teacher, and the student of the symmetric ablation."""

    def __init__(self, channels: int, hidden: int, clamp: float, condition: int = ENCODING) -> None:
        super().__init__()
        self.couplings = nn.ModuleList(
            Coupling(channels, hidden=hidden, kernel=kernel, condition=condition, clamp=clamp, seed=seed) for seed, kernel in enumerate(KERNELS)
        )

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, C, g, g), condition (B, 32 or 0, g, g) -> z (B, C, g, g), log-determinant (B, g, g); fp32, under autocast too."""
        log_determinant = torch.zeros_like(x[:, 0])
        for coupling in self.couplings:
            x, more = coupling(x, condition)
            log_determinant = log_determinant + more
        return x, log_determinant


class ResidualBlock(nn.Module):
    """Twice conv 3x3, batch norm, LeakyReLU; then + input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(SLOPE, inplace=True),
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(SLOPE, inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)  # type: ignore[no-any-return]


class ConvolutionalStudent(nn.Module):
    """A plain network, of another kind than the teacher so that it does not go on like it where neither has learnt."""

    def __init__(self, channels: int, width: int, condition: int = ENCODING) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels + condition, width, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(RESIDUAL_BLOCKS)))
        self.out = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B, C, g, g), condition (B, 32 or 0, g, g) -> (B, C, g, g) fp32."""
        first = self.first(torch.cat((condition, x), dim=1).to(self.first.weight.dtype))
        first = functional.leaky_relu(first, SLOPE, inplace=True)
        out: Tensor = self.out(self.blocks(first).to(self.out.weight.dtype)).float()
        return out


def teacher_loss(z: Tensor, log_determinant: Tensor, mask: Tensor) -> Tensor:
    """Negative log-likelihood per position, without its constant: (B, C, g, g), (B, g, g), (B, 1, g, g) -> (B, g, g)."""
    return 0.5 * (mask * z.square()).sum(dim=1) - mask[:, 0] * log_determinant


def student_loss(teacher: Tensor, student: Tensor, mask: Tensor) -> Tensor:
    """Squared distance per position: twice (B, C, g, g), (B, 1, g, g) -> (B, g, g). The mask counts once, not squared."""
    return (mask * (teacher - student).square()).mean(dim=1)
