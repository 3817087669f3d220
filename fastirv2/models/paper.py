"""Inception-ResNet-v2 as the paper draws it (arXiv 1602.07261), with its two misprints corrected.

Figure 17 prints 1154 where the residual sum needs 1152, and figure 18's Reduction-B, with 256 for its 288 and 320, ends at
the 2048 channels of figure 19. Every residual branch ends in a batch-normalised 1×1 convolution, scaled by 0.1.
"""

from __future__ import annotations

import torch
from torch import nn

from fastirv2.models.branches import Concat
from fastirv2.models.dropout import Dropout
from fastirv2.models.layers import Classifier, ConvNorm, GlobalPool, initialise
from fastirv2.models.pooling import MaxPool
from fastirv2.models.residual import ResidualSum

SCALE = 0.1  # section 3.3: 0.1 to 0.3; without it networks of more than 1000 filters "died"


class Stem(nn.Module):
    """Figure 3, the Inception-v4 stem: 299² × 3 → 35² × 384; the predecessor runs the 7-tap pair along the width first."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = ConvNorm(3, 32, 3, stride=2)
        self.conv2 = ConvNorm(32, 32, 3)
        self.conv3 = ConvNorm(32, 64, 3, padding=1)
        self.down1 = Concat(MaxPool(), ConvNorm(64, 96, 3, stride=2))
        self.mixed = Concat(
            nn.Sequential(ConvNorm(160, 64), ConvNorm(64, 96, 3)),
            nn.Sequential(
                ConvNorm(160, 64),
                ConvNorm(64, 64, (1, 7), padding=(0, 3)),
                ConvNorm(64, 64, (7, 1), padding=(3, 0)),
                ConvNorm(64, 96, 3),
            ),
        )
        self.down2 = Concat(ConvNorm(192, 192, 3, stride=2), MaxPool())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, 3, H, W) to (N, 384, H/8, W/8), borders cut."""
        return self.down2(self.mixed(self.down1(self.conv3(self.conv2(self.conv1(x))))))


class Residual(ResidualSum):
    """x + 0.1 · project(branches(x)), then ReLU."""

    def __init__(self, channels: int, width: int, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = Concat(*branches)
        self.project = ConvNorm(width, channels, relu=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, channels, H, W) to the same shape."""
        x = self.read(x)
        residual = self.branches(x)
        if not self.branches.merge:
            return self.scaled_sum(x, self.project(residual), SCALE)
        return self.scaled_sum(x, self.project.bn(self.project.conv(residual), SCALE), 1)


def block_a() -> Residual:
    """Figure 16, Inception-ResNet-A on 35² × 384."""
    return Residual(
        384,
        128,
        ConvNorm(384, 32),
        nn.Sequential(ConvNorm(384, 32), ConvNorm(32, 32, 3, padding=1)),
        nn.Sequential(ConvNorm(384, 32), ConvNorm(32, 48, 3, padding=1), ConvNorm(48, 64, 3, padding=1)),
    )


def block_b() -> Residual:
    """Figure 17, Inception-ResNet-B on 17² × 1152; the predecessor runs the 7-tap pair along the height first."""
    seven = (ConvNorm(128, 160, (7, 1), padding=(3, 0)), ConvNorm(160, 192, (1, 7), padding=(0, 3)))
    return Residual(1152, 384, ConvNorm(1152, 192), nn.Sequential(ConvNorm(1152, 128), *seven))


def block_c() -> Residual:
    """Figure 19, Inception-ResNet-C on 8² × 2048; the predecessor runs the 3-tap pair along the height first."""
    three = (ConvNorm(192, 224, (3, 1), padding=(1, 0)), ConvNorm(224, 256, (1, 3), padding=(0, 1)))
    return Residual(2048, 448, ConvNorm(2048, 192), nn.Sequential(ConvNorm(2048, 192), *three))


def reduction_a() -> Concat:
    """Figure 7 with k, l, m, n = 256, 256, 384, 384: 35² × 384 → 17² × 1152."""
    return Concat(
        MaxPool(),
        ConvNorm(384, 384, 3, stride=2),
        nn.Sequential(ConvNorm(384, 256), ConvNorm(256, 256, 3, padding=1), ConvNorm(256, 384, 3, stride=2)),
    )


def reduction_b() -> Concat:
    """Figure 18: 17² × 1152 → 8² × 2048."""
    return Concat(
        MaxPool(),
        nn.Sequential(ConvNorm(1152, 256), ConvNorm(256, 384, 3, stride=2)),
        nn.Sequential(ConvNorm(1152, 256), ConvNorm(256, 256, 3, stride=2)),
        nn.Sequential(ConvNorm(1152, 256), ConvNorm(256, 256, 3, padding=1), ConvNorm(256, 256, 3, stride=2)),
    )


class Paper(nn.Module):
    """The network of torch-inception-resnet-v2: 31,574,440 parameters and 9.19 GMAC at 1000 classes and 299²."""

    def __init__(self, num_classes: int = 1000, dropout: float = 0.2) -> None:
        super().__init__()
        self.stem = Stem()
        self.block_a = nn.Sequential(*(block_a() for _ in range(5)))
        self.reduction_a = reduction_a()
        self.block_b = nn.Sequential(*(block_b() for _ in range(10)))
        self.reduction_b = reduction_b()
        self.block_c = nn.Sequential(*(block_c() for _ in range(5)))
        self.pool = GlobalPool()
        self.dropout = Dropout(dropout)
        self.classifier = Classifier(2048, num_classes)
        initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, 3, H, W), scaled to [-1, 1], at least 75 pixels a side, to logits (N, num_classes)."""
        x = self.reduction_a(self.block_a(self.stem(x)))
        x = self.reduction_b(self.block_b(x))
        x = self.pool(self.block_c(x))
        return self.classifier(self.dropout(x))
