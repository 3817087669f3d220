"""Dropout's mask is a function of the sample: the same whoever has it, and a different one for every other."""

import numpy as np
import pytest
import torch

from fastirv2.data import counter
from fastirv2.models.dropout import Dropout, sample_keys

CPU = torch.device("cpu")


def kept(keys, features=1536, p=0.2):
    dropout = Dropout(p)
    dropout.keys = keys
    y = dropout(torch.ones(len(keys), features))
    assert set(y.unique().tolist()) <= {0.0, float(torch.tensor(1.0) / (1 - p))}
    return y != 0


@pytest.mark.parametrize("base", [7, (1 << 64) - 3])
def test_a_part_of_a_batch_is_masked_as_it_is_in_the_whole(base):
    whole = kept(sample_keys(base, 0, 16, CPU))
    assert torch.equal(kept(sample_keys(base, 4, 8, CPU)), whole[4:12])


@pytest.mark.parametrize("base", [12345, 1 << 63, (1 << 64) - 3])
def test_the_mask_is_splitmix64s(base):
    keys = sample_keys(base, 3, 5, CPU)
    with np.errstate(over="ignore"):
        golden = np.uint64(0x9E3779B97F4A7C15)
        ours = counter.mix(np.arange(3, 8, dtype=np.uint64) * golden + np.uint64(base))
        draws = counter.mix(ours[:, None] + np.arange(1, 101, dtype=np.uint64) * golden) >> np.uint64(40)
    assert np.array_equal(keys.numpy().view(np.uint64), ours)
    assert np.array_equal(kept(keys, 100).numpy(), draws >= round(0.2 * 2**24))


def test_the_share_of_what_is_dropped_is_p_for_samples_and_for_features():
    masks = kept(sample_keys(1, 0, 4000, CPU), 200, 0.3).double()
    assert abs(masks.mean() - 0.7) < 0.002
    assert (masks.mean(0) - 0.7).abs().max() < 5 * (0.21 / 4000) ** 0.5
    assert (masks.mean(1) - 0.7).abs().max() < 5 * (0.21 / 200) ** 0.5
    assert (np.corrcoef(masks[:, :40].numpy().T) - np.eye(40)).max() < 0.09


def test_gradients_pass_where_values_do():
    dropout = Dropout(0.5)
    dropout.keys = sample_keys(5, 0, 4, CPU)
    x = torch.ones(4, 50, requires_grad=True)
    y = dropout(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_without_keys_torch_draws_and_in_evaluation_nothing_is_dropped():
    dropout = Dropout(0.5)
    x = torch.ones(3, 64)
    torch.manual_seed(0)
    y = dropout(x)
    torch.manual_seed(0)
    assert torch.equal(y, torch.nn.functional.dropout(x, 0.5))
    dropout.keys = sample_keys(5, 0, 3, CPU)
    assert torch.equal(dropout.eval()(x), x)


@pytest.mark.gpu
def test_a_gpus_compiled_mask_is_the_cpus():
    keys, dropout = sample_keys(7, 0, 4, CPU), Dropout(0.2)
    dropout.keys = keys.cuda()
    masked = torch.compile(dropout, fullgraph=True)(torch.ones(4, 1536, device="cuda"))
    assert torch.equal(masked.cpu() != 0, kept(keys))
