"""`fastirv2.train` with a network of the same parts and a thousandth of the weights, for runs whose network is not the point.

PASS_SECONDS has each of its passes take so long, for runs that something is to happen to.
"""

import os
import time

from torch import nn

from fastirv2 import models, train
from fastirv2.models.dropout import Dropout
from fastirv2.models.layers import Classifier, ConvNorm, GlobalPool, initialise
from fastirv2.models.paper import Residual
from fastirv2.models.pooling import MaxPool

SECONDS = float(os.environ.get("PASS_SECONDS", "0"))


class SmallNetwork(nn.Sequential):
    """Convolutions, pooling, a residual block, dropout."""

    def __init__(self, num_classes, dropout):
        block = Residual(32, 32, ConvNorm(32, 16), nn.Sequential(ConvNorm(32, 16), ConvNorm(16, 16, 3, padding=1)))
        stem = ConvNorm(3, 16, 3, stride=2), MaxPool(), ConvNorm(16, 32, 3, stride=2)
        super().__init__(*stem, block, GlobalPool(), Dropout(dropout), Classifier(32, num_classes))
        initialise(self)

    def forward(self, images):
        time.sleep(SECONDS)
        return super().forward(images)


if __name__ == "__main__":
    models.ARCHITECTURES["paper"] = SmallNetwork
    train.run_command(train.command, train.PROGRAM)
