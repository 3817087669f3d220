"""The optimizers, each against its formula in float64, and with steps that must not count."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from fastirv2.errors import UsageError
from fastirv2.models.layers import Classifier, ConvNorm
from fastirv2.training.optim import OptimizerConfig, create_optimizer, set_rate

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
KINDS = ["sgd", "rmsprop", "lamb"]
WEIGHT_DECAY, RATE = 1e-2, 0.05


def network(device="cpu", dtype=torch.float64):
    torch.manual_seed(0)
    model = nn.Sequential(ConvNorm(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    return model.to(device, dtype, memory_format=torch.channels_last)


def make(model, kind="sgd", rate=RATE, **options):
    options = {"weight_decay": WEIGHT_DECAY} | options
    optimizer = create_optimizer(model, OptimizerConfig(kind=kind, **options))
    set_rate(optimizer, rate)
    return optimizer


def give_gradients(model, rng, scale=1.0):
    """Give each parameter a gradient in its own memory layout, as autograd does; return them as numpy, not scaled."""
    drawn = [rng.standard_normal(parameter.shape) for parameter in model.parameters()]
    for parameter, gradient in zip(model.parameters(), drawn, strict=True):
        parameter.grad = torch.empty_like(parameter).copy_(torch.from_numpy(gradient * scale))
    return drawn


def spoil(model):
    """Make all gradients what an overflow leaves."""
    for value, parameter in zip([float("nan"), float("inf"), -float("inf")] * 2, model.parameters(), strict=False):
        parameter.grad.fill_(value)


def tell(optimizer, *, found_inf, grad_scale=1.0):
    device = optimizer.param_groups[0]["params"][0].device
    optimizer.found_inf = torch.tensor(float(found_inf), device=device)
    optimizer.grad_scale = torch.tensor(float(grad_scale), device=device)


def everything(model, optimizer):
    """Copies of all weights and all state."""
    states = optimizer.state_dict()["state"].values()
    return [tensor.clone() for tensor in [*model.parameters(), *(value for state in states for value in state.values())]]


def same(some, others):
    return len(some) == len(others) and all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


class ByFormula:
    """One tensor, moved by the formulas as they are written."""

    def __init__(self, kind, weight, *, momentum, alpha, epsilon, decay=WEIGHT_DECAY, adapt=True):
        self.kind, self.w, self.momentum, self.alpha, self.epsilon = kind, weight, momentum, alpha, epsilon
        self.decay, self.adapt = decay, adapt
        self.m, self.s, self.t = np.zeros_like(weight), np.full_like(weight, kind == "rmsprop"), 0

    def step(self, g, rate=RATE):
        self.t += 1
        if self.kind != "lamb":
            g = g + self.decay * self.w
        if self.kind == "sgd":
            self.m = self.momentum * self.m + g
            self.w = self.w - rate * (g + self.momentum * self.m)
            return
        self.s = self.alpha * self.s + (1 - self.alpha) * g**2
        if self.kind == "rmsprop":
            self.m = self.momentum * self.m + rate * g / np.sqrt(self.s + self.epsilon)
            self.w = self.w - self.m
            return
        self.m = self.momentum * self.m + (1 - self.momentum) * g
        r = (self.m / (1 - self.momentum**self.t)) / (np.sqrt(self.s / (1 - self.alpha**self.t)) + self.epsilon)
        u = r + self.decay * self.w
        norms = np.sqrt((self.w**2).sum()), np.sqrt((u**2).sum())
        self.w = self.w - rate * (norms[0] / norms[1] if self.adapt and all(norms) else 1) * u


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("decay", ["all", "weights"])
@pytest.mark.parametrize(
    ("kind", "momentum", "alpha", "epsilon"),
    [
        ("sgd", 0.9, 0, 0), ("rmsprop", 0.9, 0.9, 1.0), ("rmsprop", 0, 0.95, 1e-3), ("lamb", 0.9, 0.999, 1e-6),
    ],
)  # fmt: skip
def test_a_hundred_steps_are_those_of_the_formula(kind, momentum, alpha, epsilon, decay, device):
    """Gradients come scaled; steps 1 and 40 do not count; the rate changes from step to step."""
    model, rng = network(device), np.random.default_rng(3)
    numbers = {"momentum": momentum, "alpha": alpha, "epsilon": epsilon}
    optimizer = make(model, kind, decay=decay, **numbers)
    expected = []
    for parameter in model.parameters():
        exempt = decay == "weights" and parameter.ndim == 1
        rule = {"decay": 0.0, "adapt": False} if exempt else {}
        expected.append(ByFormula(kind, parameter.detach().cpu().numpy().copy(), **numbers, **rule))
    for step in range(1, 103):
        gradients, rate = give_gradients(model, rng, scale=1024.0), RATE * 0.98**step
        set_rate(optimizer, rate)
        tell(optimizer, found_inf=step in (1, 40), grad_scale=1024)
        if step in (1, 40):
            spoil(model)
        else:
            for one, gradient in zip(expected, gradients, strict=True):
                one.step(gradient, rate)
        optimizer.step()
    assert expected[0].t == 100
    for one, parameter in zip(expected, model.parameters(), strict=True):
        np.testing.assert_allclose(parameter.detach().cpu().numpy(), one.w, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("kind", "alpha", "epsilon"), [("rmsprop", 0.9, 1.0), ("lamb", 0.999, 1e-6)])
def test_each_kind_has_values_of_its_own_where_none_are_given(kind, alpha, epsilon):
    weights = []
    for options in ({}, {"alpha": alpha, "epsilon": epsilon}):
        model = network()
        optimizer = make(model, kind, **options)
        give_gradients(model, np.random.default_rng(0))
        optimizer.step()
        weights.append(everything(model, optimizer))
    assert same(*weights)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_first_step_that_overflows_changes_nothing_and_the_second_is_a_first(kind, device):
    model, rng = network(device, torch.float32), np.random.default_rng(0)
    optimizer, undisturbed = make(model, kind), copy.deepcopy(model)
    other = make(undisturbed, kind)
    before = everything(model, optimizer)
    give_gradients(model, rng)
    spoil(model)
    tell(optimizer, found_inf=True, grad_scale=65536)
    optimizer.step()
    assert same(everything(model, optimizer), before)
    seed = rng.integers(1000)
    for each, its in ((model, optimizer), (undisturbed, other)):
        give_gradients(each, np.random.default_rng(seed))
        tell(its, found_inf=False)
        its.step()
    after = everything(model, optimizer)
    assert same(after, everything(undisturbed, other))
    assert not any(torch.equal(one, old) for one, old in zip(after, before, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_torchs_own_scaler_is_understood(kind):
    """Scaled by 2¹²⁰ the gradients overflow and the step is left out; scaled by 2¹⁰ they do not."""
    model = network(dtype=torch.float32)
    optimizer, scaler = make(model, kind), torch.amp.GradScaler("cpu", init_scale=2.0**120)
    before = everything(model, optimizer)
    for left_out in (True, False):
        optimizer.zero_grad()
        images = torch.linspace(-1e4, 1e4, 54).view(2, 3, 3, 3)
        scaler.scale(1e4 * model(images).square().sum()).backward()
        scaler.step(optimizer)
        scaler.update(2.0**10)
        assert same(everything(model, optimizer), before) is left_out
    assert all(tensor.isfinite().all() for tensor in everything(model, optimizer))


def test_sgd_is_torchs_to_the_bit():
    model, rng = network(dtype=torch.float32), np.random.default_rng(0)
    theirs = copy.deepcopy(model)
    ours = create_optimizer(model, OptimizerConfig())
    settings = {"lr": 0.0, "momentum": 0.9, "weight_decay": 1e-4, "nesterov": True, "fused": True}
    plain = torch.optim.SGD(theirs.parameters(), **settings)
    for rate in (0.1, 0.05, 0.01):
        give_gradients(model, rng)
        for parameter, twin in zip(model.parameters(), theirs.parameters(), strict=True):
            twin.grad = parameter.grad.clone()
        for optimizer in (ours, plain):
            set_rate(optimizer, rate)
            optimizer.step()
    assert same(everything(model, ours), everything(theirs, plain))
    assert ours.state_dict()["param_groups"] == plain.state_dict()["param_groups"]


def test_what_torchs_own_sgd_stored_is_taken_up():
    model, rng = network(dtype=torch.float32), np.random.default_rng(0)
    plain = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True, fused=True)
    give_gradients(model, rng)
    plain.step()
    stored = copy.deepcopy(plain.state_dict())
    ours = create_optimizer(model, OptimizerConfig())
    ours.load_state_dict(stored)
    assert same(everything(model, ours), everything(model, plain))


def test_a_state_stored_before_any_step_is_taken_up():
    model = network()
    plain = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, fused=True)
    ours = make(model)
    ours.load_state_dict(plain.state_dict())
    assert all((state["momentum_buffer"] == 0).all() for state in ours.state_dict()["state"].values())
    assert len(ours.state_dict()["state"]) == len(list(model.parameters()))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_one_that_was_stored_goes_on_to_the_bit(kind, device, tmp_path):
    """Also where the file keeps values and not how they lie in memory: the kernel for CPUs would take them for others."""
    model, rng = network(device, torch.float32), np.random.default_rng(0)
    optimizer = make(model, kind, decay="weights")
    for _ in range(3):
        give_gradients(model, rng)
        optimizer.step()
    stored = copy.deepcopy(optimizer.state_dict())
    for state in stored["state"].values():
        state.update({name: value.contiguous().cpu() for name, value in copy.copy(state).items()})
    torch.save({"model": model.state_dict(), "optimizer": stored}, tmp_path / "stored.pt")
    loaded = torch.load(tmp_path / "stored.pt", weights_only=True)
    other = network(device, torch.float32)
    other.load_state_dict(loaded["model"])
    again = make(other, kind, decay="weights")
    again.load_state_dict(loaded["optimizer"])
    give_gradients(model, np.random.default_rng(7))
    give_gradients(other, np.random.default_rng(7))
    optimizer.step()
    again.step()
    assert same(everything(model, optimizer), everything(other, again))


@pytest.mark.parametrize("kind", KINDS)
def test_a_parameter_without_a_gradient_stays(kind):
    model = network()
    optimizer, frozen = make(model, kind), model[0].conv.weight
    give_gradients(model, np.random.default_rng(0))
    before, frozen.grad = everything(model, optimizer), None
    optimizer.step()
    after = everything(model, optimizer)
    assert torch.equal(after[0], before[0])
    assert not torch.equal(after[1], before[1])


def test_lamb_moves_weights_that_are_all_zero():
    """A norm of 0 has no ratio: the bias of a fresh normalisation would stay 0 for ever."""
    model = network()
    optimizer = make(model, "lamb")
    assert (model[0].bn.bias == 0).all()
    give_gradients(model, np.random.default_rng(0))
    optimizer.step()
    torch.testing.assert_close(model[0].bn.bias.abs(), torch.full((4,), RATE, dtype=torch.float64), rtol=1e-4, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_never_waits_for_the_gpu(kind):
    model = network("cuda", torch.float32)
    optimizer = make(model, kind, decay="weights")
    give_gradients(model, np.random.default_rng(0))
    tell(optimizer, found_inf=False, grad_scale=2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "wrong",
    [
        {"momentum": 1.0}, {"momentum": 0.0}, {"momentum": -0.5}, {"kind": "lamb", "momentum": 0.0}, {"weight_decay": -1.0},
        {"weight_decay": math.inf}, {"alpha": 1.0}, {"alpha": -0.1}, {"epsilon": -1.0}, {"epsilon": math.inf}, {"clip": -1.0},
        {"clip": math.nan}, {"clip": math.inf}, {"kind": "lamb", "epsilon": 0.1},
    ],
)  # fmt: skip
def test_options_out_of_bounds_are_refused(wrong):
    with pytest.raises(UsageError, match="optimizer: "):
        OptimizerConfig(**wrong)


@pytest.mark.parametrize("decay", ["all", "weights"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_body_moves_at_its_share_of_the_rate_and_what_is_frozen_not_at_all(kind, decay):
    """In the first step of each optimizer a weight moves in proportion to its rate."""
    moved = {}
    for share in (1.0, 0.25):
        torch.manual_seed(0)
        model = nn.Sequential(ConvNorm(3, 4, 3), ConvNorm(4, 4), nn.Flatten(), Classifier(4, 2)).double()
        model[0].requires_grad_(False)
        optimizer = make(model, kind, decay=decay, body_rate=share)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        give_gradients(model, np.random.default_rng(0))
        optimizer.step()
        moved[share] = [now.detach() - then for now, then in zip(model.parameters(), before, strict=True)]
        assert {id(p) for p in optimizer.state} == {id(p) for p in model.parameters() if p.requires_grad}
    for number, (slow, whole) in enumerate(zip(moved[0.25], moved[1.0], strict=True)):
        expected = 0 * whole if number < 3 else 0.25 * whole if number < 6 else whole
        torch.testing.assert_close(slow, expected, rtol=1e-9, atol=1e-15)


def test_a_share_of_the_rate_outlives_a_checkpoint():
    model = nn.Sequential(ConvNorm(3, 4, 3), nn.Flatten(), Classifier(4, 2))
    first, second = (make(model, body_rate=0.1) for _ in range(2))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    set_rate(second, 2.0)
    assert [group["lr"] for group in second.param_groups] == [0.2, 2.0]


def test_a_captured_step_reads_each_groups_rate_where_it_always_was():
    optimizer = make(nn.Sequential(ConvNorm(3, 4, 3), nn.Flatten(), Classifier(4, 2)), body_rate=0.1)
    rates = [torch.zeros(()), torch.zeros(())]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    set_rate(optimizer, 2.0)
    assert all(group["lr"] is rate for group, rate in zip(optimizer.param_groups, rates, strict=True))
    assert [float(rate) for rate in rates] == pytest.approx([0.2, 2.0])


@pytest.mark.parametrize("share", [0, -1, 1.5, float("nan")])
def test_a_share_of_the_rate_is_one(share):
    with pytest.raises(UsageError, match="body-rate must lie in"):
        OptimizerConfig(body_rate=share)
