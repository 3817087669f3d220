"""What a configuration of the input says of itself."""

from types import SimpleNamespace

import pytest

from fastirv2.data.samples import InputConfig, check_input


@pytest.mark.parametrize(("size", "warned"), [("400x300", True), ("300x400", True), ("400x328", False)])
def test_images_are_enlarged_where_either_side_is_too_small(size, warned):
    said = check_input(SimpleNamespace(resizes=(size,), path="lmdb"), InputConfig(), training=True)
    assert ("enlarged to 328" in " ".join(said)) is warned


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
