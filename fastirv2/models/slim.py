"""Inception-ResNet-v2 as TensorFlow-slim has it, the network that public weights are for, under timm's names."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from fastirv2.models.branches import Branches, Concat
from fastirv2.models.dropout import Dropout
from fastirv2.models.layers import Classifier, ConvNorm, Convolution, GlobalPool, PooledConvNorm, initialise, pointwise
from fastirv2.models.pooling import AveragePool, MaxPool
from fastirv2.models.residual import ResidualSum

Conv = partial(ConvNorm, eps=1e-3)


class Residual(Branches, ResidualSum):
    """x + scale · conv2d(branches(x)), then ReLU unless it is the last block; the 1×1 has a bias and no normalisation."""

    def __init__(self, channels: int, width: int, scale: float, *branches: nn.Module, relu: bool = True) -> None:
        super().__init__(*branches)
        self.conv2d = Convolution(width, channels, bias=True)
        self.scale = scale
        self.relu = relu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, channels, H, W) to the same shape."""
        x = self.read(x)
        if not (self.merge or (self.training and torch.compiler.is_compiling())):  # which spares its gradient a pass
            return self.scaled_sum(x, self.conv2d(self.concatenated(x)), self.scale)
        residual = pointwise(self.concatenated(x, self.scale), self.conv2d.weight, self.conv2d.bias * self.scale)
        return self.scaled_sum(x, residual, 1)


def mixed_5b() -> Concat:
    """35² × 192 → 35² × 320; the average pool does not count its padding."""
    return Concat(
        Conv(192, 96),
        nn.Sequential(Conv(192, 48), Conv(48, 64, 5, padding=2)),
        nn.Sequential(Conv(192, 64), Conv(64, 96, 3, padding=1), Conv(96, 96, 3, padding=1)),
        nn.Sequential(AveragePool(), Conv(192, 64)),
    )


def block35() -> Residual:
    """Inception-ResNet-A on 35² × 320, scale 0.17."""
    return Residual(
        320,
        128,
        0.17,
        Conv(320, 32),
        nn.Sequential(Conv(320, 32), Conv(32, 32, 3, padding=1)),
        nn.Sequential(Conv(320, 32), Conv(32, 48, 3, padding=1), Conv(48, 64, 3, padding=1)),
    )


def mixed_6a() -> Concat:
    """35² × 320 → 17² × 1088."""
    return Concat(
        Conv(320, 384, 3, stride=2),
        nn.Sequential(Conv(320, 256), Conv(256, 256, 3, padding=1), Conv(256, 384, 3, stride=2)),
        MaxPool(),
    )


def block17() -> Residual:
    """Inception-ResNet-B on 17² × 1088, scale 0.10."""
    seven = (Conv(128, 160, (1, 7), padding=(0, 3)), Conv(160, 192, (7, 1), padding=(3, 0)))
    return Residual(1088, 384, 0.10, Conv(1088, 192), nn.Sequential(Conv(1088, 128), *seven))


def mixed_7a() -> Concat:
    """17² × 1088 → 8² × 2080."""
    return Concat(
        nn.Sequential(Conv(1088, 256), Conv(256, 384, 3, stride=2)),
        nn.Sequential(Conv(1088, 256), Conv(256, 288, 3, stride=2)),
        nn.Sequential(Conv(1088, 256), Conv(256, 288, 3, padding=1), Conv(288, 320, 3, stride=2)),
        MaxPool(),
    )


def block8(scale: float = 0.20, *, relu: bool = True) -> Residual:
    """Inception-ResNet-C on 8² × 2080."""
    three = (Conv(192, 224, (1, 3), padding=(0, 1)), Conv(224, 256, (3, 1), padding=(1, 0)))
    return Residual(2080, 448, scale, Conv(2080, 192), nn.Sequential(Conv(2080, 192), *three), relu=relu)


class Slim(nn.Module):
    """55,843,464 parameters and 13.16 GMAC at 1000 classes and 299²; batch normalisation with ε 1e-3."""

    STEM = ("conv2d_1a", "conv2d_2a", "conv2d_2b", "conv2d_3b", "conv2d_4a")  # the parts of `stem` that learn

    def __init__(self, num_classes: int = 1000, dropout: float = 0.2) -> None:
        super().__init__()
        self.conv2d_1a = Conv(3, 32, 3, stride=2)
        self.conv2d_2a = Conv(32, 32, 3)
        self.conv2d_2b = PooledConvNorm(32, 64, 3, padding=1, eps=1e-3)
        self.conv2d_3b = Conv(64, 80)
        self.conv2d_4a = PooledConvNorm(80, 192, 3, eps=1e-3)
        self.mixed_5b = mixed_5b()
        self.repeat = nn.Sequential(*(block35() for _ in range(10)))
        self.mixed_6a = mixed_6a()
        self.repeat_1 = nn.Sequential(*(block17() for _ in range(20)))
        self.mixed_7a = mixed_7a()
        self.repeat_2 = nn.Sequential(*(block8() for _ in range(9)))
        self.block8 = block8(1.0, relu=False)
        self.conv2d_7b = Conv(2080, 1536)
        self.pool = GlobalPool()
        self.dropout = Dropout(dropout)
        self.classif = Classifier(1536, num_classes)
        initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, 3, H, W), scaled to [-1, 1], at least 75 pixels a side, to logits (N, num_classes)."""
        x = self.mixed_6a(self.repeat(self.mixed_5b(self.stem(x))))
        x = self.mixed_7a(self.repeat_1(x))
        x = self.conv2d_7b(self.block8(self.repeat_2(x)))
        return self.classif(self.dropout(self.pool(x)))

    def stem(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, 3, H, W) to (N, 192, H/8, W/8), borders cut."""
        x = self.conv2d_2b(self.conv2d_2a(self.conv2d_1a(x)))
        return self.conv2d_4a(self.conv2d_3b(x))
