"""The four networks of RDNA, layer for layer, at any width (specification, section 3; DRAEM, Zavrtanik et al., ICCV 2021, for the first two).

`width` is the number of channels of the reconstructive network's first stage, 128 as published; the other networks begin with half of it.
Images are (B, 3, H, W) in [0, 1], sides divisible by 32. Shapes in the comments are channels x side at width 128 and 256 px.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

SIDES = 32
"""What both sides must be divisible by: the segmentation network halves five times."""


class Block(nn.Sequential):
    """conv 3x3, batch norm, ReLU, from each number of channels to the next: (B, a, H, W) -> (B, z, H, W)."""

    def __init__(self, *channels: int) -> None:
        layers: list[nn.Module] = []
        for a, b in pairwise(channels):
            layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]
        super().__init__(*layers)


def upsampling() -> nn.Upsample:
    """(B, C, H, W) -> (B, C, 2 H, 2 W), linear, corners on corners."""
    return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)


class ReconstructiveNetwork(nn.Module):
    """G: an autoencoder without skips that gives the image back as it should be. Its output is linear: it may leave [0, 1]."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        w = width
        self.encoder = nn.Sequential(
            Block(3, w, w),  # 128 x 256
            nn.MaxPool2d(2),
            Block(w, 2 * w, 2 * w),  # 256 x 128
            nn.MaxPool2d(2),
            Block(2 * w, 4 * w, 4 * w),  # 512 x 64
            nn.MaxPool2d(2),
            Block(4 * w, 8 * w, 8 * w),  # 1024 x 32
            nn.MaxPool2d(2),
            Block(8 * w, 8 * w, 8 * w),  # 1024 x 16
        )
        self.decoder = nn.Sequential(
            upsampling(),
            Block(8 * w, 8 * w, 8 * w, 4 * w),  # 512 x 32
            upsampling(),
            Block(4 * w, 4 * w, 4 * w, 2 * w),  # 256 x 64
            upsampling(),
            Block(2 * w, 2 * w, 2 * w, w),  # 128 x 128
            upsampling(),
            Block(w, w, w, w),  # 128 x 256
        )
        self.out = nn.Conv2d(w, 3, 3, padding=1)  # 3 x 256

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) fp32 -> the same shape, always fp32."""
        return exact(self.out, self.decoder(self.encoder(images)))


class SegmentationNetwork(nn.Module):
    """S: a U-Net that marks where an image differs from its reconstruction as no normal image does."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        w = width // 2
        self.b1 = Block(6, w, w)  # 64 x 256
        self.b2 = Block(w, 2 * w, 2 * w)  # 128 x 128
        self.b3 = Block(2 * w, 4 * w, 4 * w)  # 256 x 64
        self.b4 = Block(4 * w, 8 * w, 8 * w)  # 512 x 32
        self.b5 = Block(8 * w, 8 * w, 8 * w)  # 512 x 16
        self.b6 = Block(8 * w, 8 * w, 8 * w)  # 512 x 8
        self.pool = nn.MaxPool2d(2)
        self.upsample = upsampling()
        self.up5, self.u5 = Block(8 * w, 8 * w), Block(16 * w, 8 * w, 8 * w)  # 512 x 16
        self.up4, self.u4 = Block(8 * w, 4 * w), Block(12 * w, 4 * w, 4 * w)  # 256 x 32
        self.up3, self.u3 = Block(4 * w, 2 * w), Block(6 * w, 2 * w, 2 * w)  # 128 x 64
        self.up2, self.u2 = Block(2 * w, w), Block(3 * w, w, w)  # 64 x 128
        self.up1, self.u1 = Block(w, w), Block(2 * w, w, w)  # 64 x 256
        self.out = nn.Conv2d(w, 2, 3, padding=1)  # 2 x 256

    def forward(self, reconstructions: Tensor, images: Tensor) -> Tensor:
        """Both (B, 3, H, W) fp32 -> logits (B, 2, H, W) of normal and anomalous, always fp32."""
        first, *rest = self.b1
        s1 = first(torch.cat((reconstructions, images), dim=1)).float()  # normalised as exactly as can be: the two differ little
        for layer in rest:
            s1 = layer(s1)
        s2 = self.b2(self.pool(s1))
        s3 = self.b3(self.pool(s2))
        s4 = self.b4(self.pool(s3))
        s5 = self.b5(self.pool(s4))
        x = self.b6(self.pool(s5))
        x = self.u5(self._beside(self.up5, x, s5))
        x = self.u4(self._beside(self.up4, x, s4))
        x = self.u3(self._beside(self.up3, x, s3))
        x = self.u2(self._beside(self.up2, x, s2))
        x = self.u1(self._beside(self.up1, x, s1))
        return exact(self.out, x)

    def _beside(self, up: Block, x: Tensor, skip: Tensor) -> Tensor:
        return torch.cat((up(self.upsample(x)), skip), dim=1)


class Discriminator(nn.Module):
    """Tells what was drawn by a network (1, the reverse of the usual) from what is real (0): reconstructions, or maps of anomalies."""

    def __init__(self, channels: int, width: int = 128, resolution: int = 256) -> None:
        super().__init__()
        w = width // 2
        self.features = nn.Sequential(
            *(nn.Conv2d(channels, w, 5, stride=2, padding=2), nn.BatchNorm2d(w), nn.ReLU(inplace=True)),  # 64 x 128
            *(nn.Conv2d(w, 2 * w, 5, stride=2, padding=2), nn.BatchNorm2d(2 * w), nn.ReLU(inplace=True)),  # 128 x 64
            *(nn.Conv2d(2 * w, 4 * w, 5, stride=2, padding=2), nn.BatchNorm2d(4 * w), nn.ReLU(inplace=True)),  # 256 x 32
            *(nn.Conv2d(4 * w, 8 * w, 5, stride=2, padding=2), nn.ReLU(inplace=True)),  # 512 x 16
        )
        self.head = nn.Linear(8 * w * (resolution // 16) ** 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, channels, S, S) -> logits (B,), always fp32; the published sigmoid is part of the loss."""
        return exact(self.head, self.features(images).flatten(1))[:, 0]


def initialised(network: nn.Module) -> None:
    """Convolutions N(0, 0.02), weights of batch norms N(1, 0.02); all else as torch has it. By torch's random numbers."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)


def exact(layer: nn.Module, features: Tensor) -> Tensor:
    """A last layer, in fp32 also where autocast or the features are not."""
    with torch.autocast(features.device.type, enabled=False):
        result: Tensor = layer(features.float())
    return result
