"""A run's configuration: a recipe's values, the command line's over them, and the form that is written into the run."""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import tomli_w
import tyro

from fastirv2.data.sampler import DataConfig
from fastirv2.data.samples import InputConfig
from fastirv2.errors import UsageError, nearest
from fastirv2.files import read_toml
from fastirv2.models import SMALLEST_INPUT, ModelConfig
from fastirv2.report.metrics import LogConfig
from fastirv2.report.published import Reference
from fastirv2.report.utilisation import DeviceConfig
from fastirv2.training.checkpoint import CheckpointConfig
from fastirv2.training.ema import EmaConfig
from fastirv2.training.optim import OptimizerConfig, describe_optimizer
from fastirv2.training.plan import TrainConfig
from fastirv2.training.schedule import ScheduleConfig, describe_schedule

RECIPES = Path(__file__).parent / "recipes"
TEXTS = {"about": str, "published": str, "reference": str, "band": float}  # what a recipe says of itself


@dataclass(frozen=True)
class Config:
    """All that describes a run, besides where its data and its results are."""

    model: ModelConfig = field(default_factory=ModelConfig)
    input: InputConfig = field(default_factory=InputConfig)
    data: DataConfig = field(default_factory=DataConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)

    def __post_init__(self) -> None:
        for option, crop in [("crop", self.input.crop), *(("sizes", stage[2]) for stage in self.input.stages())]:
            if crop < SMALLEST_INPUT:
                raise UsageError(f"--input.{option} {crop} is too small for this network; it needs {SMALLEST_INPUT} pixels")
        last = self.input.stages()[-1][0]
        if last > self.train.epochs:
            raise UsageError(f"--input.sizes: epoch {last} is beyond the run's end, --train.epochs {self.train.epochs}")


@dataclass(frozen=True)
class Options:
    """Train Inception-ResNet-v2 by a recipe. Start it with torchrun for several GPUs."""

    recipe: str = ""
    """Name of a recipe (see --recipes), or a TOML file of your own."""
    train_path: Annotated[str, tyro.conf.arg(name="train", metavar="PATH")] = ""
    """Training set: an LMDB folder, several joined by commas, a folder of class folders, or a list of "path label" lines."""
    val_path: Annotated[str, tyro.conf.arg(name="val", metavar="PATH")] = ""
    """Validation set, in any of these forms."""
    out: Annotated[str, tyro.conf.arg(metavar="RUN")] = ""
    """Folder of the run; the same command on the same folder goes on where it stopped."""
    fresh: bool = False
    """Move an existing RUN aside to RUN.1, RUN.2, … and begin anew; nothing is deleted. Restarts by torchrun or Slurm go on."""
    recipes: bool = False
    """List the recipes and end."""
    print_config: bool = False
    """Print the configuration and end."""
    dry_run: bool = False
    """Check options and data, take some steps, write a checkpoint and read it back, say what the run would take, and end."""
    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)


