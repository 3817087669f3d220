"""A step whose gradient is not finite leaves nothing behind, in every precision, and nobody waits to know."""

import copy

import pytest
import torch
from torch import nn

from fastirv2.models.layers import Classifier, ConvNorm
from fastirv2.training.distributed import Process
from fastirv2.training.engine import Engine
from fastirv2.training.gate import Gate
from fastirv2.training.optim import OptimizerConfig, create_optimizer, set_rate

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
NAN, INF = float("nan"), float("inf")


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = ConvNorm(3, 8, 3)
        self.classifier = Classifier(8, 6)

    def forward(self, x):
        return self.classifier(self.conv(x).mean((2, 3)))


def converted(dtype, _device):
    return lambda images: images.to(dtype)


def make(amp, device="cpu", **options):
    torch.manual_seed(0)
    process = Process(rank=0, world=1, local_rank=0, local_world=1, device=torch.device(device))
    engine = Engine(Small(), process, amp=amp, accumulation=1, normalise=converted, **options)
    optimizer = create_optimizer(engine.model, OptimizerConfig())
    set_rate(optimizer, 0.1)
    return engine, optimizer


def batch(step, device="cpu", spoilt=None):
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(4, 3, 7, 7, generator=generator)
    if spoilt is not None:
        images[1, 2, 3, 3] = spoilt
    labels = torch.randint(6, (4,), generator=generator)
    return iter([(images.to(device).contiguous(memory_format=torch.channels_last), labels.to(device), 4)])


def state(engine, optimizer):
    """All that a step may change but the count of what was skipped, and the scale of fp16."""
    parts = engine.model.state_dict(), optimizer.state_dict(), engine.train_counts.sums
    return copy.deepcopy(parts)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("amp", ["fp32", "bf16", "fp16", "fp64"])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("spoilt", [NAN, INF])
def test_a_bad_step_leaves_every_tensor_as_it_was(amp, device, first, spoilt, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)  # two steps are compared to the bit
    engine, optimizer = make(amp, device)
    if not first:
        engine.step(batch(1, device), optimizer)
    before = state(engine, optimizer)
    engine.step(batch(2, device, spoilt), optimizer, number=2)
    torch.testing.assert_close(state(engine, optimizer), before, rtol=0, atol=0, equal_nan=False)
    assert engine.gate.take_skipped() == 1
    assert engine.gate.take_skipped() == 0
    assert engine.gate.own_bad_step() == 2

    engine.step(batch(3, device), optimizer)
    other, its_optimizer = make(amp, device)
    for step in (3,) if first else (1, 3):
        other.step(batch(step, device), its_optimizer)
    if amp != "fp16":  # whose scale is another one now
        torch.testing.assert_close(state(engine, optimizer), state(other, its_optimizer), rtol=0, atol=0)
    assert all(value.isfinite().all() for value in engine.model.state_dict().values())


def test_bad_steps_in_a_row_are_known_two_steps_later():
    engine, optimizer = make("fp32")
    seen = []
    for step, spoilt in enumerate([None, NAN, NAN, None, NAN, NAN, NAN, None, None, None], start=1):
        engine.step(batch(step, spoilt=spoilt), optimizer, number=step)
        seen.append(engine.gate.bad_in_a_row())
    assert seen == [0, 0, 0, 1, 2, 0, 1, 2, 3, 0]


def test_the_scale_of_fp16_halves_with_a_bad_step_and_doubles_after_2000_others():
    engine, optimizer = make("fp16")
    assert float(engine.gate.scale) == 2.0**16
    engine.step(batch(1, spoilt=INF), optimizer)
    assert float(engine.gate.scale) == 2.0**15
    engine.gate.load_state_dict(engine.gate.state_dict() | {"good": torch.tensor(1998)})
    scales = []
    for step in range(2, 5):
        engine.step(batch(step), optimizer)
        scales.append(float(engine.gate.scale))
    assert scales == [2.0**15, 2.0**16, 2.0**16]


def test_a_scale_that_overflows_is_found_by_itself():
    engine, optimizer = make("fp16")
    engine.gate.load_state_dict(engine.gate.state_dict() | {"scale": torch.tensor(2.0**30)})
    for step in range(30):
        engine.step(batch(step), optimizer)
    assert 1 <= engine.gate.take_skipped() <= 20
    assert engine.train_counts.take()[3] > 4 * 9


@pytest.mark.parametrize("amp", ["fp32", "fp16"])
@pytest.mark.parametrize("clip", [0.05, 100.0])
def test_a_gradient_is_clipped_as_torch_does(amp, clip):
    engine, optimizer = make(amp, clip=clip)
    other, its_optimizer = make("fp32")
    engine.step(batch(1), optimizer)
    images, labels, _ = next(batch(1))
    with other.autocast() if amp == "fp32" else torch.autocast("cpu", torch.float16):
        logits = other.model(images)
    nn.functional.cross_entropy(logits, labels).backward()
    norm = nn.utils.clip_grad_norm_(other.model.parameters(), clip)
    assert (norm > clip) == (clip < 1)
    its_optimizer.step()
    tolerance = 1e-6 if amp == "fp32" else 2e-3
    for ours, theirs in zip(engine.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_a_network_without_statistics_has_a_gate_too():
    model = nn.Linear(3, 2)
    gate = Gate(model, clip=0.0, scaled=False)
    optimizer = create_optimizer(model, OptimizerConfig())
    set_rate(optimizer, 0.1)
    gate.open()
    model(torch.full((1, 3), NAN)).sum().backward()
    before = model.weight.clone()
    assert gate.pass_through(optimizer) == 1
    assert torch.equal(model.weight, before)


def test_the_scale_counts_good_steps_in_a_row_and_has_a_bound():
    model = nn.Linear(3, 2)
    gate, optimizer = Gate(model, clip=0.0, scaled=True), create_optimizer(model, OptimizerConfig())
    set_rate(optimizer, 0.1)

    def step(gradient, **state):
        gate.load_state_dict(gate.state_dict() | {name: torch.tensor(value) for name, value in state.items()})
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        gate.pass_through(optimizer)
        return float(gate.scale), int(gate.state_dict()["good"])

    assert step(0.0, good=1999, scale=2.0**32) == (2.0**32, 2000)
    assert step(float("nan"), good=1998, scale=2.0**16) == (2.0**15, 0)
    assert step(0.0, good=199) == (2.0**15, 200)


def test_a_run_goes_on_in_another_precision_with_its_count_of_steps_left_out():
    plain, scaled = (Gate(nn.Linear(3, 2), clip=0.0, scaled=half) for half in (False, True))
    scaled.load_state_dict(plain.state_dict() | {"skipped": torch.tensor(3)})
    assert (float(scaled.scale), scaled.take_skipped()) == (2.0**16, 3)
    plain.load_state_dict(scaled.state_dict())
    assert plain.scale is None


def test_one_loss_of_a_batch_that_is_not_finite_is_noted_with_its_step():
    gate = Gate(nn.Linear(3, 2), clip=0.0, scaled=False)
    gate.watch(torch.tensor([1.0, NAN, 2.0]), 7)
    gate.watch(torch.ones(3), 8)
    assert gate.own_bad_step() == 7
