"""The running average of the weights, against its formula."""

import numpy as np
import pytest
import torch
from torch import nn

from fastirv2.errors import StoppedError, UsageError
from fastirv2.models.layers import ConvNorm
from fastirv2.training.ema import Ema, EmaConfig, describe_averaging, for_run

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
NAN = float("nan")


def network(device="cpu", dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(ConvNorm(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    return model.to(device, dtype, memory_format=torch.channels_last)


def values(model):
    """All that is averaged, by name."""
    return {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("num_batches_tracked")}


def copies(tensors):
    return {name: tensor.clone() for name, tensor in tensors.items()}


def same(some, others):
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)


def move(model, rng):
    """Give every weight and statistic another value, as a step does."""
    for tensor in values(model).values():
        tensor.copy_(torch.from_numpy(rng.standard_normal(tensor.shape)))


def flag(value, device="cpu"):
    return torch.tensor(float(value), device=device)


@pytest.mark.parametrize("device", DEVICES)
def test_averages_are_those_of_the_formula(device):
    """The 31st step does not count: weights and statistics are no numbers then."""
    model, rng = network(device), np.random.default_rng(1)
    ema = Ema(model, EmaConfig(decay=0.9))
    expected = {name: tensor.cpu().numpy().copy() for name, tensor in values(model).items()}
    t = 0
    for step in range(1, 102):
        move(model, rng)
        if step == 31:
            for tensor in values(model).values():
                tensor.fill_(NAN)
        else:
            t += 1
            share = 1 - min(0.9, (1 + t) / (10 + t))
            share = share if device == "cpu" else float(np.float32(share))  # as a GPU's kernel takes it
            expected = {k: (1 - share) * expected[k] + share * tensor.cpu().numpy() for k, tensor in values(model).items()}
        ema.update(flag(step == 31, device))
    assert t == 100
    state = ema.state_dict()
    assert state["updates"] == 100
    for name, average in expected.items():
        np.testing.assert_allclose(state["weights"][name].cpu().numpy(), average, rtol=0, atol=1e-9)


def test_the_first_step_nearly_forgets_the_beginning():
    model = network()
    ema, before = Ema(model, EmaConfig(decay=0.9999)), copies(values(model))
    move(model, np.random.default_rng(0))
    ema.update()
    for name, tensor in values(model).items():
        torch.testing.assert_close(ema.state_dict()["weights"][name], 2 / 11 * before[name] + 9 / 11 * tensor)


@pytest.mark.parametrize("device", DEVICES)
def test_exchange_moves_values_and_leaves_tensors_where_they_are(device):
    model = network(device, torch.float32)
    ema = Ema(model, EmaConfig(decay=0.5))
    move(model, np.random.default_rng(0))
    ema.update()
    own, averages = copies(values(model)), copies({name: ema.state_dict()["weights"][name] for name in values(model)})
    addresses = {name: tensor.data_ptr() for name, tensor in values(model).items()}
    assert not same(own, averages)
    with torch.inference_mode():
        ema.exchange()
        assert same(values(model), averages)
        ema.exchange()
    assert same(values(model), own)
    assert same({name: ema.state_dict()["weights"][name] for name in own}, averages)
    assert {name: tensor.data_ptr() for name, tensor in values(model).items()} == addresses
    model(torch.randn(2, 3, 3, 3, device=device)).sum().backward()


def test_the_models_own_weights_come_back_where_what_is_done_with_the_averages_fails():
    model = network()
    ema = Ema(model, EmaConfig(decay=0.5))
    move(model, np.random.default_rng(0))
    own = copies(values(model))
    with pytest.raises(StoppedError), ema.in_place():
        raise StoppedError("stopped by SIGTERM")
    assert same(values(model), own)
    ema.update()


@pytest.mark.parametrize("use", [Ema.update, Ema.state_dict])
def test_averages_are_not_mistaken_for_weights(use):
    ema = Ema(network(), EmaConfig(decay=0.5))
    ema.exchange()
    with pytest.raises(RuntimeError, match="holds the averages"):
        use(ema)
    ema.exchange()
    use(ema)


def test_one_that_was_stored_goes_on_to_the_bit(tmp_path):
    model, rng = network(dtype=torch.float32), np.random.default_rng(0)
    ema = Ema(model, EmaConfig(decay=0.99))
    for _ in range(3):
        move(model, rng)
        ema.update()
    torch.save(ema.state_dict(), tmp_path / "ema.pt")
    other = network(dtype=torch.float32, seed=5)
    again = Ema(other, EmaConfig(decay=0.99))
    again.load_state_dict(torch.load(tmp_path / "ema.pt", weights_only=True))
    move(model, rng)
    other.load_state_dict(model.state_dict())
    for one in (ema, again):
        one.update()
    assert again.state_dict()["updates"] == 4
    assert same(ema.state_dict()["weights"], again.state_dict()["weights"])


def test_a_model_loads_what_is_stored():
    model = network()
    ema = Ema(model, EmaConfig(decay=0.5))
    move(model, np.random.default_rng(0))
    ema.update()
    other = network(seed=1)
    other.load_state_dict(ema.state_dict()["weights"], strict=True)
    ema.exchange()
    assert same(values(other), values(model))


def test_precisions_that_would_round_the_weights_are_refused():
    with pytest.raises(TypeError, match="float32 and float64"):
        Ema(network(dtype=torch.bfloat16), EmaConfig(decay=0.5))


@pytest.mark.gpu
def test_an_update_and_an_exchange_never_wait_for_the_gpu():
    ema = Ema(network("cuda", torch.float32), EmaConfig(decay=0.5))
    found_inf = flag(0, "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        ema.update(found_inf)
        ema.exchange()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_four_times_the_batch_forgets_in_a_step_what_four_steps_forgot():
    small = EmaConfig(decay=0.9)
    large = for_run(small, global_batch=256, batch=64)
    averages = []
    for config, steps in ((small, 4), (large, 1)):
        model = network()
        ema = Ema(model, config)
        ema.updates.fill_(1000)  # beyond the first steps, which keep less
        move(model, np.random.default_rng(0))
        for _ in range(steps):
            ema.update()
        averages.append(ema.state_dict()["weights"])
    for name, average in averages[0].items():
        torch.testing.assert_close(averages[1][name], average, rtol=1e-12, atol=1e-12)


def test_a_run_can_say_how_its_batch_changes_the_decay():
    said = describe_averaging(EmaConfig(decay=0.9999), global_batch=512, batch=640)
    assert said == "weights averaged with decay 0.99992 a step instead of 0.9999: over as many images as the recipe does"
    for unchanged in ({"decay": 0.9999, "scaling": "none"}, {}):
        config = EmaConfig(**unchanged)
        assert describe_averaging(config, global_batch=512, batch=640) == ""
        assert for_run(config, global_batch=512, batch=640) == config
    assert describe_averaging(EmaConfig(decay=0.9999), global_batch=640, batch=640) == ""


@pytest.mark.parametrize("wrong", [1.0, -0.1, NAN])
def test_decays_out_of_bounds_are_refused(wrong):
    with pytest.raises(UsageError, match="ema: decay"):
        EmaConfig(decay=wrong)
