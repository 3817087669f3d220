"""The order of the records: exact, elastic, and the same whenever it is asked for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastirv2.data import sampler
from fastirv2.errors import UsageError

sizes = st.tuples(
    st.integers(1, 400),  # records
    st.integers(1, 12),  # images of a rank
    st.sampled_from([1, 2, 3, 4, 8]),  # ranks
    st.integers(0, 2**63),  # seed
)
blocks = st.one_of(st.just(1), st.integers(2, 50))


@settings(deadline=None, max_examples=100)
@given(sizes, blocks)
def test_each_record_comes_once_an_epoch_over_all_ranks(size, block):
    count, share, world, seed = size
    global_batch = share * world
    steps = -(-3 * count // global_batch)
    stream = np.concatenate(
        [
            sampler.batch(seed, step, count, global_batch, world, rank, block=block)
            for step in range(steps)
            for rank in range(world)
        ]
    )
    for epoch in range(3):
        assert np.array_equal(np.sort(stream[epoch * count : (epoch + 1) * count]), np.arange(count))


@settings(deadline=None, max_examples=100)
@given(sizes, st.integers(0, 10_000), blocks)
def test_a_global_batch_is_the_same_on_any_number_of_ranks(size, step, block):
    count, share, _, seed = size
    global_batch = share * 8
    whole = sampler.batch(seed, step, count, global_batch, 1, 0, block=block)
    for world in (2, 4, 8):
        parts = [sampler.batch(seed, step, count, global_batch, world, rank, block=block) for rank in range(world)]
        assert np.array_equal(np.concatenate(parts), whole)
        assert parts[0].dtype == np.int64


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 400), st.integers(1, 50), st.integers(0, 2**63))
def test_blocks_of_neighbours_stay_together_in_an_order_of_their_own(count, block, seed):
    order = sampler.batch(seed, 0, count, count, 1, 0, block=block)
    starts = order[order % block == 0]
    assert np.array_equal(np.sort(starts), np.arange(0, count, block))
    assert np.array_equal(np.concatenate([np.arange(start, min(start + block, count)) for start in starts]), order)


def test_a_batch_does_not_depend_on_what_was_asked_before():
    wanted = [sampler.batch(1, step, 97, 16, 1, 0).tolist() for step in range(40)]
    again = [sampler.batch(1, step, 97, 16, 1, 0).tolist() for step in reversed(range(40))]
    assert again[::-1] == wanted


def test_the_order_of_a_seed_never_changes():
    """A run resumed with a later release must see the same order: these values are frozen."""
    assert sampler.batch(0, 0, 10, 10, 1, 0).tolist() == [7, 6, 2, 1, 5, 3, 8, 0, 4, 9]
    assert sampler.batch(0, 1, 10, 10, 1, 0, block=4).tolist() == [4, 5, 6, 7, 0, 1, 2, 3, 8, 9]


def test_every_epoch_and_every_seed_has_an_order_of_its_own():
    epochs = [sampler.batch(0, step, 1000, 1000, 1, 0) for step in range(4)] + [sampler.batch(1, 0, 1000, 1000, 1, 0)]
    ranks = np.abs(np.corrcoef(epochs) - np.eye(5))
    assert ranks.max() < 0.12


def test_a_permutation_is_made_once_an_epoch(monkeypatch):
    made = []
    original = sampler.counter.permutation

    def counted(seed, epoch, count):
        made.append(epoch)
        return original(seed, epoch, count)

    monkeypatch.setattr(sampler.counter, "permutation", counted)
    fresh = sampler._Permutations()
    monkeypatch.setattr(sampler, "_permutations", fresh)
    for step in range(300):
        sampler.batch(3, step, 1000, 10, 1, 0)
    fresh._worker.shutdown()
    assert made == [0, 1, 2, 3]  # the fourth one was made ahead


@pytest.mark.parametrize("wrong", [(0, 8, 1, 0), (10, 9, 2, 0), (10, 8, 2, 2), (10, 8, 0, 0)])
def test_ranks_that_do_not_divide_the_batch_are_refused(wrong):
    with pytest.raises(ValueError, match="no batch of"):
        sampler.batch(0, 0, *wrong)


@pytest.mark.parametrize("block", [-1, 0, (1 << 20) + 1])
def test_a_block_of_no_records_or_too_many_is_refused(block):
    with pytest.raises(UsageError, match=rf"--data.block {block} must lie between 1 and 1,048,576"):
        sampler.DataConfig(block=block)


@given(st.integers(1, 300), st.integers(1, 20), st.integers(1, 8))
def test_validation_takes_each_record_once_in_order_in_batches_of_one_shape(count, batch, world):
    seen = []
    for step in range(sampler.steps_in_validation(count, batch, world)):
        for rank in range(world):
            numbers, valid = sampler.validation_batch(step, count, batch, world, rank)
            assert numbers.shape == (batch,)
            assert numbers.max() < count
            seen += numbers[:valid].tolist()
    assert seen == list(range(count))