def parse(arguments: Sequence[str], *, silent: bool) -> Options:
    """Read the command line; `silent` for the ranks that say nothing. Help and usage errors end the process.

    Raises:
        UsageError: there is no such recipe or option, or a value is out of bounds.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe", default="")
    recipe = first.parse_known_args(arguments)[0].recipe
    default = Options(config=read_recipe(recipe)[0] if recipe else Config())
    command = tyro.conf.configure(tyro.conf.FlagCreatePairsOff)(Options)
    with contextlib.redirect_stdout(io.StringIO()) if silent else contextlib.nullcontext():
        options, unknown = tyro.cli(
            command,
            prog="fastirv2.train",
            description=Options.__doc__,
            args=list(arguments),
            default=default,
            return_unknown_args=True,
            console_outputs=not silent,
        )
    if unknown:
        name = unknown[0].split("=")[0]
        raise UsageError(f"there is no option {name}{nearest(name, _option_names())}")
    return options


def _option_names() -> list[str]:
    sections = [f"--{section}.{name}" for section, values in settings(Config()).items() for name in values]
    own = ["--recipe", "--train", "--val", "--out", "--fresh", "--recipes", "--print-config", "--dry-run", "--help"]
    return [name.replace("_", "-") for name in sections] + own


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the program."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def read_recipe(name: str) -> tuple[Config, dict[str, Any]]:
    """Read a recipe by its name or file: the configuration, and what it says of itself.

    That is what it is ("about"), what was reached with it ("published"), and the published curve that a run is held against
    ("reference") with the points of top-1 error that it may lie above ("band").

    Raises:
        UsageError: there is no such recipe, or it holds a section, name or value that makes no sense.
    """
    path = Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"
    if not path.is_file():
        if name.endswith(".toml"):
            raise UsageError(f"there is no file {name}; the recipes that come with the program are {', '.join(recipe_names())}")
        raise UsageError(f"there is no recipe '{name}'{nearest(name, recipe_names())}")
    content = read_toml(path)
    texts = {key: _checked(content.pop(key), hint, f"{path}: {key}") for key, hint in TEXTS.items() if key in content}
    if "reference" in texts:
        texts["band"] = Reference(texts["reference"], texts.get("band", Reference.band)).band
    for key in ("recipe", "out", "statistics"):  # what a run's config.toml says besides its settings
        content.pop(key, None)
    for key in ("train", "val", "train_digest", "val_digest") if isinstance(content.get("data"), dict) else ():
        content["data"].pop(key, None)
    return _filled(Config(), content, str(path)), texts


def list_recipes() -> str:
    """Return the recipes, a paragraph each: what they are, and what of them was published."""
    return "\n".join(line for name in recipe_names() for line in _described(name))


def _described(name: str) -> list[str]:
    config, texts = read_recipe(name)
    train = config.train
    averaged = f", weights averaged with decay {config.ema.decay:g}" if config.ema.decay else ""
    sizes = f"batches of {train.global_batch}, normalised over {train.bn_batch or 'a device'}"
    lines = [
        texts.get("about", ""),
        f"{config.model.arch} network, {train.epochs} epochs, {sizes}",
        f"{describe_optimizer(config.optimizer)}; {describe_schedule(config.schedule)}{averaged}",
        f"published: {texts.get('published', 'none')}",
    ]
    return [f"{'' if number else name:10} {line}" for number, line in enumerate(lines)]


def _filled(config: Any, values: dict[str, Any], where: str) -> Any:
    """Return the dataclass with a table's values put in, refusing names and types that do not fit."""
    hints = get_type_hints(type(config), include_extras=False)
    changes = {}
    for name, value in values.items():
        if name not in hints:
            raise UsageError(f"{where}: there is no '{name}' here{nearest(name, hints)}")
        default = getattr(config, name)
        if is_dataclass(default):
            if not isinstance(value, dict):
                raise UsageError(f"{where}: '{name}' is a section, [{name}]")
            changes[name] = _filled(default, value, f"{where} [{name}]")
        else:
            changes[name] = _checked(value, hints[name], f"{where}: {name}")
    return replace(config, **changes)


def _checked(value: Any, hint: Any, where: str) -> Any:
    if get_origin(hint) is tuple:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise UsageError(f"{where} is {value!r}, but a list of texts is needed")
        return tuple(value)
    if get_origin(hint) in (Union, UnionType):
        plain = [part for part in get_args(hint) if get_origin(part) is None]
        if type(value) in plain:
            return value
        hint = next(part for part in get_args(hint) if part not in plain)
    choices = get_args(hint) if get_origin(hint) is not None else ()
    if choices:
        if value not in choices:
            raise UsageError(f"{where} is {value!r}{nearest(str(value), choices)}")
        return value
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise UsageError(f"{where} is {value!r}, but a value of type {hint.__name__} is needed")
    return value


def as_table(config: Config) -> dict[str, Any]:
    """Return the configuration as nested plain values, in the form of a recipe: TOML has lists and no tuples."""
    return {
        section: {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        for section, values in asdict(config).items()
    }


def settings(config: Config) -> dict[str, Any]:
    """Return what may be set of the configuration, as `as_table` does: without what a run derives, which is no option."""
    hints = {part.name: get_type_hints(type(getattr(config, part.name)), include_extras=True) for part in fields(config)}
    return {
        section: {
            name: value
            for name, value in values.items()
            if tyro.conf.Suppress not in getattr(hints[section][name], "__metadata__", ())
        }
        for section, values in as_table(config).items()
    }


def to_toml(table: dict[str, Any]) -> str:
    """Return nested plain values as TOML."""
    return tomli_w.dumps(table)

