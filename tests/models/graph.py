"""Reads a network as the list of its operations with their inputs and shapes, so that it can be held against a table."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from fastirv2.models.branches import merge_siblings
from fastirv2.models.dropout import Dropout
from fastirv2.models.layers import Convolution
from fastirv2.models.norm import BatchNorm2d
from fastirv2.models.pooling import AveragePool, MaxPool


@dataclass(frozen=True)
class Operation:
    kind: str
    inputs: tuple[int, ...]
    kernel: tuple[int, ...]  # in channels, out channels, kernel height and width, stride, padding height and width
    shape: tuple[int, ...]  # channels, height, width


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        ours = (AveragePool, BatchNorm2d, Convolution, Dropout, MaxPool, nn.Linear)
        return isinstance(module, ours) or super().is_leaf_module(module, name)


def _pair(value):
    return value if isinstance(value, tuple) else (value, value)


def _module_operation(module: nn.Module) -> tuple[str, tuple[int, ...]]:
    if isinstance(module, nn.Conv2d):
        sizes = (module.in_channels, module.out_channels, *module.kernel_size, module.stride[0], *module.padding)
        return "conv", sizes
    if isinstance(module, nn.MaxPool2d):
        return "maxpool", (*_pair(module.kernel_size), module.stride, *_pair(module.padding))
    if isinstance(module, nn.AvgPool2d):
        return "avgpool", (*_pair(module.kernel_size), module.stride, *_pair(module.padding))
    if isinstance(module, nn.Linear):
        return "linear", (module.in_features, module.out_features)
    return {BatchNorm2d: "batchnorm", Dropout: "dropout"}[type(module)], ()


def operations(model: nn.Module, size: int) -> list[Operation]:
    """List the operations in the order of execution; numbers count from 1, the input image being number 1."""
    merge_siblings(model, False)
    with torch.device("meta"):
        model = model.to("meta").eval()
        graph = fx.GraphModule(model, _Tracer().trace(model))
        ShapeProp(graph).propagate(torch.empty(2, 3, size, size))
    numbers: dict[fx.Node, int] = {}
    found: list[Operation] = []
    for node in graph.graph.nodes:
        if node.op == "output":
            continue
        shape = tuple(node.meta["tensor_meta"].shape[1:])
        inputs = tuple(numbers[n] for n in node.all_input_nodes)
        if node.op == "placeholder":
            kind, kernel = "input", ()
        elif node.op == "call_module":
            kind, kernel = _module_operation(model.get_submodule(node.target))
        elif node.target is torch.cat:
            kind, kernel = "concat", ()
        elif node.target is torch.add:
            scale = Operation(f"scale {node.kwargs['alpha']}", (inputs[1],), (), shape)
            found.append(scale)
            inputs, kind, kernel = (inputs[0], len(found)), "add", ()
        else:
            kind, kernel = {"relu_": "relu", "mean": "avgpool"}[node.target], ()
        found.append(Operation(kind, inputs, kernel, shape))
        numbers[node] = len(found)
    return found


def multiply_adds(found: list[Operation]) -> int:
    """Multiply-adds of the convolutions and the linear layer for one image."""
    total = 0
    for op in found:
        if op.kind == "conv":
            total += op.kernel[0] * op.kernel[1] * op.kernel[2] * op.kernel[3] * op.shape[1] * op.shape[2]
        elif op.kind == "linear":
            total += op.kernel[0] * op.kernel[1]
    return total
