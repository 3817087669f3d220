"""timm's inception_resnet_v2, also where there is no torchvision, which timm imports names from that this does not need."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
from importlib.abc import Loader, MetaPathFinder
from typing import Any

import torch
from torch import nn

from fastirv2.errors import UsageError
from fastirv2.models.slim import Slim


class _Names(type):
    """A class that has every attribute: its own name."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _StandIn(types.ModuleType):
    """A module in which every name is an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Names(name, (), {})


class _Finder(MetaPathFinder, Loader):
    def find_spec(self, name: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        ours = name.partition(".")[0] == "torchvision"
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if ours else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def timm_network(classes: int, dropout: float) -> nn.Module:
    """Make timm's inception_resnet_v2 with freshly drawn weights; its stem is a function, to be compiled as one, as slim's is.

    Raises:
        UsageError: timm cannot be imported.
    """
    if importlib.util.find_spec("torchvision") is None:
        sys.meta_path.append(_Finder())
    try:
        import timm
    except ImportError as error:
        raise UsageError(f"--vs timm needs timm ({error}); pip install --no-deps timm huggingface_hub safetensors") from error
    network = timm.create_model("inception_resnet_v2", pretrained=False, num_classes=classes, drop_rate=dropout)
    network.STEM, network.stem = Slim.STEM, types.MethodType(_stem, network)
    network.forward_features = types.MethodType(_features, network)
    return network


def _stem(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Do as timm's own in its first layers."""
    x = network.maxpool_3a(network.conv2d_2b(network.conv2d_2a(network.conv2d_1a(x))))
    return network.maxpool_5a(network.conv2d_4a(network.conv2d_3b(x)))


def _features(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Do as timm's own: its layers have the names that slim's have."""
    x = network.mixed_6a(network.repeat(network.mixed_5b(network.stem(x))))
    return network.conv2d_7b(network.block8(network.repeat_2(network.mixed_7a(network.repeat_1(x)))))
