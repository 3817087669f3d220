"""A step asks the device for no number: on a GPU the host would wait for it."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastirv2.training.ema import EmaConfig
from fastirv2.training.engine import Engine
from fastirv2.training.optim import OptimizerConfig, create_optimizer, set_rate
from fastirv2.training.pixels import unit
from tests.training.reduced import ALONE, batch, reduced

aten = torch.ops.aten
ASKING = {aten._local_scalar_dense, aten.nonzero, aten.is_nonzero, aten.item, aten.equal, aten.masked_select, aten._unique2}


class NothingIsAsked(TorchDispatchMode):
    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        assert operation.overloadpacket not in ASKING, f"{operation} brings a number to the host"
        return operation(*args, **(kwargs or {}))


def test_no_number_comes_to_the_host_within_a_step():
    for kind in ("sgd", "rmsprop", "lamb"):
        engine = Engine(reduced(), ALONE, amp="bf16", accumulation=2, normalise=unit, clip=1.0, ema=EmaConfig(decay=0.9))
        optimizer = create_optimizer(engine.model, OptimizerConfig(kind=kind))
        set_rate(optimizer, 0.01)
        with NothingIsAsked():
            engine.step(iter([batch(1, images=2), batch(2, images=2)]), optimizer, number=1, draw=1, watch=True)
        assert engine.train_counts.take()[3] == 4
