"""What is frozen stays as it is, and normalises by what it has, in training too."""

import pytest
import torch

from fastirv2 import models
from fastirv2.models.freezing import freeze
from fastirv2.models.layers import ConvNorm
from fastirv2.models.norm import BatchNorm2d, Statistics, flat_statistics, share_statistics

STEMS = {"paper": ("stem.",), "slim": ("conv2d_1a.", "conv2d_2a.", "conv2d_2b.", "conv2d_3b.", "conv2d_4a.")}


def frozen(arch, what):
    """Names of the parameters that do not learn, and of the layers that keep their statistics."""
    with torch.device("meta"):
        model = models.create(arch, 2)
    freeze(model, what)
    layers = {name for name, module in model.named_modules() if isinstance(module, BatchNorm2d)}
    kept = {name for name in layers if model.get_submodule(name).frozen}
    return {name for name, p in model.named_parameters() if not p.requires_grad}, kept, model, layers


@pytest.mark.parametrize("arch", STEMS)
def test_the_stem_or_all_statistics_or_both_are_frozen(arch):
    for what in ("none", "stem", "statistics", "both"):
        parameters, kept, model, layers = frozen(arch, what)
        of_stem = {name for name, _ in model.named_parameters() if name.startswith(STEMS[arch])}
        assert len(of_stem) > 10
        assert parameters == (of_stem if what in ("stem", "both") else set())
        stem_layers = {name for name in layers if name.startswith(STEMS[arch])}
        assert kept == {"none": set(), "stem": stem_layers}.get(what, layers)


@pytest.mark.parametrize("statistics", [Statistics(), Statistics(splits=2)])
def test_a_frozen_layer_normalises_in_training_as_in_validation(statistics):
    torch.manual_seed(0)
    layer, x = ConvNorm(3, 4), torch.randn(4, 3, 5, 5)
    layer.bn.running_mean.normal_()
    layer.bn.running_var.uniform_(0.5, 2)
    share_statistics(layer, statistics)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    freeze(layer, "statistics")
    trained = layer.train()(x)
    trained.sum().backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())
    assert layer.bn.weight.grad is not None
    assert torch.equal(trained, layer.eval()(x))
    assert flat_statistics(layer).numel() == 0
