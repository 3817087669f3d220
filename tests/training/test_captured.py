"""A step whose inputs are copied to fixed places: by a stand-in that does the work anew where a GPU would replay it."""

import pytest
import torch

from fastirv2.errors import UsageError
from fastirv2.training import engine as engines
from fastirv2.training.captured import CapturedStep, check_capture, check_graphs
from fastirv2.training.ema import EmaConfig
from fastirv2.training.engine import Engine
from fastirv2.training.optim import OptimizerConfig, create_optimizer, set_rate
from fastirv2.training.pixels import unit
from fastirv2.training.plan import Plan
from tests.training.reduced import ALONE, CPU, batch, reduced


class Again:
    """Does on replay what it was given to capture, as a CUDA graph does, on whatever then lies in the tensors."""

    made = 0

    def __init__(self):
        type(self).made += 1

    def warm_up(self, work):
        work()

    def capture(self, work):
        self._work = work

    def replay(self):
        self._work()


def train(capture, device=CPU, amp="fp32", steps=6):
    process = ALONE if device == CPU else type(ALONE)(0, 1, 0, 1, device)
    options = {"accumulation": 1, "normalise": unit, "ema": EmaConfig(decay=0.9), "clip": 1.0, "capture": capture}
    engine = Engine(reduced(), process, amp=amp, **options)
    optimizer = create_optimizer(engine.model, OptimizerConfig())
    for step in range(1, steps + 1):
        set_rate(optimizer, step / 128)  # exact in float32, in which a captured step has it
        images, labels, count = batch(step, 75 if step < 6 else 83)
        engine.step(iter([(images.to(device), labels.to(device), count)]), optimizer, number=step, draw=step)
    return engine, optimizer


def test_replayed_steps_are_the_steps(monkeypatch):
    """With another rate, other images and other masks in each, and another size in the last."""
    monkeypatch.setattr(engines, "CapturedStep", lambda work: CapturedStep(work, Again))
    Again.made = 0
    (plain, _), (captured, optimizer) = train(capture=False), train(capture=True)
    assert Again.made == 2
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(captured.model.state_dict()[name], value, rtol=1e-5, atol=1e-6, msg=name)
    assert torch.equal(plain.train_counts.take()[1:], captured.train_counts.take()[1:])
    assert captured.gate.bad_in_a_row() == 0
    optimizer.load_state_dict(optimizer.state_dict())
    assert isinstance(optimizer.param_groups[0]["lr"], float)


@pytest.mark.parametrize(("world", "passes"), [(2, 1), (1, 2)])
def test_what_cannot_be_captured_is_refused(world, passes):
    plan = Plan(8, world, 4, passes, 1, 1, 100, 1)
    with pytest.raises(UsageError, match=rf"for one GPU and one pass a step; here are {world} × {passes}"):
        check_capture(plan)


def test_graphs_are_recorded_on_a_gpu_alone():
    check_graphs(torch.device("cuda", 0))
    with pytest.raises(UsageError, match="needs an NVIDIA GPU"):
        check_graphs(CPU)


@pytest.mark.gpu
def test_a_captured_step_on_a_gpu_is_the_step():
    device = torch.device("cuda", 0)
    # in float64, and of four images: of two the last maps give normalisation two values, which make 1 of a rounding of 1e-16
    plain, captured = (train(capture=capture, device=device, amp="fp64")[0] for capture in (False, True))
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(captured.model.state_dict()[name], value, rtol=1e-3, atol=1e-4, msg=name)
    assert captured.train_counts.take()[3] == 24


def test_a_recorded_step_is_given_its_number():
    seen, none = [], torch.zeros(1, dtype=torch.int64)
    step = CapturedStep(lambda images, labels, keys, number: seen.append(int(number)), Again)
    for number in range(1, 7):
        step.step(torch.zeros(1, 3, 2, 2), none, none, number)
    assert seen == [1, 2, 3, 4, 5, 6]
