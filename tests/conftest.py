"""What holds for all tests: the number of threads, and the skipping of those that need a GPU."""

import os
import sys

import pytest

# Before torch is imported, and for the processes that tests start: ranks that share few cores must not spin while they wait.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_collection_modifyitems(items):
    needing_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not needing_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in needing_gpu:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU, and torch finds none here"))


def pytest_collection_finish():
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(min(4, os.cpu_count() or 1))
