"""What the two networks share: convolution + batch normalisation + ReLU, the last layers, initialisation."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from fastirv2.models.norm import BatchNorm2d, normalise_largest
from fastirv2.models.pooling import MaxPool
from fastirv2.models.residual import Reader


class Convolution(nn.Conv2d):
    """`torch.nn.Conv2d` whose 1×1 kernels are `pointwise`."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int] = 1,
        *,
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
        bias: bool = False,
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride, padding=padding, bias=bias)
        self.pointwise = (self.kernel_size, self.stride, self.padding) == ((1, 1), (1, 1), (0, 0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H', W')."""
        return pointwise(x, self.weight, self.bias) if self.pointwise else super().forward(x)


def pointwise(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Convolve (N, C, H, W) with a 1×1 kernel (outputs, C, 1, 1).

    On a CPU, channels last, as the matrix product that it is: oneDNN's product takes 0.5 to 0.8 of its convolution's time.
    """
    if x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last):
        rows = weight.permute(0, 2, 3, 1).flatten(1)  # so the gradient comes channels last, as DDP's buckets have it
        return functional.linear(x.permute(0, 2, 3, 1), rows, bias).permute(0, 3, 1, 2)
    return functional.conv2d(x, weight, bias)


class ConvNorm(nn.Module):
    """A convolution without bias, its batch normalisation, and a ReLU unless `relu` is False."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int] = 1,
        *,
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
        relu: bool = True,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.conv = Convolution(inputs, outputs, kernel, stride=stride, padding=padding)
        self.bn = BatchNorm2d(outputs, eps=eps)
        self.relu = relu

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H', W'), scaled by a number above 0, which goes through a ReLU."""
        x = self.conv(x)
        x = self.bn(x) if scale == 1 else self.bn(x, scale)  # an exported network may have something else in its place
        return activated(x) if self.relu else x


class PooledConvNorm(ConvNorm):
    """A `ConvNorm`, and max-pooling behind it that training brings forward: only what it keeps is normalised.

    A line that rises and a ReLU keep the order of values, so that the largest can be chosen before them; where a weight of the
    normalisation is below 0, the convolution's kernel is turned over. It is the same mathematics; statistics are of all values.
    (Where a weight is 0 all values tie; its gradient is then that of another choice among them.)
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, *, padding: int = 0, eps: float = 1e-5) -> None:
        super().__init__(inputs, outputs, kernel, padding=padding, eps=eps)
        self.pool = MaxPool()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, inputs, H, W) to (N, outputs, ⌊(H' − 1) / 2⌋, ⌊(W' − 1) / 2⌋)."""
        if not (isinstance(self.bn, BatchNorm2d) and self.bn.moving) or x.is_meta:  # of shapes alone there are no statistics
            return self.pool(super().forward(x))
        turned = torch.ones_like(self.bn.weight).copysign(self.bn.weight.detach())
        y = functional.conv2d(x, self.conv.weight * turned[:, None, None, None], padding=self.conv.padding)
        return activated(normalise_largest(self.bn, y, turned))


class GlobalPool(Reader):
    """The average over all places; asked to `watch`, in training, it notes the share of zeros among what it averages.

    A share near 1 is a network that has died, as very wide residual ones do (arXiv 1602.07261, section 3.3).
    """

    def __init__(self) -> None:
        super().__init__()
        self.watch = False
        self.zero_share: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to (N, C)."""
        if self.watch and self.training:
            self.zero_share = (x.detach() == 0).float().mean()
        return self.read(x).mean((2, 3))


class Classifier(nn.Linear):
    """The last layer, always in its weight's own precision: bf16 logits tie, and ties make the error a matter of luck."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map features (N, in_features) to logits (N, out_features)."""
        x = x.to(self.weight.dtype)
        if x.is_meta:  # shapes alone: no autocast is known there
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x)


def activated(x: torch.Tensor) -> torch.Tensor:
    """Return ReLU of `x`, in its place unless compiled: a compiler knows by itself what is not read again."""
    return x.relu() if torch.compiler.is_compiling() else x.relu_()


def initialise(model: nn.Module) -> None:
    """He initialisation with fan-out (kH·kW·outputs; He et al. 2015, equation 14); biases 0, normalisation weight 1 and bias 0.

    The classifier keeps torch's uniform ±1/√inputs, which is what the predecessor's Torch7 layer drew.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.zeros_(module.bias)
