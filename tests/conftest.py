"""What holds for all tests: the number of threads, the skipping of those that need a GPU, and a small real data set."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image


def share_of_cpus():
    """The CPUs of this one of pytest-xdist's workers, and of the processes that its tests start.

    Threads of OpenMP wait for one another by spinning: beside other processes on the same two CPUs, a training step took
    thirty times as long with two threads as with one.
    """
    cpus, workers = sorted(os.sched_getaffinity(0)), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    own = int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))
    return set(cpus[own % workers :: workers]) or {cpus[own % len(cpus)]}


# Before torch is imported, and for the processes that tests start: ranks that share few cores must not spin while they wait.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.sched_setaffinity(0, share_of_cpus())
os.environ.setdefault("OMP_NUM_THREADS", str(min(4, len(os.sched_getaffinity(0)))))

os.environ.pop("PYTHONUNBUFFERED", None)  # few users have it, and what a command cannot write is lost at another place then

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a shell's background job: what tests start would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    """Hide GPUs from all but `pytest -m gpu`: what tests start would take them, and has a CPU's bits and two ranks on one."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items):
    needing_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not needing_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in needing_gpu:
            item.add_marker(pytest.mark.skip(reason="needs pytest -m gpu, and an NVIDIA GPU that torch finds"))


def pytest_collection_finish():
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def photograph(seed, width, height):
    """A smooth colourful image, so that a resize can be compared across libraries."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Two class folders with 13 and 10 JPEGs of different sizes."""
    folder = tmp_path_factory.mktemp("data") / "images"
    for label, (name, count) in enumerate([("cat", 13), ("dog", 10)]):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            photograph(100 * label + i, 90 + 3 * i, 140 - 2 * i).save(folder / name / f"{i:02}.jpg", quality=95)
    return folder


def build(source, out, *options):
    subprocess.run([sys.executable, "-m", "fastirv2.build_lmdb", source, out, *options], check=True, capture_output=True)
    return out


@pytest.fixture(scope="session")
def lmdb_folder(images):
    return build(images, images.parent / "lmdb")


@pytest.fixture(scope="session")
def file_list(images):
    lines = [f"{path.relative_to(images.parent)} {int(path.parent.name == 'dog')}\n" for path in sorted(images.rglob("*.jpg"))]
    path = images.parent / "list.txt"
    path.write_text("".join(lines))
    return path
