"""Train Inception-ResNet-v2: `torchrun -m fastirv2.train`, or `python -m fastirv2.train` on one device."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fastirv2.config import Config, Options, as_table, differences, parse, read_recipe, read_toml, recipe_names, to_toml
from fastirv2.data.counter import hashes
from fastirv2.data.loader import Loader, TrainOrder, ValidationOrder
from fastirv2.data.records import Records, check_classes, open_records
from fastirv2.errors import DataError, StoppedError, UsageError, run_command
from fastirv2.models import create
from fastirv2.models.norm import Statistics, share_statistics
from fastirv2.report.console import Console
from fastirv2.report.curves import plot
from fastirv2.training.checkpoint import Checkpoints
from fastirv2.training.distributed import Agreement, Process, join, leave, neighbours, together
from fastirv2.training.engine import Engine, choose_precision, unit
from fastirv2.training.optim import create_optimizer, set_rate
from fastirv2.training.plan import Plan, make_plan
from fastirv2.training.run import Run, log_interval, restore, save, validate
from fastirv2.training.schedule import for_run, learning_rate

PROGRAM = "fastirv2.train"


def train(run: Run, config: Config) -> None:
    """Take every step from where the run stands to its end; the state is saved whenever it leaves.

    Raises:
        StoppedError: a signal came; the state is saved.
        DivergedError: the loss is no finite number.
    """
    plan = run.plan
    run.begin()
    for step in range(run.step + 1, plan.total_steps + 1):
        rate = learning_rate(step, config.schedule)
        set_rate(run.optimizer, rate)
        seed_step(config.train.seed, step, run.process.rank)
        run.engine.step(run.train, run.optimizer)
        run.step = step
        run.console.advance(step)

        epoch = plan.ended_by(step)
        received, due = run.agreement.reach(checkpoint=run.checkpoint_due())
        stop = step == config.train.stop_after
        if epoch or step % config.log.every == 0:
            log_interval(run, rate)
        improved = validate(run, epoch) if epoch else False
        if epoch or due or received or stop:
            save(run, best=improved)
        if received and step < plan.total_steps:
            name = signal.Signals(received).name
            raise StoppedError(f"stopped by {name} after step {step}; the state is saved and the same command goes on")
        if stop:
            return


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make what the network draws in a step a function of (seed, step, rank), so that a run resumed draws the same."""
    torch.manual_seed(int(hashes(seed, step, rank)) >> 1)


@dataclass(frozen=True)
class Prepared:
    """What is known before any process group or network exists."""

    config: Config
    plan: Plan
    train: Records
    val: Records
    table: dict[str, Any]
    state: dict[str, Any] | None


def prepare(options: Options, process: Process, console: Console) -> Prepared:
    """Open the data, resolve the configuration, and read the checkpoint to go on from.

    Raises:
        UsageError: the ranks do not divide the batch, or RUN was made with other settings.
        DataError: a data set, or RUN, cannot be used.
    """
    train_set, val_set = open_records(options.train_path), open_records(options.val_path)
    classes = check_classes([train_set, val_set])
    config = resolve(options.config, process, count=len(train_set), classes=len(classes))
    plan = divide(config, process.world, len(train_set))
    table = {
        "recipe": options.recipe, "train": options.train_path, "val": options.val_path, "out": options.out,
        "data": {"train_digest": train_set.digest, "val_digest": val_set.digest}, **as_table(config),
    }  # fmt: skip
    folder = Path(options.out)
    if process.first and not options.dry_run:
        enter(folder, table, fresh=options.fresh)
    known = None if options.fresh else Checkpoints(folder / "checkpoints").load_latest(console.warn)
    return Prepared(config, plan, train_set, val_set, table, known)


def resolve(config: Config, process: Process, *, count: int, classes: int) -> Config:
    """Fill in what the configuration leaves to the data and the device."""
    if config.model.classes and config.model.classes < classes:
        given = config.model.classes
        raise DataError(f"the data has {classes} classes, but --model.classes is {given}; give at least {classes}")
    model = replace(config.model, classes=config.model.classes or classes)
    settings = replace(config.train, amp=choose_precision(config.train.amp, process.device))
    total = divide(config, process.world, count).total_steps
    schedule = for_run(config.schedule, global_batch=settings.global_batch, count=count, total_steps=total)
    return replace(config, model=model, train=settings, schedule=schedule)


def divide(config: Config, world: int, count: int) -> Plan:
    """Divide the configuration's global batch among `world` ranks."""
    settings = config.train
    return make_plan(
        global_batch=settings.global_batch,
        world=world,
        batch=settings.batch,
        bn_batch=settings.bn_batch,
        sync_bn=settings.sync_bn,
        count=count,
        epochs=settings.epochs,
    )


def enter(folder: Path, table: dict[str, Any], *, fresh: bool) -> None:
    """Make RUN, or make sure that the one there was made with the same settings; `fresh` moves it aside first.

    Raises:
        UsageError: RUN is something else, or was made with other settings.
        DataError: RUN cannot be written.
    """
    try:
        if fresh and folder.exists():
            aside = next(path for n in range(1, 10**6) if not (path := folder.with_name(f"{folder.name}.{n}")).exists())
            folder.rename(aside)
        file = folder / "config.toml"
        if file.exists():
            changed = differences(read_toml(file), table)
            if changed:
                raise UsageError(
                    f"{folder} was made with other settings ({'; '.join(changed)}); give those, another --out, or --fresh"
                )
        elif folder.exists() and any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty and no run; give another --out, or --fresh to move it aside")
        folder.mkdir(parents=True, exist_ok=True)
        aside = folder / "config.toml.partial"
        aside.write_text(to_toml(table))
        aside.rename(file)
    except OSError as error:
        raise DataError(f"the run folder {folder} cannot be written: {error.strerror}; choose another --out") from error


