"""The two autoencoders of CS6366 (Annamreddy, Samudrala, Avuthu 2025), layer for layer, in torch's default initialisation.

Both take RGB in [0, 1], (B, 3, S, S) with S divisible by 8, and give the reconstruction in the same shape, fp32.
Shapes in the comments are channels x side for S = 256.
"""

from typing import Literal

import torch
from torch import Tensor, nn

Variant = Literal["baseline", "multiscale"]


class ConvBlock(nn.Sequential):
    """Twice conv 3x3, batch norm, ReLU: (B, a, H, W) -> (B, b, H, W)."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(
            nn.Conv2d(a, b, 3, padding=1),
            nn.BatchNorm2d(b),
            nn.ReLU(inplace=True),
            nn.Conv2d(b, b, 3, padding=1),
            nn.BatchNorm2d(b),
            nn.ReLU(inplace=True),
        )


class AutoencoderNetwork(nn.Module):
    """Baseline: all goes through the bottleneck. Multi-scale: each decoder stage also sees the encoder's, as a U-Net does."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.skips = variant == "multiscale"
        wider = 2 if self.skips else 1  # a decoder stage takes (upsampled, skip) side by side
        self.enc1 = ConvBlock(3, 32)  # 32 x 256
        self.enc2 = ConvBlock(32, 64)  # 64 x 128
        self.enc3 = ConvBlock(64, 128)  # 128 x 64
        self.bottleneck = ConvBlock(128, 256)  # 256 x 32
        self.up3 = nn.ConvTranspose2d(256, 128, 2, stride=2)
        self.dec3 = ConvBlock(128 * wider, 128)  # 128 x 64
        self.up2 = nn.ConvTranspose2d(128, 64, 2, stride=2)
        self.dec2 = ConvBlock(64 * wider, 64)  # 64 x 128
        self.up1 = nn.ConvTranspose2d(64, 32, 2, stride=2)
        self.dec1 = ConvBlock(32 * wider, 32)  # 32 x 256
        self.pool = nn.MaxPool2d(2)
        self.out = nn.Conv2d(32, 3, 1)  # 3 x 256

    def forward(self, images: Tensor) -> Tensor:
        return self.reconstruct(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) fp32 -> (B, 32, S, S), in the precision of the weights or of autocast.

        The stem may stay fp32 beside half precision weights: white is 0.2 % off in bf16, half of a good reconstruction's error.
        """
        stem, *rest = self.enc1
        first = stem(images).to(self.up3.weight.dtype)
        for layer in rest:
            first = layer(first)
        second = self.enc2(self.pool(first))
        third = self.enc3(self.pool(second))
        x = self.up3(self.bottleneck(self.pool(third)))
        x = self.up2(self.dec3(self._beside(x, third)))
        x = self.up1(self.dec2(self._beside(x, second)))
        result: Tensor = self.dec1(self._beside(x, first))
        return result

    def reconstruct(self, features: Tensor) -> Tensor:
        """(B, 32, S, S) -> (B, 3, S, S), always fp32: rounded reconstructions shift every score."""
        with torch.autocast(features.device.type, enabled=False):
            return torch.sigmoid(self.out(features.float()))

    def _beside(self, upsampled: Tensor, skip: Tensor) -> Tensor:
        return torch.cat((upsampled, skip), dim=1) if self.skips else upsampled
