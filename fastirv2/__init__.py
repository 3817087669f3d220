"""fastirv2: Inception-ResNet-v2 trained on ImageNet in hours."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__version__ = "0.1.0"

_program = os.path.basename(sys.argv[0]) if sys.argv else ""
if (_program == "-m" or _program.startswith("fastirv2-")) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Ctrl-C while torch is imported: the end, and no traceback out of the midst of it; `errors.run_command` goes on from here
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def load(path: str | os.PathLike[str], arch: str | None = None, weights: str = "auto") -> nn.Module:
    """Open a trained network, ready for use.

    Args:
        path: a run folder (its best), a checkpoint of ours, a safetensors file, or for the slim network a file of timm's,
            Cadene's or Keras'.
        arch: "paper" or "slim", for a file that does not say it; None: as its tensors are named.
        weights: a checkpoint's own ("raw") or their running averages ("ema"); "auto": those that its run was validated with.

    Returns:
        the network in evaluation mode, float32, on the CPU. Beside what every module has: `.preprocess` makes float32
        (N, 3, crop, crop) of images, given as Pillow's or by their paths, as validation does; `.classes` are the names of its
        outputs; `.results` what is known of its errors.

    Raises:
        fastirv2.errors.DataError: the file is missing or damaged, or does not fit the network.
        fastirv2.errors.UsageError: it holds another network than `arch`, or no averages where they are asked for.
    """
    from fastirv2 import trained  # with torch, which `import fastirv2` does without

    return trained.load(path, arch, weights)