def build(prepared: Prepared, folder: Path, process: Process, console: Console) -> Run:
    """Make the network, the optimizer and the input on this rank, and take up the checkpoint."""
    config, plan, state = prepared.config, prepared.plan, prepared.state
    torch.manual_seed(config.train.seed)
    model = create(config.model.arch, config.model.classes, config.model.dropout)
    share_statistics(model, Statistics(neighbours(process, plan.bn_ranks), plan.bn_splits))
    engine = Engine(model, process, amp=config.train.amp, accumulation=plan.accumulation, normalise=unit)
    order = TrainOrder(
        plan.count,
        config.input,
        seed=config.train.seed,
        global_batch=plan.global_batch,
        world=plan.world,
        rank=process.rank,
        parts=plan.accumulation,
        step=state["step"] if state else 0,
    )
    val_order = ValidationOrder(len(prepared.val), config.input, batch=plan.batch, world=plan.world, rank=process.rank)
    shape = {"batch": plan.batch, "device": process.device, "local_world": process.local_world}
    run = Run(
        plan=plan,
        process=process,
        console=console,
        folder=folder,
        table=prepared.table,
        classes=prepared.train.classes,
        checkpoint=config.checkpoint,
        average_statistics=config.train.sync_bn != "off" and plan.bn_ranks < plan.world,
        engine=engine,
        optimizer=create_optimizer(engine.model, config.optimizer),
        train=Loader(prepared.train, order, config.input, **shape),
        val=Loader(prepared.val, val_order, config.input, **shape),
        val_steps=val_order.steps,
        agreement=Agreement(),
    )
    if state:
        restore(run, state)
    return run


def introduce(prepared: Prepared, process: Process, console: Console) -> None:
    """Say what is about to be done."""
    plan, config = prepared.plan, prepared.config
    device = torch.cuda.get_device_name(process.device) if process.device.type == "cuda" else "CPU"
    console.say(
        f"{config.model.arch} network, {config.model.classes} classes; {len(prepared.train):,} training and "
        f"{len(prepared.val):,} validation images, warped to {config.input.resize} and cropped to {config.input.crop} pixels"
    )
    console.say(
        f"{plan.epochs} epochs = {plan.total_steps:,} steps of {plan.global_batch} images: {plan.world} × {device}, "
        f"{plan.accumulation} × {plan.batch} images each, {config.train.amp}, statistics over {plan.bn_images} images"
    )
    rate = learning_rate(1, config.schedule), learning_rate(plan.total_steps, config.schedule)
    console.say(f"learning rate {rate[0]:.3g} at the first step, {rate[1]:.3g} at the last")
    if prepared.state:
        console.say(f"going on after step {prepared.state['step']:,}")


def finish(run: Run) -> None:
    """Draw the curves and say how it ended."""
    run.console.end()
    if run.process.first and run.best_epoch:
        plot([run.folder], run.folder / "curves.png")
        run.console.say(
            f"{'done' if run.step == run.plan.total_steps else f'stopped after step {run.step}, as asked'}: best top-1 error "
            f"{run.best_error:.3f} % after epoch {run.best_epoch}; curves in {run.folder / 'curves.png'}"
        )


def check_usage(options: Options) -> None:
    """Refuse what is wrong whatever the data."""
    for name, value in (("--recipe", options.recipe), ("--train", options.train_path), ("--val", options.val_path)):
        if not value:
            hint = f"; the recipes are {', '.join(recipe_names())}" if name == "--recipe" else ""
            raise UsageError(f"{name} is missing{hint}; see --help")
    if not options.out and not options.dry_run:
        raise UsageError("--out is missing: the folder for the run's checkpoints, logs and curves; see --help")
    divide(options.config, int(os.environ.get("WORLD_SIZE", "1")), count=1)


def list_recipes() -> None:
    """Print the recipes with what they say of themselves."""
    for name in recipe_names():
        config, texts = read_recipe(name)
        settings = config.train
        print(f"{name:10} {texts.get('about', '')}")
        sizes = f"batches of {settings.global_batch}, normalised over {settings.bn_batch or 'a device'}"
        print(f"{'':10} {config.model.arch} network, {settings.epochs} epochs, {sizes}")
        print(f"{'':10} published: {texts.get('published', 'none')}")


def command() -> None:
    """Read the command line and do what it says."""
    first = os.environ.get("RANK", "0") == "0"
    options = parse(sys.argv[1:], silent=not first)
    console = Console(first=first)
    if options.recipes:
        return list_recipes()
    if options.print_config:
        return print(to_toml(as_table(options.config)), end="")
    check_usage(options)
    process = join(options.config.train.device)
    try:
        execute(options, process, console)
    finally:
        leave()


def execute(options: Options, process: Process, console: Console) -> None:
    """Do the run, or say what it would be."""
    prepared = together(lambda: prepare(options, process, console))
    folder = Path(options.out)
    if prepared.state and prepared.state["step"] == prepared.plan.total_steps and not options.dry_run:
        return console.say(
            f"{folder} is done: {prepared.plan.epochs} epochs, best top-1 error {prepared.state['best_error']:.3f} % after "
            f"epoch {prepared.state['best_epoch']}; curves in {folder / 'curves.png'}"
        )
    introduce(prepared, process, console)
    if options.dry_run:
        return None
    run = build(prepared, folder, process, console)
    try:
        train(run, prepared.config)
        finish(run)
    finally:
        run.end()


if __name__ == "__main__":
    run_command(command, PROGRAM)
