"""The README names what there is."""

import re
from dataclasses import fields
from pathlib import Path

from fastirv2.build_lmdb import Options as BuilderOptions
from fastirv2.config import _option_names, recipe_names
from fastirv2.evaluate import Options as EvaluateOptions
from fastirv2.export import Options as ExportOptions
from fastirv2.predict import Options as PredictOptions

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
OF_OTHERS = {
    "--nproc-per-node", "--tag", "--rm", "--gpus", "--ipc", "--ulimit", "--user", "--volume", "--constraint", "--json",
    "--size", "--batch", "--build", "--memory", "--what", "--kills", "--images", "--rounds", "--seconds",
    "--data", "--need", "--trace", "--reference", "--caffe-epoch-iterations",
    "--amp", "--ranks", "--minutes", "--nvtx", "--capture-range", "--write", "--compile", "--merge", "--norm", "--vs",
    "--max-restarts", "--shutdown-timeout", "--signals-to-handle",
}  # fmt: skip


def test_the_map_of_the_tree_has_every_file_and_no_other():
    tree = re.search(r"## The tree\n\n```\n(.*?)```", README, re.DOTALL)[1]
    named = set(re.findall(r"[\w]+\.(?:py|sh)\b", tree))
    found = [path for folder in ("fastirv2", "pipelines", "tools") for path in (ROOT / folder).rglob("*") if path.is_file()]
    there = {path.name for path in found if path.suffix in (".py", ".sh")} - {"__init__.py"}
    assert named == there


def test_every_option_that_is_named_exists():
    commands = (BuilderOptions, EvaluateOptions, PredictOptions, ExportOptions)
    own = {f"--{field.name.replace('_', '-')}" for options in commands for field in fields(options)}
    known = set(_option_names()) | own | OF_OTHERS | {"--section.name"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z.-]*[a-z]", README)) - known == set()


def test_every_recipe_that_is_used_exists():
    assert set(re.findall(r"--recipe (\w+)", README)) <= set(recipe_names())


def test_its_pictures_are_there():
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert pictures
    assert all((ROOT / picture).is_file() for picture in pictures)


def test_nothing_is_left_to_be_filled_in():
    assert not re.search(r"^[A-Z]{6,}$", README, re.MULTILINE)
