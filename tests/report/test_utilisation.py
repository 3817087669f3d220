"""The share of the devices' peak that a run's arithmetic takes."""

import functools

import pytest

from fastirv2.errors import UsageError
from fastirv2.models import create
from fastirv2.models.freezing import freeze
from fastirv2.report.utilisation import DeviceConfig, forward_flop, peak_tflops, training_flop, utilisation


@pytest.mark.parametrize(("arch", "gmac"), [("paper", 9.19), ("slim", 13.16)])
def test_the_networks_take_the_multiply_adds_that_are_known_of_them(arch, gmac):
    assert forward_flop(lambda: create(arch), 299) / 2e9 == pytest.approx(gmac, abs=0.005)


@pytest.mark.parametrize(
    ("name", "amp", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312),
        ("NVIDIA A100 80GB PCIe", "tf32", 156),
        ("NVIDIA H100 80GB HBM3", "fp16", 989),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA H100 NVL", "bf16", 835.5),
        ("NVIDIA H200", "bf16", 989),
        ("NVIDIA GH200 480GB", "bf16", 989),
        ("NVIDIA B200", "bf16", 2250),
        ("NVIDIA GB200", "bf16", 2500),
        ("Tesla V100-SXM2-16GB", "fp16", 125),
        ("Tesla V100-PCIE-32GB", "fp16", 112),
        ("Tesla V100-SXM2-16GB", "bf16", 0),
        ("NVIDIA L4", "bf16", 121),
        ("NVIDIA L40", "bf16", 181),
        ("NVIDIA L40S", "bf16", 362),
        ("NVIDIA A10", "bf16", 125),
        ("NVIDIA A10G", "bf16", 70),
        ("NVIDIA GeForce RTX 3090", "bf16", 71),
        ("NVIDIA GeForce RTX 3090 Ti", "bf16", 80),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16", 0),
        ("NVIDIA A100-SXM4-80GB", "fp32", 0),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", "bf16", 0),
        ("NVIDIA GeForce GTX 1080", "bf16", 0),
        ("CPU", "bf16", 0),
    ],
)
def test_common_gpus_are_known_by_name_and_others_are_not_guessed(name, amp, peak):
    assert peak_tflops(name, amp) == peak


def multiply_adds_of_the_first_convolution(size):
    return ((size - 1) // 2) ** 2 * 32 * 3 * 3 * 3  # 3 × 3 with stride 2, from 3 channels to 32


def test_an_image_counts_three_passes_at_the_crop_of_its_epoch_but_for_a_gradient_of_the_image():
    make = functools.partial(create, "paper")
    shown = utilisation(make, [(1, 192), (3, 299)], peak_tflops=100, devices=2)
    for epoch, size, forward in ((3, 299, 9.190937184e9), (2, 192, 3.227448672e9)):
        whole = 3 * forward - multiply_adds_of_the_first_convolution(size)
        assert shown.share(epoch, 1000) == pytest.approx(1000 * 2 * whole / 200e12)
    assert utilisation(make, [(1, 299)], peak_tflops=0, devices=2) is None


def test_what_is_frozen_counts_in_the_forward_pass_alone():
    def frozen():
        model = create("slim")
        freeze(model, "stem")
        return model

    # the stem's forward multiply-adds, from the shapes of its five convolutions
    stem = sum(side**2 * into * out * kernel**2 for side, into, out, kernel in
               ((149, 3, 32, 3), (147, 32, 32, 3), (147, 32, 64, 3), (73, 64, 80, 1), (71, 80, 192, 3)))  # fmt: skip
    made = functools.partial(create, "slim")
    branches = 96 + 48 + 64 + 64  # of what reads the stem's output, and 1×1: no gradient for that
    unasked = 2 * 35**2 * 192 * branches
    learnt_less = training_flop(made, 299) - training_flop(frozen, 299)
    assert learnt_less == 2 * (2 * stem - multiply_adds_of_the_first_convolution(299)) + unasked


def test_a_negative_peak_is_refused():
    with pytest.raises(UsageError, match=r"--device\.peak-tflops -1"):
        DeviceConfig(peak_tflops=-1)
