"""`fastirv2.train` with a network of few weights in the place of the paper's, whose parts have the names that matter."""

from torch import nn

from fastirv2 import models, train
from fastirv2.models.dropout import Dropout
from fastirv2.models.layers import Classifier, ConvNorm, GlobalPool, initialise
from fastirv2.models.paper import Residual


class SmallPaper(nn.Module):
    """A stem, a residual block, a last layer."""

    def __init__(self, num_classes, dropout):
        super().__init__()
        self.stem = nn.Sequential(ConvNorm(3, 8, 3, stride=2), ConvNorm(8, 16, 3, stride=2))
        self.block_a = Residual(16, 16, ConvNorm(16, 8), nn.Sequential(ConvNorm(16, 8), ConvNorm(8, 8, 3, padding=1)))
        self.head = nn.Sequential(GlobalPool(), Dropout(dropout))
        self.classifier = Classifier(16, num_classes)
        initialise(self)

    def forward(self, images):
        return self.classifier(self.head(self.block_a(self.stem(images))))


if __name__ == "__main__":
    models.ARCHITECTURES["paper"] = SmallPaper
    train.run_command(train.command, train.PROGRAM)
