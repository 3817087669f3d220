"""The recipes' facts against their sources', the rates at chosen steps worked out by hand, and the README's table of them."""

import re
from pathlib import Path

import pytest

from fastirv2.config import RECIPES, list_recipes, read_recipe, recipe_names
from fastirv2.files import tomllib
from fastirv2.training.plan import make_plan
from fastirv2.training.schedule import for_run, learning_rate

IMAGENET = 1_281_167
README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
OPTIMIZERS = {"sgd": "SGD", "rmsprop": "RMSProp", "lamb": "LAMB"}

# As the sources give them: kind, momentum, weight decay, rate, factor, steps and epochs between two, epochs, batch, images that
# statistics span, label smoothing, the average's decay, and how images are cut.
FACTS = {
    "setting1": ("sgd", 0.4737, 1e-4, 0.045, 0.96, 12_800, 0, 90, 64, 32, 0, 0, ("resnet", "imagenet", 328, "short")),
    "setting2": ("sgd", 0.9, 1e-4, 0.045, 0.96, 25_600, 0, 90, 64, 32, 0, 0, ("resnet", "imagenet", 328, "short")),
    "setting3": ("sgd", 0.9, 1e-4, 0.045, 0.96, 51_200, 0, 90, 64, 32, 0, 0, ("resnet", "imagenet", 328, "short")),
    "long": ("sgd", 0.9, 1e-4, 0.045, 0.94, 80_076, 0, 300, 64, 32, 0, 0, ("resnet", "imagenet", 328, "short")),
    "caffe": ("rmsprop", 0, 0, 0.045, 0.94, 0, 2, 120, 64, 16, 0, 0, ("crop", "imagenet", 328, "warp")),
    "paper": ("rmsprop", 0.9, 4e-5, 0.045, 0.94, 0, 2, 160, 640, 32, 0.1, 0.9999, ("inception", "unit", 342, "warp")),
    "senet": ("sgd", 0.9, 4e-5, 0.6, 0.1, 0, 30, 100, 1024, 32, 0, 0, ("area", "imagenet", 352, "short")),
}


@pytest.mark.parametrize("name", FACTS)
def test_a_recipe_says_what_its_source_says(name):
    config, _ = read_recipe(name)
    optimizer, schedule, train, images = config.optimizer, config.schedule, config.train, config.input
    assert FACTS[name] == (
        optimizer.kind,
        optimizer.momentum,
        optimizer.weight_decay,
        schedule.rate,
        schedule.factor,
        schedule.interval,
        schedule.interval_epochs,
        train.epochs,
        train.global_batch,
        train.bn_batch,
        train.label_smoothing,
        config.ema.decay,
        (images.augment, images.normalise, images.resize, images.resize_mode),
    )
    assert (config.model.arch, config.model.dropout, images.crop) == ("paper", 0.2, 299)
    assert (schedule.kind, schedule.warmup_epochs, schedule.batch) == ("exponential", 0, train.global_batch)
    if optimizer.kind == "rmsprop":
        assert (optimizer.alpha, optimizer.epsilon) == (0.9, 1.0)


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_gives_its_rates_for_its_own_batch_and_scales_them_for_another(name):
    config, texts = read_recipe(name)
    assert config.schedule.batch == config.train.global_batch
    table = tomllib.loads((RECIPES / f"{name}.toml").read_text())  # where the rules are written, for whoever reads it
    assert table["schedule"]["scaling"] == config.schedule.scaling == "linear"
    assert table.get("ema", {"scaling": "images"})["scaling"] == config.ema.scaling == "images"
    assert texts.keys() >= {"about", "published"}


