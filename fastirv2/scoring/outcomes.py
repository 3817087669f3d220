"""What a network makes of every record of a validation set: softmax averaged over crops, divided among ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from fastirv2.data.dataset import Records
from fastirv2.data.faults import OnBad
from fastirv2.data.loader import Loader
from fastirv2.data.sampler import validation_batch
from fastirv2.data.samples import ValidationOrder
from fastirv2.data.views import protocol as protocol_of
from fastirv2.scoring.network import Network
from fastirv2.scoring.protocol import Protocol
from fastirv2.training.distributed import Process, sum_over_ranks, together


class Scored(NamedTuple):
    """Some records of one rank: their numbers, int64 (n,), and the logarithms of their probabilities, float64 (n, classes)."""

    numbers: np.ndarray
    scores: torch.Tensor


class Outcomes(NamedTuple):
    """What became of each of N records, in their order.

    `place` int64 (N,): how many classes that are not right are not below the best right one: 0 is right at once; ties are
    errors. `predicted` int64 and `confidence` float64: the best class and its probability. `loss` float64: the negative
    logarithm of its own label's probability. `known` bool: False for records that could not be decoded and were skipped.
    """

    place: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    loss: np.ndarray
    known: np.ndarray


def score(
    network: Network, loader: Loader, order: ValidationOrder, count: int, process: Process, batch: int
) -> Iterator[Scored]:
    """Yield this rank's records of one validation over `count`, `batch` at a time, their softmax averaged over all crops.

    Raises:
        DataError: a record cannot be decoded, and the loader does not skip such.
    """
    for step in range(order.steps):
        total = None
        for _ in range(order.passes):
            images, _, _ = next(loader)
            if loader.faults.error:
                raise loader.faults.error
            each = network(images).unflatten(0, (-1, order.views)).logsumexp(1)
            total = each if total is None else torch.logaddexp(total, each)
        numbers, valid = validation_batch(step, count, batch, process.world, process.rank)
        known = numbers[:valid][~np.isin(numbers[:valid], list(loader.faults.bad))]
        yield Scored(known, total[: len(known)] - math.log(order.views * order.passes))


@torch.no_grad()
def outcomes_of(
    network: Network,
    records: Records,
    labels: np.ndarray,
    right: np.ndarray,
    protocol: Protocol,
    process: Process,
    *,
    batch: int,
    on_bad: OnBad = "stop",
    advance: Callable[[int], None] = lambda images: None,
) -> tuple[Outcomes, list[str]]:
    """Score all records on all ranks; every rank calls this and gets the same outcomes.

    Args:
        network: what is scored.
        records: the validation set.
        labels: int64 (N,), each record's own label.
        right: int64 (N, K), the labels that count as right; a record with fewer than K repeats one.
        protocol: what is shown of each image.
        process: this rank.
        batch: images that the network sees at once, at least one record's views.
        on_bad: "stop" or "skip" records that cannot be decoded.
        advance: told how many records have been done by this rank.

    Returns:
        the outcomes, and a sentence for each record that this rank skipped.

    Raises:
        DataError: a record of any rank cannot be decoded, and such are not skipped; on all ranks.
    """
    rows = min(max(1, batch // protocol_of(protocol.crops)[0]), len(records))
    order = ValidationOrder(records, protocol.input, batch=rows, world=process.world, rank=process.rank, crops=protocol.crops)
    loader = Loader(records, order, protocol.input, batch=rows, device=network.device, cpus=process.cpus, on_bad=on_bad)
    all_own, all_right = (torch.from_numpy(each).to(network.device) for each in (labels, right))
    table = torch.zeros(len(Outcomes._fields), len(records), dtype=torch.float64, device=network.device)

    def fill() -> list[str]:
        for numbers, scores in score(network, loader, order, len(records), process, rows):
            where = _sent(numbers, network.device)
            table[:, where] = _outcomes(scores, all_own[where], all_right[where])
            advance(len(numbers))
        return loader.faults.untold()

    try:
        skipped = together(fill)  # a rank that meets a bad record ends all, once the others are done
    finally:
        loader.close()
    place, predicted, confidence, loss, known = sum_over_ranks(table).cpu().numpy()  # each record is one rank's: sums are exact
    return Outcomes(place.astype(int), predicted.astype(int), confidence, loss, known > 0), skipped


def _sent(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return an array as a tensor on the device, for which the host does not wait."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _outcomes(scores: torch.Tensor, own: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return float64 (5, n): the columns of `Outcomes` for scores (n, classes), labels (n,) and right labels (n, K)."""
    valid = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, right, True)
    best = scores.masked_fill(~valid, -math.inf).amax(1, keepdim=True)
    place = (~(scores < best) & ~valid).sum(1).masked_fill(best[:, 0].isnan(), max(scores.shape[1], 5))
    confidence, predicted = scores.max(1)
    loss = -scores.gather(1, own[:, None])[:, 0]
    columns = [place, predicted, confidence.exp(), loss, torch.ones_like(loss)]
    return torch.stack([column.double() for column in columns])
