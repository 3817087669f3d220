"""The weights of a graph's convolutions, brought to autocast's precision together instead of each by a kernel of its own."""

from __future__ import annotations

import operator

import torch
from torch import fx, nn

_TOGETHER = 8  # inductor joins and converts up to so many tensors in one kernel (its max_pointwise_cat_inputs)


def cast_together(graph: fx.Graph) -> None:
    """Have a graph that was traced under autocast read its convolutions' weights from one tensor in that precision.

    Its inputs stay the parameters, and values the same to the bit; the gradients are slices of one tensor too.

    Args:
        graph: as `torch.compile` gives it to a backend, autocast being what it is for what is compiled; it is changed.
    """
    begin = next(node for node in graph.nodes if node.op != "placeholder")
    weights = [node for node in graph.nodes if node.op == "placeholder" and _is_converted(node.meta.get("example_value"))]
    for first in range(0, len(weights), _TOGETHER):
        together = weights[first : first + _TOGETHER]
        device = together[0].meta["example_value"].device.type
        if len(together) > 1 and torch.is_autocast_enabled(device):
            with graph.inserting_before(begin):
                _cast(graph, together, torch.get_autocast_dtype(device))


def _is_converted(value: object) -> bool:
    """Say whether a graph's input is a convolution's weight (O, I, kH, kW) that autocast converts, and that learns.

    One that does not, together with some that do, would have its gradient computed for nothing.
    """
    return isinstance(value, nn.Parameter) and value.ndim == 4 and value.dtype == torch.float32 and value.requires_grad


def _cast(graph: fx.Graph, weights: list[fx.Node], dtype: torch.dtype) -> None:
    """Insert the conversion of `weights`, and have what read them read its slices, channels last as they are.

    Torch keeps for the next run only graphs of functions, and of methods of what it has an example of.
    """
    readers = [list(weight.users) for weight in weights]
    examples = [weight.meta["example_value"].detach().to(dtype) for weight in weights]
    last = [graph.call_function(torch.permute, (weight, (0, 2, 3, 1))) for weight in weights]
    joined = graph.call_function(torch.cat, ([graph.call_function(torch.flatten, (each,)) for each in last],))
    converted = graph.call_function(torch.ops.aten.to.dtype, (joined, dtype))
    parts = graph.call_function(torch.split_with_sizes, (converted, [example.numel() for example in examples]))
    for number, (weight, example, users) in enumerate(zip(weights, examples, readers, strict=True)):
        outputs, inputs, *sides = example.shape
        part = graph.call_function(operator.getitem, (parts, number))
        part = graph.call_function(torch.reshape, (part, (outputs, *sides, inputs)))
        part = graph.call_function(torch.permute, (part, (0, 3, 1, 2)))
        part.meta["example_value"] = example
        for user in users:
            user.replace_input_with(weight, part)