def schedule(name, times=1):
    """The resolved schedule of a recipe on ImageNet, with `times` its own batch."""
    config, _ = read_recipe(name)
    batch = config.train.global_batch * times
    total = -(-config.train.epochs * IMAGENET // batch)
    return for_run(config.schedule, global_batch=batch, count=IMAGENET, total_steps=total)


# (recipe, step, rate). An interval of e epochs ends before the first step whose predecessors have seen e · 1,281,167 images:
# step ⌈e · 1,281,167 / batch⌉ + 1.
RATES = [
    ("setting1", 1, 0.045),
    ("setting1", 12_799, 0.045),
    ("setting1", 12_800, 0.0432),  # 0.045 × 0.96
    ("setting1", 25_600, 0.041472),  # 0.045 × 0.96²
    ("setting1", 1_801_642, 1.48315e-4),  # the end: 1,801,642 / 12,800 = 140.75; 0.045 × 0.96^140
    ("setting2", 25_599, 0.045),
    ("setting2", 25_600, 0.0432),
    ("setting2", 1_801_642, 2.58344e-3),  # 0.045 × 0.96^70
    ("setting3", 51_199, 0.045),
    ("setting3", 51_200, 0.0432),
    ("setting3", 1_801_642, 1.07822e-2),  # 0.045 × 0.96^35
    ("long", 80_075, 0.045),
    ("long", 80_076, 0.0423),  # 0.045 × 0.94
    ("long", 6_005_471, 4.62034e-4),  # the end: 6,005,471 / 80,076 = 74.997; 0.045 × 0.94^74
    ("caffe", 1, 0.045),
    ("caffe", 40_037, 0.045),  # 2,562,334 / 64 = 40,036.5
    ("caffe", 40_038, 0.0423),
    ("caffe", 80_073, 0.0423),  # 5,124,668 / 64 = 80,072.9
    ("caffe", 80_074, 0.039762),  # 0.045 × 0.94²
    ("caffe", 2_402_189, 1.16884e-3),  # the end, after 59 intervals: 0.045 × 0.94^59
    ("paper", 4_004, 0.045),  # 2,562,334 / 640 = 4,003.6
    ("paper", 4_005, 0.0423),
    ("paper", 320_292, 3.39088e-4),  # the end, after 79 intervals: 0.045 × 0.94^79
    ("senet", 37_535, 0.6),  # 38,435,010 / 1024 = 37,534.2
    ("senet", 37_536, 0.06),
    ("senet", 75_069, 0.06),  # 76,870,020 / 1024 = 75,068.4
    ("senet", 75_070, 0.006),
    ("senet", 125_114, 0.0006),  # the end
    ("fast", 1, 6.39284e-5),  # 5 epochs are 6,255.7 steps of 1024: 0.4 × 1 / 6,257
    ("fast", 6_256, 0.397475),  # 0.4 × (1 + cos(π 6,255 / 125,114)) / 2 × 6,256 / 6,257
    ("fast", 6_257, 0.397538),  # 0.4 × (1 + cos(π 6,256 / 125,114)) / 2
    ("fast", 62_558, 0.2),  # half of 125,114 steps: 0.4 × (1 + cos(π / 2)) / 2
    ("fast", 125_114, 6.30504e-11),  # the end: 0.4 × (π / 125,114)² / 4
]


@pytest.mark.parametrize(("name", "step", "rate"), RATES)
def test_the_rate_at_chosen_steps(name, step, rate):
    assert learning_rate(step, schedule(name)) == pytest.approx(rate, rel=1e-5)


def test_setting_1_ends_at_1_5e_4():
    config = schedule("setting1")
    assert config.total_steps == 1_801_642
    assert learning_rate(config.total_steps, config) == pytest.approx(1.5e-4, rel=0.02)


@pytest.mark.parametrize(
    ("name", "last", "before", "after"),
    [  # four times the batch: four times the rate, a quarter of the steps
        ("setting1", 3_199, 0.18, 0.1728),  # 12,800 / 4
        ("long", 20_018, 0.18, 0.1692),  # 80,076 / 4 = 20,019
        ("caffe", 10_010, 0.18, 0.1692),  # 2,562,334 / 256 = 10,009.1
        ("paper", 1_001, 0.18, 0.1692),  # 2,562,334 / 2560 = 1,000.9
        ("senet", 9_384, 2.4, 0.24),  # 38,435,010 / 4096 = 9,383.5
    ],
)
def test_four_times_the_batch_has_four_times_the_rate_over_as_many_images(name, last, before, after):
    config = schedule(name, times=4)
    assert learning_rate(last, config) == pytest.approx(before)
    assert learning_rate(last + 1, config) == pytest.approx(after)


@pytest.mark.parametrize("name", recipe_names())
@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_statistics_are_the_recipes_on_up_to_8_gpus(name, world):
    train = read_recipe(name)[0].train
    plan = make_plan(
        global_batch=train.global_batch,
        world=world,
        batch=train.batch,
        bn_batch=train.bn_batch,
        sync_bn=train.sync_bn,
        count=IMAGENET,
        epochs=train.epochs,
    )
    assert plan.bn_images == train.bn_batch


def test_the_list_of_recipes_names_what_each_is():
    paragraphs = dict(zip(recipe_names(), re.split(r"\n(?=\w)", list_recipes()), strict=True))
    for name, text in paragraphs.items():
        config, texts = read_recipe(name)
        sizes = f"{config.train.epochs} epochs", f"over {config.train.bn_batch}\n"
        assert all(fact in text for fact in (name, texts["about"], texts["published"], *sizes))
    assert "RMSProp, momentum 0.9, weight decay 4e-05 on weights; rate 0.045 × 0.94 every 2 epochs" in paragraphs["paper"]
    assert "Nesterov SGD, momentum 0.4737, weight decay 0.0001; rate 0.045 × 0.96 every 12,800 steps" in paragraphs["setting1"]
    assert "rate 0.4 falling as a cosine, warm-up of 5 epochs, weights averaged with decay 0.999" in paragraphs["fast"]


def test_the_readmes_table_is_the_recipes():
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (\w+) \| (\d+) \| (\d+) \| (.+) \|$", README, re.MULTILINE)
    assert sorted(row[0] for row in rows) == recipe_names()
    for name, network, optimizer, batch, epochs, published in rows:
        config, texts = read_recipe(name)
        assert (network, optimizer) == (config.model.arch, OPTIMIZERS[config.optimizer.kind])
        assert (int(batch), int(epochs)) == (config.train.global_batch, config.train.epochs)
        assert published == texts["published"]
