"""Every recipe trains, at a reduced size, through the real command."""

import math

import pytest

from fastirv2.config import read_recipe, recipe_names
from fastirv2.training.schedule import for_run, learning_rate
from tests.processes import ONE_THREAD, run_python
from tests.train.all_recipes import BATCH, STEPS
from tests.train.conftest import metrics


@pytest.fixture(scope="module")
def runs(file_list, tmp_path_factory):
    """All recipes' runs of one epoch of 20 steps, and what they said."""
    folder = tmp_path_factory.mktemp("recipes")
    lines = [f"{file_list.parent / path} {label}\n" for path, label in map(str.split, file_list.read_text().splitlines())]
    (folder / "train.txt").write_text("".join((lines[::5] * STEPS)[: STEPS * BATCH]))
    (folder / "val.txt").write_text("".join(lines[::6]))
    arguments = ("-m", "tests.train.all_recipes", folder / "train.txt", folder / "val.txt", folder)
    process = run_python(*arguments, env=ONE_THREAD, timeout=1200)
    return folder, process


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_trains(runs, name):
    folder, process = runs
    assert (folder / name / "metrics.jsonl").exists(), process.stdout + process.stderr
    trained, validated = (metrics(folder / name, kind) for kind in ("train", "val"))
    assert [line["step"] for line in trained] == list(range(1, STEPS + 1))
    assert all(math.isfinite(line["loss"]) for line in trained)
    config, _ = read_recipe(name)
    schedule = for_run(config.schedule, global_batch=BATCH, count=STEPS * BATCH, total_steps=STEPS)
    assert [line["lr"] for line in trained] == [learning_rate(step, schedule) for step in range(1, STEPS + 1)]
    weights = ["raw", "ema"] if config.ema.decay else ["raw"]
    assert [(line["weights"], line["images"]) for line in validated] == [(each, 4) for each in weights]
    assert f"instead of the recipe's {schedule.batch}" in process.stdout
    averaged = f"a step instead of {config.ema.decay:g}: over as many images as the recipe does"
    assert (averaged in process.stdout) is (config.ema.decay > 0)


def test_all_of_them_end_well(runs):
    _, process = runs
    assert process.returncode == 0, process.stdout + process.stderr
    assert process.stdout.count("done: best top-1 error") == len(recipe_names())
