"""A GPU whose memory does not suffice ends a command with a sentence, in whichever library it showed."""

import re
import sys

import pytest
import torch

from fastirv2 import train
from fastirv2.errors import UsageError
from fastirv2.scoring.network import enough_memory

SHORT = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB\nmore"),
    RuntimeError("FIND was unable to find an engine to execute this computation"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("Can't allocate 1073741824 bytes on device 0."),
]


@pytest.fixture
def ended(monkeypatch):
    """What the trainer ends with where its work raises an error."""

    def ending(error):
        def execute(*_):
            raise error

        monkeypatch.setattr(train, "execute", execute)
        words = ("--recipe", "demo", "--train", "a", "--val", "b", "--out", "RUN", "--train.device", "cpu")
        monkeypatch.setattr(sys, "argv", [train.PROGRAM, *words])
        return train.command()

    return ending


@pytest.mark.parametrize("error", SHORT)
def test_training_names_the_option_that_takes_less(ended, error):
    said = re.escape(f"the GPU's memory does not suffice; give a smaller --train.batch ({str(error).splitlines()[0]})") + "$"
    with pytest.raises(UsageError, match=said) as raised:
        ended(error)
    assert not raised.value.shared
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("error", SHORT)
def test_evaluation_does_too(error):
    with pytest.raises(UsageError, match=r"does not suffice; give a smaller --batch \("), enough_memory():
        raise error


def test_another_error_stays_itself(ended):
    with pytest.raises(RuntimeError, match="illegal memory access"):
        ended(RuntimeError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(RuntimeError, match="illegal memory access"), enough_memory():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
