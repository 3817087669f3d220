"""Counts and passes of a step."""

import os

import pytest
import torch
from torch import nn

from fastirv2.errors import UsageError
from fastirv2.models.layers import GlobalPool
from fastirv2.models.norm import BatchNorm2d, Statistics, share_statistics
from fastirv2.scoring.outcomes import _outcomes
from fastirv2.training.distributed import Process
from fastirv2.training.ema import EmaConfig
from fastirv2.training.engine import Counts, Engine, choose_precision

CPU = torch.device("cpu")
ALONE = Process(rank=0, world=1, local_rank=0, local_world=1, device=CPU)


def test_counts_are_those_of_topk():
    torch.manual_seed(0)
    logits, labels = torch.randn(500, 20), torch.randint(20, (500,))
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    counts = Counts(CPU)
    counts.add(logits, labels, losses)
    right = logits.topk(5).indices == labels[:, None]
    loss, top1, top5, images = counts.take().tolist()
    assert (top1, top5, images) == (int(right[:, 0].sum()), int(right.sum()), 500)
    assert loss == pytest.approx(losses.double().sum().item())
    assert counts.take().tolist() == [0, 0, 0, 0]


def test_ties_and_nan_are_errors_and_padding_does_not_count():
    logits = torch.tensor([[1.0, 1, 0, 0, 0, 0], [float("nan")] * 6, [2, 1, 0, 0, 0, 0], [2, 1, 0, 0, 0, 0]])
    counts = Counts(CPU)
    counts.add(logits, torch.zeros(4, dtype=torch.int64), torch.ones(4), torch.tensor([True, True, True, False]))
    assert counts.take().tolist() == [3, 1, 2, 3]


@pytest.mark.parametrize("classes", [3, 5, 6])
def test_nan_is_no_class_among_the_first_however_few_there_are(classes):
    logits, labels = torch.full((2, classes), float("nan")), torch.zeros(2, dtype=torch.int64)
    counts = Counts(CPU)
    counts.add(logits, labels, torch.ones(2))
    assert counts.take().tolist() == [2, 0, 0, 2]
    assert (_outcomes(logits, labels, labels[:, None])[0] >= 5).all()


def test_a_padded_loss_that_is_no_number_does_not_spread():
    counts = Counts(CPU)
    counts.add(torch.eye(6)[:2], torch.tensor([0, 1]), torch.tensor([0.5, float("nan")]), torch.tensor([True, False]))
    assert counts.take().tolist() == [0.5, 1, 1, 1]


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(12, 6)

    def forward(self, x):
        return self.linear(x.flatten(1))


def batches(parts):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (8, 3, 2, 2), generator=generator, dtype=torch.uint8)
    labels = torch.randint(6, (8,), generator=generator)
    pairs = zip(images.chunk(parts), labels.chunk(parts), strict=True)
    return iter([(some, theirs, len(theirs)) for some, theirs in pairs])


def scaled(dtype, _device):
    return lambda images: images.to(dtype) / 255


def test_passes_that_accumulate_are_one_step_over_the_whole_batch():
    weights = []
    for parts in (1, 2, 4):
        torch.manual_seed(0)
        engine = Engine(Tiny(), ALONE, amp="fp64", accumulation=parts, normalise=scaled)
        engine.step(batches(parts), torch.optim.SGD(engine.model.parameters(), lr=0.5, fused=True))
        weights.append(engine.model.linear.weight.detach())
        assert engine.train_counts.take()[3] == 8
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], rtol=1e-12, atol=1e-12)


def test_passes_move_running_statistics_as_one_pass_in_parts_does():
    left = []
    for passes, splits in ((1, 4), (2, 2), (4, 1)):
        torch.manual_seed(0)
        model = nn.Sequential(BatchNorm2d(3), Tiny())
        share_statistics(model, Statistics(splits=splits))
        engine = Engine(model, ALONE, amp="fp64", accumulation=passes, normalise=scaled, ema=EmaConfig(decay=0.9))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, fused=True)
        for _ in range(3):
            engine.step(batches(passes), optimizer)
        left.append([*model.state_dict().values(), *engine.ema.averages])
    assert not torch.equal(left[0][2], torch.zeros(3))
    for other in left[1:]:
        torch.testing.assert_close(other, left[0], rtol=1e-12, atol=1e-12)


