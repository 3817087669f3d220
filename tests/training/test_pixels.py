"""What pixels become before a network sees them."""

import pytest
import torch

from fastirv2.pipelines import IMAGENET_MEAN, IMAGENET_STD
from fastirv2.training.pixels import NORMALISE, imagenet, unit

CPU = torch.device("cpu")


def test_levels_go_from_minus_1_to_1():
    levels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 1, 1)
    assert unit(torch.float64, CPU)(levels)[:, 0, 0, 0].tolist() == [-1.0, -0.6, 1.0]


def test_imagenets_mean_becomes_0_and_a_deviation_more_1():
    mean, std = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    for value, images in ((0.0, mean), (1.0, mean + std)):
        torch.testing.assert_close(imagenet(torch.float64, CPU)(images), torch.full_like(mean, value))


@pytest.mark.parametrize("name", NORMALISE)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_images_of_the_input_pipeline_stay_as_they_are_and_channels_last(name, dtype):
    """In float16 too, as the pipeline has them where colours change."""
    images = torch.full((2, 3, 5, 4), 7, dtype=torch.float16).contiguous(memory_format=torch.channels_last)
    normalised = NORMALISE[name](dtype, CPU)(images)
    assert normalised.dtype == dtype
    assert normalised.is_contiguous(memory_format=torch.channels_last)
    assert (images == 7).all()
