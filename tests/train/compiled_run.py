"""`fastirv2.train` with a network of three small blocks, two of a kind, compiled by the BACKEND that the environment names."""

import os

from torch import nn

from fastirv2 import models, train
from fastirv2.models.branches import Concat
from fastirv2.models.dropout import Dropout
from fastirv2.models.layers import Classifier, ConvNorm, GlobalPool, initialise
from fastirv2.training import compiled


class Small(nn.Module):
    def __init__(self, classes, dropout):
        super().__init__()
        self.stem = ConvNorm(3, 8, 3, stride=2)
        self.blocks = nn.Sequential(*(Concat(ConvNorm(8, 4), ConvNorm(8, 4, 3, padding=1)) for _ in range(2)))
        self.pool, self.dropout, self.classifier = GlobalPool(), Dropout(dropout), Classifier(8, classes)
        initialise(self)

    def forward(self, x):
        return self.classifier(self.dropout(self.pool(self.blocks(self.stem(x)))))


if __name__ == "__main__":
    compiled.BACKEND = os.environ.get("BACKEND", compiled.BACKEND)
    models.ARCHITECTURES["paper"] = Small
    train.run_command(train.command, train.PROGRAM)