def test_labels_are_smoothed_in_training_alone():
    images, labels, _ = batch = next(batches(1))
    torch.manual_seed(0)
    engine = Engine(Tiny(), ALONE, amp="fp64", accumulation=1, normalise=scaled, label_smoothing=0.1)
    logs = engine.model(images).log_softmax(1)
    plain = -logs.gather(1, labels[:, None])[:, 0]
    smoothed = 0.9 * plain + 0.1 * -logs.mean(1)  # Szegedy et al. 2015, section 7: (1 - ε) on the label, ε / classes on each
    assert engine.validate(iter([batch]), 1, lambda: False)[0][0] == pytest.approx(plain.sum().item(), rel=1e-12)

    gradient = torch.autograd.grad(smoothed.mean(), engine.model.linear.weight)[0]
    before = engine.model.linear.weight.detach().clone()
    engine.step(iter([batch]), torch.optim.SGD(engine.model.parameters(), lr=1.0, fused=True))
    assert engine.train_counts.take()[0] == pytest.approx(smoothed.sum().item(), rel=1e-12)
    torch.testing.assert_close(before - engine.model.linear.weight, gradient, rtol=1e-10, atol=1e-12)


def test_validation_leaves_the_network_in_training_and_its_weights_alone():
    engine = Engine(Tiny(), ALONE, amp="fp32", accumulation=1, normalise=scaled)
    before = engine.model.linear.weight.clone()
    images, labels, _ = next(batches(1))
    sums = engine.validate(iter([(images, labels, 8), (images, labels, 3), (images, labels, 0)]), 3, lambda: False)
    assert sums[0][3] == 11
    assert len(sums) == 1
    assert engine.model.training
    assert torch.equal(engine.model.linear.weight, before)


def test_weights_and_their_averages_are_validated_on_the_same_images():
    torch.manual_seed(0)
    engine = Engine(Tiny(), ALONE, amp="fp64", accumulation=1, normalise=scaled, ema=EmaConfig(decay=0.9))
    for _ in range(3):
        engine.step(batches(1), torch.optim.SGD(engine.model.parameters(), lr=0.5, fused=True))
    before = {name: value.clone() for name, value in engine.model.state_dict().items()}
    raw, averaged = engine.validate(batches(2), 2, lambda: False)
    assert raw[3] == averaged[3] == 8
    for sums, weights in ((raw, before), (averaged, engine.ema.state_dict()["weights"])):
        other = Engine(Tiny(), ALONE, amp="fp64", accumulation=1, normalise=scaled)
        other.model.load_state_dict(weights)
        assert torch.equal(other.validate(batches(2), 2, lambda: False)[0], sums)
    assert raw[0] != averaged[0]
    assert all(torch.equal(value, before[name]) for name, value in engine.model.state_dict().items())


def test_validation_ends_when_it_is_told_to():
    engine = Engine(Tiny(), ALONE, amp="fp32", accumulation=1, normalise=scaled)
    answers = iter([False, True])
    images, labels, _ = next(batches(1))
    seen = iter([(images, labels, 8)] * 3)
    assert engine.validate(seen, 3, lambda: next(answers)) is None
    assert len(list(seen)) == 2
    assert engine.model.training


def test_weights_are_finite_or_not():
    engine = Engine(Tiny(), ALONE, amp="fp32", accumulation=1, normalise=scaled)
    assert engine.weights_are_finite()
    with torch.no_grad():
        engine.model.linear.bias[3] = float("nan")
    assert not engine.weights_are_finite()


def test_precision_is_chosen_for_the_device():
    assert choose_precision("fp64", CPU) == "fp64"
    assert choose_precision("auto", CPU) in ("bf16", "fp32")
    with pytest.raises(UsageError, match="tf32 needs an NVIDIA GPU"):
        choose_precision("tf32", CPU)


