"""What a configuration of the input says of itself."""

from types import SimpleNamespace

import pytest

from fastirv2.data.samples import InputConfig, check_input
from fastirv2.errors import UsageError


@pytest.mark.parametrize(("size", "warned"), [("400x300", True), ("300x400", True), ("400x328", False)])
def test_images_are_enlarged_where_either_side_is_too_small(size, warned):
    said = check_input(SimpleNamespace(resizes=(size,), path="lmdb"), InputConfig(), training=True)
    assert ("enlarged to 328" in " ".join(said)) is warned


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("threads", -1, "--input.threads -1 must lie between 0 and 1,024"),
        ("threads", 10**20, "must lie between 0 and 1,024"),
        ("prefetch", 0, "--input.prefetch 0 must lie between 1 and 1,024"),
        ("prefetch", 10**9, "must lie between 1 and 1,024"),
        ("read_ahead", -1, "--input.read-ahead -1 must lie between 0 and 1,024"),
        ("hw_decoder_load", float("nan"), "--input.hw-decoder-load nan must lie between 0 and 1"),
    ],
)
def test_what_no_machine_has_is_refused(option, value, sentence):
    with pytest.raises(UsageError, match=sentence):
        InputConfig(**{option: value})


@pytest.mark.parametrize(
    ("augment", "given", "used"),
    [
        ("resnet", "auto", "cubic"),
        ("resnet", "bilinear", "linear"),
        ("inception", "auto", "linear"),
        ("crop", "bicubic", "cubic"),
    ],
)
def test_the_filter_is_the_sources_own_unless_another_is_given(augment, given, used):
    assert InputConfig(augment=augment, interpolation=given).filter == used
