"""Which device a process takes, and what it says of that."""

import os

import pytest

from fastirv2.training import distributed
from fastirv2.training.distributed import join


@pytest.mark.parametrize(
    ("device", "driver", "hidden", "said"),
    [("auto", True, None, True), ("auto", True, "", False), ("cpu", True, None, False), ("auto", False, None, False)],
)
def test_a_driver_whose_gpu_torch_does_not_find_is_warned_of(monkeypatch, capsys, tmp_path, device, driver, hidden, said):
    version = tmp_path / "version"
    if driver:
        version.write_text("NVRM version: NVIDIA UNIX")
    monkeypatch.setattr(distributed, "DRIVER", version)
    monkeypatch.setattr(distributed.torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert join(device).device.type == "cpu"
    assert ("warning: NVIDIA's driver is here, but torch" in capsys.readouterr().err) is said


@pytest.mark.parametrize(("given", "found"), [(None, "1"), ("0", "0")])
def test_nccl_keeps_the_hosts_order_unless_told_otherwise_and_is_told_before_it_begins(monkeypatch, given, found):
    told = []
    monkeypatch.setenv("NCCL_LAUNCH_ORDER_IMPLICIT", "")  # so that it is as before afterwards
    monkeypatch.delenv("NCCL_LAUNCH_ORDER_IMPLICIT")
    if given is not None:
        monkeypatch.setenv("NCCL_LAUNCH_ORDER_IMPLICIT", given)
    monkeypatch.setenv("WORLD_SIZE", "2")
    begin = lambda *_, **__: told.append(os.environ["NCCL_LAUNCH_ORDER_IMPLICIT"])  # noqa: E731
    monkeypatch.setattr(distributed.dist, "init_process_group", begin)
    join("cpu")
    assert told == [found]