def test_deterministic_algorithms_are_asked_for_only_where_that_changes_something(monkeypatch):
    """torch imports its compiler to be asked, which takes two seconds of every process."""
    asked = []
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", asked.append)
    choose_precision("fp32", CPU)
    choose_precision("fp32", CPU, deterministic=True)
    assert asked == [True]
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    choose_precision("fp32", CPU)
    assert asked == [True, False]


@pytest.mark.parametrize("amp", ["bf16", "tf32"])
def test_a_gpu_that_does_not_compute_in_a_precision_is_refused(amp, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    with pytest.raises(UsageError, match=f"--train.amp {amp} needs a GPU since Ampere; here use fp16 or fp32"):
        choose_precision(amp, torch.device("cuda"))


def test_statistics_are_taken_anew_as_means_over_batches():
    torch.manual_seed(0)
    ema = EmaConfig(decay=0.9)
    engine = Engine(nn.Sequential(BatchNorm2d(3)), ALONE, amp="fp64", accumulation=1, normalise=scaled, ema=ema)
    parts = [scaled(torch.float64, CPU)(images) for images, _, _ in batches(2)]
    engine.recalibrate(batches(2), 2, lambda: False)
    norm = engine.model[0]
    torch.testing.assert_close(norm.running_mean, torch.stack([part.mean((0, 2, 3)) for part in parts]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([part.var((0, 2, 3)) for part in parts]).mean(0))
    torch.testing.assert_close(engine.ema.state_dict()["weights"]["0.running_var"], norm.running_var)
    assert norm.momentum == 0.1
    told = iter([False, True])
    engine.recalibrate(batches(2), 2, lambda: next(told))
    torch.testing.assert_close(norm.running_mean, parts[0].mean((0, 2, 3)))
    assert norm.momentum == 0.1


class Pooled(nn.Module):
    """Half of what is before the pool is zero, as after a ReLU."""

    def __init__(self):
        super().__init__()
        self.pool = GlobalPool()
        self.linear = nn.Linear(3, 6)

    def forward(self, x):
        return self.linear(self.pool(x * torch.tensor([[1.0, 0.0], [0.0, 1.0]])))


def test_the_share_of_zeros_before_the_pool_is_known_of_steps_that_are_watched():
    engine = Engine(Pooled(), ALONE, amp="fp32", accumulation=1, normalise=lambda dtype, _: lambda images: images.to(dtype) + 1)
    optimizer = torch.optim.SGD(engine.model.parameters(), lr=0.5, fused=True)
    engine.step(batches(1), optimizer)
    assert engine.zero_share() is None
    engine.step(batches(1), optimizer, watch=True)
    assert engine.zero_share() == 0.5
    engine.model.eval()
    engine.model(torch.zeros(1, 3, 2, 2))
    assert engine.zero_share() == 0.5


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"compile": "regional"}, {"recompute": 3}], ids=["eager", "compiled", "recomputed"])
def test_a_step_on_a_gpu_never_waits_for_it(options, monkeypatch):
    from fastirv2 import models
    from fastirv2.training.optim import OptimizerConfig, create_optimizer

    # compiling sets it, and later tests are not to find it
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", str(len(os.sched_getaffinity(0))))
    device = torch.device("cuda", 0)
    process = Process(rank=0, world=1, local_rank=0, local_world=1, device=device)
    plain = {"amp": "bf16", "accumulation": 1, "normalise": scaled, "clip": 1.0, "ema": EmaConfig(decay=0.9)}
    engine = Engine(models.create("paper", 16), process, **plain, **options)
    optimizer = create_optimizer(engine.model, OptimizerConfig())
    images = torch.randint(0, 256, (4, 3, 96, 96), dtype=torch.uint8, device=device)
    batch = (images.contiguous(memory_format=torch.channels_last), torch.zeros(4, dtype=torch.int64, device=device), 4)
    for _ in range(3):
        engine.step(iter([batch]), optimizer)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            engine.step(iter([batch]), optimizer)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert engine.train_counts.take()[3] == 24


@pytest.mark.parametrize("amp", ["fp32", "bf16", "fp64"])
def test_tf32_is_on_in_no_other_precision(amp):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    choose_precision(amp, CPU)
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
