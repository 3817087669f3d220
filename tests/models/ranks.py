"""What processes that normalise together save, each of them for itself."""

import torch

from tests.processes import run_ranks


def saved_by_ranks(count, module, out):
    """Run `module` as so many ranks, which save to `out`; return what each of them saved."""
    done = run_ranks(count, "-m", module, out)
    assert done.returncode == 0, done.stderr
    return [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(count)]
