"""What becomes of a record: its place among the classes, with ties, several right labels, and numbers that are none."""

import math

import pytest
import torch

from fastirv2.scoring.outcomes import Outcomes, _outcomes


def outcome(probabilities, own, right):
    """Of one record: place, predicted, confidence, loss."""
    scores = torch.tensor([probabilities], dtype=torch.float64).log()
    return [column[0] for column in Outcomes(*_outcomes(scores, torch.tensor([own]), torch.tensor([right])).tolist())[:4]]


def test_a_tie_is_an_error():
    assert outcome([0.4, 0.4, 0.2], 0, [0])[0] == outcome([0.4, 0.4, 0.2], 1, [1])[0] == 1
    assert outcome([0.2] * 5, 4, [4])[0] == 4


def test_of_several_right_labels_the_best_counts_and_the_others_are_not_in_its_way():
    place, predicted, confidence, loss = outcome([0.3, 0.1, 0.4, 0.2], 1, [3, 0])
    assert (place, predicted, confidence) == (1, 2, pytest.approx(0.4))
    assert loss == pytest.approx(-math.log(0.1))  # that of its own label
    assert outcome([0.3, 0.1, 0.4, 0.2], 1, [0, 2])[0] == 0
    assert outcome([0.3, 0.1, 0.4, 0.2], 1, [1, 1])[0] == 3


@pytest.mark.parametrize("classes", [2, 9])
def test_what_is_no_number_is_not_among_the_first_five(classes):
    assert outcome([math.nan] * classes, 0, [0])[0] >= 5
