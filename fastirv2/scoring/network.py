"""A trained network at work: on its device, in its precision, from pixels to the logarithms of probabilities."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from fastirv2.errors import is_out_of_memory, out_of_memory
from fastirv2.trained import Trained
from fastirv2.training.engine import HALF
from fastirv2.training.pixels import NORMALISE
from fastirv2.training.plan import Amp


class Network:
    """Maps images to log-probabilities, and keeps the `features` of the last ones: float32 (B, 2048), of slim (B, 1536).

    It takes the model of `trained` over, onto the device and channels last.
    """

    def __init__(self, trained: Trained, device: torch.device, amp: Amp) -> None:
        self.device = device
        self.amp = amp
        self._dtype = torch.float64 if amp == "fp64" else torch.float32
        self._model = trained.model.to(device, self._dtype, memory_format=torch.channels_last).eval()
        self._normalise = NORMALISE[trained.input.normalise](self._dtype, device)
        self.features = torch.empty(0, device=device)
        self._model.pool.register_forward_hook(self._keep)

    def _keep(self, _: nn.Module, inputs: tuple[torch.Tensor], __: torch.Tensor) -> None:
        self.features = inputs[0].float().mean((2, 3))  # finer than the mean that a half precision has

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return log-probabilities, float64 (B, classes), of images (B, 3, H, W) in 0 … 255.

        In float64 whatever the precision of the network: its logits keep their order, and none comes to tie with another.
        """
        with torch.autocast(self.device.type, HALF.get(self.amp), enabled=self.amp in HALF):
            logits = self._model(self._normalise(images))
        return logits.double().log_softmax(1)


@contextlib.contextmanager
def enough_memory() -> Iterator[None]:
    """Have a GPU whose memory does not suffice end the command with a sentence."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise out_of_memory(error, "--batch") from error
        raise
