"""The slim network is TensorFlow-slim's, under timm's names."""

from __future__ import annotations

import re
from collections import Counter

from torch import nn

from fastirv2 import models
from tests.models.graph import multiply_adds, operations

# inputs, outputs, kernel height, width, stride of every convolution, block by block, in the order of execution
STEM = [(3, 32, 3, 3, 2), (32, 32, 3, 3, 1), (32, 64, 3, 3, 1), (64, 80, 1, 1, 1), (80, 192, 3, 3, 1)]
MIXED_5B = [
    (192, 96, 1, 1, 1),
    *((192, 48, 1, 1, 1), (48, 64, 5, 5, 1)),
    *((192, 64, 1, 1, 1), (64, 96, 3, 3, 1), (96, 96, 3, 3, 1)),
    (192, 64, 1, 1, 1),
]
BLOCK35 = [
    (320, 32, 1, 1, 1),
    *((320, 32, 1, 1, 1), (32, 32, 3, 3, 1)),
    *((320, 32, 1, 1, 1), (32, 48, 3, 3, 1), (48, 64, 3, 3, 1)),
    (128, 320, 1, 1, 1),
]
MIXED_6A = [(320, 384, 3, 3, 2), (320, 256, 1, 1, 1), (256, 256, 3, 3, 1), (256, 384, 3, 3, 2)]
BLOCK17 = [(1088, 192, 1, 1, 1), (1088, 128, 1, 1, 1), (128, 160, 1, 7, 1), (160, 192, 7, 1, 1), (384, 1088, 1, 1, 1)]
MIXED_7A = [
    *((1088, 256, 1, 1, 1), (256, 384, 3, 3, 2)),
    *((1088, 256, 1, 1, 1), (256, 288, 3, 3, 2)),
    *((1088, 256, 1, 1, 1), (256, 288, 3, 3, 1), (288, 320, 3, 3, 2)),
]
BLOCK8 = [(2080, 192, 1, 1, 1), (2080, 192, 1, 1, 1), (192, 224, 1, 3, 1), (224, 256, 3, 1, 1), (448, 2080, 1, 1, 1)]
CONVOLUTIONS = [
    *STEM, *MIXED_5B, *BLOCK35 * 10, *MIXED_6A, *BLOCK17 * 20, *MIXED_7A, *BLOCK8 * 10, (2080, 1536, 1, 1, 1)
]  # fmt: skip


def test_every_convolution_is_the_listed_one():
    convolutions = [op.kernel[:5] for op in operations(models.create("slim"), 299) if op.kind == "conv"]
    assert convolutions == CONVOLUTIONS


def test_it_has_the_published_size():
    model = models.create("slim")
    assert sum(p.numel() for p in model.parameters()) == 55_843_464
    assert round(multiply_adds(operations(model, 299)) / 1e9, 2) == 13.16


def test_stages_have_the_listed_shapes_and_scales():
    ops = operations(models.create("slim"), 299)
    assert [op.shape for op in ops if op.kind == "concat" and op.shape[0] in (320, 1088, 2080)] == [
        (320, 35, 35), (1088, 17, 17), (2080, 8, 8)
    ]  # fmt: skip
    assert Counter(op.kind for op in ops if op.kind.startswith("scale")) == {
        "scale 0.17": 10, "scale 0.1": 20, "scale 0.2": 9, "scale 1.0": 1
    }  # fmt: skip


def test_relu_follows_every_sum_but_the_last():
    ops = operations(models.create("slim"), 299)
    sums = [number for number, op in enumerate(ops) if op.kind == "add"]
    followed = [ops[number + 1].kind == "relu" for number in sums]
    assert len(followed) == 40
    assert followed == [True] * 39 + [False]


def test_the_residual_convolution_has_a_bias_and_no_normalisation():
    model = models.create("slim")
    assert sum(c.bias is not None for c in model.modules() if isinstance(c, nn.Conv2d)) == 40
    assert {m.eps for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}


def test_the_average_pool_does_not_count_its_padding():
    pools = [m for m in models.create("slim").modules() if isinstance(m, nn.AvgPool2d)]
    assert [p.count_include_pad for p in pools] == [False]


def test_names_are_timms():
    keys = set(models.create("slim").state_dict())
    leaf = r"(conv\.weight|bn\.(weight|bias|running_mean|running_var|num_batches_tracked))"
    block = rf"(branch0\.{leaf}|branch[12]\.[0-2]\.{leaf}|conv2d\.(weight|bias))"
    mixed = rf"branch[0-3](\.[0-2])?\.{leaf}"
    names = (
        rf"conv2d_(1a|2a|2b|3b|4a|7b)\.{leaf}|mixed_(5b|6a|7a)\.{mixed}|repeat(_[12])?\.\d+\.{block}|block8\.{block}"
        r"|classif\.(weight|bias)"
    )
    assert [k for k in keys if not re.fullmatch(names, k)] == []
    # 204 normalised convolutions of six tensors, 40 residual ones of two, and the classifier
    assert len(keys) == 204 * 6 + 40 * 2 + 2
    assert "mixed_5b.branch3.1.conv.weight" in keys
    assert "repeat_2.8.branch1.2.bn.running_var" in keys
