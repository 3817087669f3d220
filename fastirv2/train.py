"""Train Inception-ResNet-v2: `torchrun -m fastirv2.train`, or `python -m fastirv2.train` on one device."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

from fastirv2.assembly import Prepared, at_largest_crop, build, check_device, divide, fit_batch, prepare, read_beginning
from fastirv2.config import Config, Options, as_table, list_recipes, parse, recipe_names, settings, to_toml
from fastirv2.data.bus_error import on_bus_error
from fastirv2.data.counter import hashes
from fastirv2.data.sampler import batch
from fastirv2.data.samples import describe
from fastirv2.errors import SENTENCES, StoppedError, UsageError, is_out_of_memory, out_of_memory, run_command
from fastirv2.models.freezing import FROZEN
from fastirv2.models.weight_files import Contents
from fastirv2.report.console import Console
from fastirv2.report.final import draw
from fastirv2.report.machine import device_name
from fastirv2.training import signals
from fastirv2.training.between import check_patience, end_for_fault, log_interval, validate
from fastirv2.training.compiled import describe_compile, explained
from fastirv2.training.distributed import (
    Process,
    from_all,
    is_lost_connection,
    join,
    leaving,
    same_on_all,
    together,
)
from fastirv2.training.ema import describe_averaging
from fastirv2.training.folder import begun_by_this_job, check_run, enter, take_up
from fastirv2.training.optim import set_rate
from fastirv2.training.plan import Plan
from fastirv2.training.rehearsal import rehearse
from fastirv2.training.run import Run, save
from fastirv2.training.schedule import describe_scaling, learning_rate
from fastirv2.training.watchdog import Watchdog

PROGRAM = "fastirv2.train"
_DROPOUT_STREAM = 0x64726F706F7574  # "dropout": keeps its hashes apart from the order's and the augmentation's


def train(run: Run, config: Config) -> None:
    """Take every step from where the run stands to its end; the state is saved whenever it leaves.

    Raises:
        StoppedError: a signal came; the state is saved.
        DataError: a record cannot be decoded; the state is saved.
        DivergedError: the loss is no finite number.
    """
    plan = run.plan
    records = partial(records_of, config, plan, run.process.rank)
    if run.pending:
        close_epoch(run)
    if run.step == config.train.stop_after > 0:
        return save(run, last=True)
    for step in range(run.step + 1, plan.total_steps + 1):
        rate = learning_rate(step, config.schedule)
        set_rate(run.optimizer, rate)
        pending = plan.ended_by(step)
        logged = pending > 0 or step % config.log.every == 0
        draw_by = int(hashes(config.train.seed, _DROPOUT_STREAM, step))
        run.engine.step(run.train, run.optimizer, number=step, draw=draw_by, watch=logged)
        run.step, run.pending = step, pending
        check_patience(run, config.train.patience, records)
        run.console.advance(step)

        if logged:
            log_interval(run, rate)
        if run.pending:
            close_epoch(run)
        agreed = run.agree()
        stop = step == config.train.stop_after
        if any(agreed):
            save(run, last=agreed.fault or agreed.signal > 0)
        if agreed.fault:
            end_for_fault(run)
        if agreed.signal and step < plan.total_steps:
            stop_for_signal(run, agreed.signal)
        if stop:
            break
    save(run, last=True)
    if any(from_all(run.fault is not None)):  # in the last step, after which nobody was asked
        end_for_fault(run)


def records_of(config: Config, plan: Plan, rank: int, step: int) -> list[int]:
    """Return the records of a rank in a step, counted from 1."""
    where = (plan.count, plan.global_batch, plan.world, rank)
    return batch(config.train.seed, step - 1, *where, block=config.data.block).tolist()


def close_epoch(run: Run) -> None:
    """Validate the epoch that has ended, save, and draw; a signal that comes meanwhile ends the run, the rest still to do."""
    agreed = validate(run)
    save(run, last=agreed.fault or agreed.signal > 0)
    if agreed.fault:
        end_for_fault(run)
    if agreed.signal:
        stop_for_signal(run, agreed.signal)
    run.reporter.draw()


def stop_for_signal(run: Run, received: int) -> NoReturn:
    """Raise what ends a run that a signal has stopped and whose state is saved."""
    run.reporter.draw(last=True)
    name = signals.name(received)
    raise StoppedError(f"stopped by {name} after step {run.step}; the state is saved and the same command goes on")


def introduce(prepared: Prepared, process: Process, console: Console) -> None:
    """Say what is about to be done."""
    plan, config = prepared.plan, prepared.config
    device = device_name(process.device)
    console.say(
        f"{config.model.arch} network, {config.model.classes} classes; {len(prepared.train):,} training and "
        f"{len(prepared.val):,} validation images, {describe(config.input)}"
    )
    console.say(
        f"{plan.epochs} epochs = {plan.total_steps:,} steps of {plan.global_batch} images: {plan.world} × {device}, "
        f"{plan.accumulation} × {plan.batch} images each, {config.train.amp}, {describe_compile(config.train.compile)}, "
        f"statistics over {plan.bn_images} images"
    )
    if config.train.freeze != "none":
        console.say(f"frozen: {FROZEN[config.train.freeze]}")
    rate = learning_rate(1, config.schedule), learning_rate(plan.total_steps, config.schedule)
    console.say(f"learning rate {rate[0]:.3g} at the first step, {rate[1]:.3g} at the last")
    averaged = describe_averaging(config.ema, global_batch=plan.global_batch, batch=config.schedule.batch)
    for changed in filter(None, (describe_scaling(config.schedule), averaged)):
        console.say(changed)
    for warning in prepared.warnings:
        console.warn(warning)


def conclude(run: Run) -> None:
    """Say how it ended: with the report, where it is done."""
    run.console.end()
    run.reporter.draw(last=True)
    best = f"best top-1 error {run.best_error:.3f} % after epoch {run.best_epoch}"
    best = best if run.best_epoch else "no epoch has ended yet"
    if run.step < run.plan.total_steps:
        goes_on = "as asked; the same command without --train.stop-after goes on"
        return run.console.say(f"stopped after step {run.step}, {goes_on}: {best}")
    report = run.folder / "report.md"
    if run.process.first and report.exists():
        run.console.say("\n" + report.read_text(encoding="utf-8"))
    return run.console.say(f"done: {best}; report.md and curves.png are in {run.folder}")


def check_usage(options: Options) -> None:
    """Refuse what is wrong whatever the data."""
    for name, value in (("--recipe", options.recipe), ("--train", options.train_path), ("--val", options.val_path)):
        if not value:
            hint = f"; the recipes are {', '.join(recipe_names())}" if name == "--recipe" else ""
            raise UsageError(f"{name} is missing{hint}; see --help")
    if not options.out and not options.dry_run:
        raise UsageError("--out is missing: the folder for the run's checkpoints, logs and curves; see --help")
    divide(options.config, int(os.environ.get("WORLD_SIZE", "1")), count=1)


def command() -> int:
    """Read the command line and do what it says; return the exit code."""
    first = os.environ.get("RANK", "0") == "0"
    options = parse(sys.argv[1:], silent=not first)
    console = Console(first=first)
    if options.recipes:
        console.say(list_recipes())
        return 0
    if options.print_config:
        console.say(to_toml(settings(options.config)).rstrip())
        return 0
    check_usage(options)
    watchdog = Watchdog(PROGRAM, options.config.train.timeout, signals.Signals())
    try:
        with leaving():
            process = join(options.config.train.device, watchdog.collective_seconds)
            check_device(options.config, process.device)
            with explained():
                execute(options, process, console, watchdog)
    except SENTENCES as error:
        if not error.shared:
            watchdog.tell(error.exit_code)
        raise
    except RuntimeError as error:
        if is_out_of_memory(error):
            watchdog.tell(UsageError.exit_code)
            raise out_of_memory(error, "--train.batch") from error
        code = watchdog.told()  # or what a lost connection to a rank that failed looks like
        if code is None and watchdog.signals.training and is_lost_connection(error):
            raise watchdog.lost_rank() from error
        if code is None:
            raise
        return code
    finally:
        watchdog.stop()
    return 0


def execute(options: Options, process: Process, console: Console, watchdog: Watchdog) -> None:
    """Do the run, or say what it would be."""
    if options.fresh and same_on_all(begun_by_this_job(Path(options.out))):
        options = replace(options, fresh=False)  # it was heeded when the command first ran
    beginning = read_beginning(options)
    options = fit_batch(options, process, console)
    prepared = together(lambda: prepare(options, process))
    folder, defaults = Path(os.path.abspath(options.out)), as_table(Config())
    if options.dry_run:
        if options.out and not options.fresh:
            together(lambda: check_run(folder, prepared.table, defaults))
        introduce(prepared, process, console)
        return try_out(prepared, folder.parent, process, console, watchdog, beginning)
    lock = together(lambda: enter(folder, prepared.table, defaults, fresh=options.fresh) if process.first else -1)
    state = take_up(folder, process, console)
    step, stop = state["step"] if state else 0, options.config.train.stop_after
    if state and step == prepared.plan.total_steps and not state["pending"]:
        if process.first:
            draw(folder)
        return console.say(
            f"{options.out} is done: {prepared.plan.epochs} epochs, best top-1 error {state['best_error']:.3f} % after epoch "
            f"{state['best_epoch']}; report.md and curves.png are in it"
        )
    if state and stop and step >= stop and not state["pending"]:
        if process.first:
            draw(folder)
        return console.say(f"{options.out} stands after step {step}: --train.stop-after {stop} leaves nothing to do")
    introduce(prepared, process, console)
    before = state["config"]["statistics"]["images"] if state else prepared.plan.bn_images
    if before != prepared.plan.bn_images:
        console.warn(f"normalisation statistics were taken over {before} images so far, and are from here on over others")
    on_bus_error([prepared.train, prepared.val], watchdog.end)
    run = build(prepared, Path(options.out), process, console, watchdog, state, beginning)
    watchdog.describe = lambda: f"after step {run.step}"
    if compiler := run.engine.compiler:
        watchdog.compiling = lambda: compiler.running
    if state:
        console.say(f"going on after step {step:,}")
    state = beginning = None  # a second copy of all weights
    try:
        with run:
            train(run, prepared.config)
            conclude(run)
    finally:
        if process.first:
            os.close(lock)
    return None


def try_out(
    prepared: Prepared, place: Path, process: Process, console: Console, watchdog: Watchdog, beginning: Contents | None
) -> None:
    """Do once what the run will do, at its largest crop, and say what it takes."""
    plan, stages = prepared.plan, prepared.config.input.stages()
    once = replace(plan, accumulation=1, global_batch=plan.world * plan.batch)
    prepared = replace(prepared, config=at_largest_crop(prepared.config), plan=once)
    run = build(prepared, place, process, console, watchdog, None, beginning)
    while not place.is_dir():
        place = place.parent
    try:
        for sentence in rehearse(run, plan, stages, place, prepared.train.data_bytes / len(prepared.train)):
            console.say(sentence)
    finally:
        run.end(with_all=False)


if __name__ == "__main__":
    run_command(command, PROGRAM)
