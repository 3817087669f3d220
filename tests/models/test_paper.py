"""The paper network is the predecessor's published graph, node by node."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from fastirv2 import models
from fastirv2.errors import UsageError
from tests.models.graph import Operation, multiply_adds, operations

TABLE = Path(__file__).parent / "predecessor_layers.csv"
COLUMNS = ("in_channels", "out_channels", "kernel_h", "kernel_w", "stride", "pad_h", "pad_w")


@pytest.mark.parametrize("arch", models.ARCHITECTURES)
@pytest.mark.parametrize("size", [75, 90, 107, 112, 299])
def test_the_last_maps_are_as_large_as_it_is_said(arch, size):
    with torch.device("meta"):
        model = models.create(arch, 2).eval()
        sides = []
        model.pool.register_forward_pre_hook(lambda _, inputs: sides.append(inputs[0].shape[2:]))
        model(torch.empty(1, 3, size, size))
    assert sides == [(models.last_maps(size),) * 2]


def table_rows() -> list[Operation]:
    """The table's rows without its `flatten`, the later nodes renumbered."""
    with TABLE.open() as file:
        rows = list(csv.DictReader(file))
    flatten = next(int(r["node"]) for r in rows if r["op"] == "flatten")

    def number(node: str) -> int:
        return int(node) - (int(node) >= flatten)

    found = []
    for row in rows:
        if int(row["node"]) == flatten:
            continue
        kind = "scale 0.1" if row["op"] == "scale" else row["op"]
        kernel = tuple(int(row[c]) for c in COLUMNS if row[c])
        shape = tuple(int(row[c]) for c in ("out_c", "out_h", "out_w") if row[c])
        found.append(Operation(kind, tuple(number(n) for n in row["inputs"].split()), kernel, shape))
    return found


def test_every_node_is_the_published_one():
    ours, published = operations(models.create("paper"), 299), table_rows()
    for number, (op, row) in enumerate(zip(ours, published, strict=True), 1):
        if row.kind == "avgpool":  # the whole 8×8 map, which a mean over all pixels is at any size
            assert (op.kind, op.inputs, math.prod(op.shape)) == ("avgpool", row.inputs, 2048)
            assert ours[op.inputs[0] - 1].shape[1:] == row.kernel[:2]
            continue
        assert op == row, f"node {number}"


def test_it_has_132_convolutions_without_bias_and_the_published_size():
    model = models.create("paper")
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 132
    assert all(c.bias is None for c in convolutions)
    assert sum(p.numel() for p in model.parameters()) == 31_574_440
    assert round(multiply_adds(operations(model, 299)) / 1e9, 2) == 9.19


def test_normalisation_has_the_predecessors_constants():
    norms = [m for m in models.create("paper").modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 132
    assert {(n.eps, n.momentum) for n in norms} == {(1e-5, 0.1)}


def test_initial_weights_are_he_normal_with_fan_out_and_the_last_layers_uniform():
    torch.manual_seed(0)
    model = models.create("paper")
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size)
            spread = module.weight.std().item() * math.sqrt(fan_out / 2)
            assert spread == pytest.approx(1, abs=6 / math.sqrt(2 * module.weight.numel()))
        elif isinstance(module, nn.BatchNorm2d):
            assert module.weight.eq(1).all()
            assert module.bias.eq(0).all()
    last = model.classifier.weight
    assert last.abs().max() <= 2048**-0.5
    assert last.std().item() == pytest.approx((3 * 2048) ** -0.5, rel=0.01)
    assert model.classifier.bias.eq(0).all()


def test_state_dict_has_one_entry_a_convolution():
    keys = models.create("paper").state_dict().keys()
    assert sum(k.endswith("conv.weight") for k in keys) == 132


@pytest.mark.parametrize("arch", ["paper", "slim"])
def test_smallest_input_runs_and_activations_stay_channels_last(arch):
    model = models.create(arch, num_classes=7).to(memory_format=torch.channels_last)
    seen = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    images = torch.randn(2, 3, models.SMALLEST_INPUT, models.SMALLEST_INPUT).contiguous(memory_format=torch.channels_last)
    logits = model(images)
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()
    assert seen
    assert all(t.is_contiguous(memory_format=torch.channels_last) for pair in seen for t in pair)


def test_an_unknown_network_is_refused_with_the_nearest_name():
    with pytest.raises(UsageError, match="did you mean 'paper'"):
        models.create("papr")


def test_the_last_layer_keeps_its_precision_under_autocast():
    model = models.create("paper", num_classes=7).eval()
    with torch.autocast("cpu", torch.bfloat16):
        assert model.stem(torch.zeros(1, 3, 75, 75)).dtype == torch.bfloat16
        assert model(torch.zeros(1, 3, 75, 75)).dtype == torch.float32
