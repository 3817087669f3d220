import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fastirv2.building import resize
from fastirv2.building.images import Preparer, prepare
from fastirv2.building.jpeg import decode
from fastirv2.building.resize import Resize, resized, torch_lanczos
from fastirv2.errors import UsageError

from .samples import jpeg, pixels


@pytest.fixture
def without_torch(monkeypatch):
    monkeypatch.setattr(resize, "torch_lanczos", lambda: None)


def by_pillow(array, width, height):
    return np.asarray(Image.fromarray(array).resize((width, height), Image.Resampling.LANCZOS)).astype(int)


@pytest.mark.parametrize(
    "text", ["", "3", "0x5", "5x0", "short:0", "short:", "short:-1", "5X5", "5x5x5", "70000x5", "None", "٣x٣"]
)
def test_another_resize_text_is_wrong_usage(text):
    with pytest.raises(UsageError, match="--resize"):
        Resize.parse(text)


@pytest.mark.parametrize(
    ("text", "size", "target"),
    [
        ("none", (500, 375), (500, 375)),
        ("328x300", (500, 375), (328, 300)),
        ("328x300", (10, 5000), (328, 300)),
        ("short:100", (500, 375), (133, 100)),
        ("short:100", (375, 500), (100, 133)),
        ("short:100", (502, 375), (134, 100)),
        ("short:100", (375, 502), (100, 134)),
        ("short:400", (500, 375), (500, 375)),
        ("short:375", (500, 375), (500, 375)),
        ("short:1", (3, 9000), (1, 3000)),
    ],
)
def test_targets(text, size, target):
    assert Resize.parse(text).target(*size) == target


@pytest.mark.parametrize(
    ("text", "same"), [("none", "none"), ("0328x328", "328x328"), ("640x48", "640x48"), ("short:00328", "short:328")]
)
def test_texts_that_mean_the_same_are_the_same_build(text, same):
    assert str(Resize.parse(text)) == same


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (64, 48), (1, 1), (1, 700), (700, 1), (2000, 7)])
@pytest.mark.parametrize("target", [(328, 328), (33, 17), (1, 1), (700, 500)])
def test_torch_gives_pillows_lanczos_within_two_levels(size, target):
    array = pixels(*size)
    assert np.abs(resized(array, *target).astype(int) - by_pillow(array, *target)).max() <= 2


def test_noise_too_is_filtered_as_by_pillow():
    array = np.random.default_rng(0).integers(0, 256, (375, 500, 3), dtype=np.uint8)
    assert np.abs(resized(array, 328, 328).astype(int) - by_pillow(array, 328, 328)).max() <= 2


def test_a_torch_that_knows_no_lanczos_gives_the_same_picture_within_two_levels(monkeypatch):
    import torch

    interpolate = torch.nn.functional.interpolate

    def older(image, *, mode, **options):
        if mode == "lanczos":
            raise NotImplementedError("Input Error: Only 3D, 4D and 5D input Tensors supported")
        return interpolate(image, mode=mode, **options)

    data = jpeg(500, 375, quality=95)
    now = decode(prepare(data, Resize.parse("328x328"), 100).data).astype(int)
    torch_lanczos.cache_clear()
    monkeypatch.setattr(torch.nn.functional, "interpolate", older)
    assert torch_lanczos() is None
    before = decode(prepare(data, Resize.parse("328x328"), 100).data)
    torch_lanczos.cache_clear()
    array = pixels(500, 375)
    monkeypatch.undo()
    assert np.abs(resized(array, 328, 328).astype(int) - by_pillow(array, 328, 328)).max() <= 2
    assert np.abs(now - before).mean() < 1


@pytest.mark.usefixtures("without_torch")
def test_pillow_does_it_where_torch_cannot():
    array = pixels(50, 40)
    assert np.array_equal(resized(array, 20, 30), by_pillow(array, 20, 30))


def test_a_strong_reduction_is_antialiased():
    stripes = np.zeros((64, 4000, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(resized(stripes, 100, 64).astype(int) - 128).max() <= 2


def test_the_result_does_not_depend_on_the_number_of_threads():
    import torch

    array, threads = pixels(500, 375), torch.get_num_threads()
    try:
        results = []
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(resized(array, 328, 328))
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(*results)


@pytest.mark.parametrize(("text", "modules"), [("none", ()), ("20x20", ("torch",)), ("short:9", ("torch",))])
def test_only_a_build_that_resizes_wants_torch(text, modules):
    assert Preparer(Resize.parse(text), 95).modules == modules


def test_a_build_that_resizes_nothing_never_imports_torch(tmp_path):
    (tmp_path / "image").write_bytes(jpeg())
    code = (
        "import sys; from fastirv2.building.images import Resize, prepare; data = open(sys.argv[1], 'rb').read(); "
        "prepare(data, Resize(), 95); prepare(data, Resize.parse('short:900'), 95); assert 'torch' not in sys.modules; "
        "prepare(data, Resize.parse('9x9'), 95); assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "image"], check=True)
