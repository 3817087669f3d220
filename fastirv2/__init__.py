"""fastirv2: Inception-ResNet-v2 trained on ImageNet in hours."""

__version__ = "0.1.0"
