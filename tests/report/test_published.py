"""Published curves, and the band that a run is to stay in."""

import pytest

from fastirv2.config import read_recipe, recipe_names
from fastirv2.errors import UsageError
from fastirv2.report.published import Reference, curve, curve_names, reference_of


def row(epoch, error, averaged=None):
    return {"epoch": epoch, "val_top1_error": error, "ema_top1_error": averaged}


def test_the_predecessors_curves_are_there():
    assert curve_names() == ["lim0606_setting1", "revilokeb"]
    first, *_, last = curve("lim0606_setting1")
    assert first == {"epoch": 1, "val_top1_error": 79.4, "val_top5_error": 58.3}
    assert last == {"epoch": 90, "val_top1_error": 24.407, "val_top5_error": 7.407}
    assert curve("revilokeb")[0] == {"epoch": 2, "val_top1_error": None, "val_top5_error": 45.5}


def test_above_the_band_is_one_sentence_and_within_it_nothing():
    reference = Reference("lim0606_setting1", 5.0)
    assert reference.behind(row(12, 52.31)) == (
        "after epoch 12 the top-1 error, 52.31 %, is 13.5 points above that of lim0606_setting1, 38.80 %: "
        "more than the recipe's band of 5; curves.png has both"
    )
    assert reference.behind(row(12, 43.8)) == reference.behind(row(12, 20)) == ""


def test_weights_or_their_average_within_the_band_will_do():
    reference = Reference("lim0606_setting1")
    assert reference.behind(row(2, 70, 99)) == reference.behind(row(2, 99, 70)) == ""
    assert reference.behind(row(2, 99, 98))


def test_an_epoch_that_was_not_published_has_no_band_and_those_after_the_last_have_its():
    reference = Reference("revilokeb", 1.0)
    assert reference.behind(row(1, 99)) == reference.behind(row(3, 99)) == ""
    assert "above that of revilokeb, 50.30 %" in reference.behind(row(60, 55))


def test_a_run_on_other_classes_is_held_against_nothing():
    table = {"reference": "revilokeb", "band": 5.0, "model": {"classes": 1000}}
    assert reference_of(table) == Reference("revilokeb")
    assert reference_of(table | {"model": {"classes": 16}}) is None
    assert reference_of({"model": {"classes": 1000}}) is None


def test_recipes_name_their_curve():
    texts = {name: read_recipe(name)[1] for name in recipe_names()}
    assert (texts["setting1"]["reference"], texts["setting1"]["band"]) == ("lim0606_setting1", 5.0)
    assert texts["caffe"]["reference"] == "revilokeb"
    assert "reference" not in texts["demo"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('reference = "lim0606"', "there is no reference curve 'lim0606'; did you mean 'lim0606_setting1'"),
        ('reference = "revilokeb"\nband = -1', "the band of reference 'revilokeb' is -1.0 points; it must be positive"),
        ("published = 3", "published is 3, but a value of type str is needed"),
    ],
)
def test_a_curve_that_is_none_is_refused(tmp_path, text, sentence):
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(UsageError, match=sentence):
        read_recipe(str(tmp_path / "own.toml"))
