"""The stages of both networks, and activations that are computed twice."""

import pytest
import torch

from fastirv2.training.engine import Engine
from fastirv2.training.optim import OptimizerConfig, create_optimizer, set_rate
from fastirv2.training.pixels import unit
from fastirv2.training.regions import recompute_stages, stages
from tests.training.reduced import ALONE, batch, reduced


@pytest.mark.parametrize(("arch", "parts"), [("paper", [3, 3, 3]), ("slim", [8, 3, 5])])
def test_a_network_has_three_stages(arch, parts):
    with torch.device("meta"):
        assert list(map(len, stages(reduced(arch)))) == parts


def trained(recompute):
    """Return all that two steps of two passes leave behind."""
    engine = Engine(reduced(), ALONE, amp="fp64", accumulation=2, normalise=unit, recompute=recompute)
    optimizer = create_optimizer(engine.model, OptimizerConfig())
    set_rate(optimizer, 0.01)
    for step in (1, 2):
        engine.step(iter([batch(10 * step + part, images=2) for part in (0, 1)]), optimizer, draw=step)
    state = engine.model.state_dict() | {"counts": engine.train_counts.take()}
    return state | {f"momentum{n}": s["momentum_buffer"] for n, s in optimizer.state_dict()["state"].items()}


def test_what_is_computed_twice_leaves_the_same_bits():
    """Weights, momentum, running statistics, which a second forward pass would move again, and counts."""
    expected, found = trained(0), trained(3)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def kept(recompute):
    """Return the bytes that a forward pass keeps for the backward pass, without the weights."""
    model = reduced()
    recompute_stages(model, recompute)
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    found = {}

    def keep(tensor):
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(batch(1, images=2)[0].float())
    assert logits.requires_grad
    return sum(size for address, size in found.items() if address not in weights)


def test_each_stage_that_is_computed_twice_spares_memory():
    all_kept, one, two, three = map(kept, range(4))
    assert all_kept > 1.3 * one
    assert one > two > three
