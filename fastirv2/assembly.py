"""The parts of a run, brought together: data and configuration first, then network, optimizer and input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from fastirv2.config import Config, Options, as_table, read_recipe
from fastirv2.data.dataset import Records, check_classes
from fastirv2.data.faults import Faults
from fastirv2.data.loader import Loader
from fastirv2.data.records import open_records
from fastirv2.data.samples import InputConfig, TrainOrder, ValidationOrder, check_input, needs_sizes
from fastirv2.errors import DataError
from fastirv2.models import ModelConfig, create, last_maps
from fastirv2.models.freezing import freeze
from fastirv2.models.norm import Statistics, share_statistics
from fastirv2.models.weight_files import Contents, read_contents
from fastirv2.models.weights import begin_from, check_architecture
from fastirv2.report.console import Console
from fastirv2.report.machine import device_name, wait_for
from fastirv2.report.reporter import Reporter
from fastirv2.report.utilisation import Utilisation, peak_tflops, utilisation
from fastirv2.training.captured import check_capture, check_graphs
from fastirv2.training.checkpoint import Checkpoints
from fastirv2.training.compiled import choose_compile
from fastirv2.training.distributed import Agreement, Process, neighbours, same_on_all, together
from fastirv2.training.ema import for_run as averaging
from fastirv2.training.engine import Engine, choose_precision
from fastirv2.training.fitting import largest_batch
from fastirv2.training.fused import Begun
from fastirv2.training.optim import create_optimizer
from fastirv2.training.pixels import NORMALISE
from fastirv2.training.plan import Compile, Plan, make_plan, possible_batches
from fastirv2.training.run import Run, restore
from fastirv2.training.schedule import for_run, scale
from fastirv2.training.watchdog import Watchdog

FEWEST_VALUES = 4  # of a channel, that normalisation is taken over


@dataclass(frozen=True)
class Prepared:
    """What is known before any network exists."""

    config: Config
    plan: Plan
    train: Records
    val: Records
    table: dict[str, Any]
    warnings: list[str]


def check_device(config: Config, device: torch.device) -> None:
    """Refuse what a device cannot do, before anything is read; raises UsageError."""
    settings = config.train
    choose_precision(settings.amp, device, deterministic=settings.deterministic)
    choose_compile(settings.compile, device)
    if settings.cuda_graph == "on":
        check_graphs(device)


def read_beginning(options: Options) -> Contents | None:
    """Read, on every rank, the weights that a run begins from; None where it begins from none, or goes on.

    Raises:
        DataError: the file cannot be read.
        UsageError: it holds another network.
    """
    config = options.config
    goes_on = bool(options.out) and not options.fresh and bool(Checkpoints(Path(options.out) / "checkpoints").steps())
    if not config.train.init_from or same_on_all(goes_on):
        return None

    def read() -> Contents:
        contents = read_contents(config.train.init_from)
        check_architecture(contents, config.model.arch)
        return contents

    return together(read)


def prepare(options: Options, process: Process) -> Prepared:
    """Open the data and resolve the configuration.

    Raises:
        DataError: a data set cannot be used.
    """
    train_set, val_set = open_records(options.train_path), open_records(options.val_path)
    classes = check_classes([train_set, val_set])
    config = resolve(options.config, process, count=len(train_set), classes=len(classes))
    warnings = [
        *train_set.warnings,
        *check_labels(train_set),
        *check_input(train_set, config.input, training=True),
        *val_set.warnings,
        *check_input(val_set, config.input, training=False),
    ]
    for records, training in ((train_set, True), (val_set, False)):
        if needs_sizes(config.input, training=training):
            _ = records.sizes  # read here, where every rank ends with one sentence if it cannot be done
        Faults(records, config.data.on_bad).refuse_headless()
    data = {"train": options.train_path, "val": options.val_path}
    digests = {"train_digest": train_set.digest, "val_digest": val_set.digest}
    plan = divide(config, process.world, len(train_set))
    source = {"recipe": options.recipe, "out": options.out, **read_recipe(options.recipe)[1]}
    warnings += [*check_statistics(plan, config.input), *check_effect(config, plan)]
    table = {**source, "statistics": {"images": plan.bn_images}, **as_table(config)}
    return Prepared(config, plan, train_set, val_set, table | {"data": data | digests | table["data"]}, warnings)


def check_labels(records: Records) -> list[str]:
    """Warn of a training set in which there is nothing to tell apart."""
    labels = records.labels
    if labels.min() != labels.max():
        return []
    return [f"all images of {records.path} are of the class {records.classes[labels[0]]}: nothing is learned from them"]


def check_effect(config: Config, plan: Plan) -> list[str]:
    """Warn of settings that do nothing, or not what they say, beside the others."""
    warnings = []
    idle = [name for name in ("alpha", "epsilon") if getattr(config.optimizer, name)]
    if config.optimizer.kind == "sgd" and idle:
        names = " and ".join(f"--optimizer.{name}" for name in idle)
        warnings.append(f"sgd has no use for {names}")
    if plan.count < plan.global_batch:
        warnings.append(
            f"a step takes {plan.global_batch} images and the training set has {plan.count}, so that {plan.epochs} epochs are "
            f"{plan.total_steps:,} steps; give a smaller --train.global-batch"
        )
    if config.schedule.warmup_steps >= plan.total_steps:
        warnings.append(
            f"the warm-up takes all {plan.total_steps:,} steps, so that the learning rate never comes to "
            f"{config.schedule.rate * scale(config.schedule):g}; give a shorter --schedule.warmup-epochs"
        )
    return warnings


def check_statistics(plan: Plan, config: InputConfig) -> list[str]:
    """Warn of normalisation over so few values that no training comes of it.

    Measured at random weights, paper network, float64: the gradient's norm is 3e8 where the last maps give a channel 2 values,
    5e4 at 3 and 150 at 4, and 50 from 8 on. So it is the function's own, whatever the precision; rounding adds to it.
    """
    side = last_maps(min(crop for _, _, crop in config.stages()))
    values = plan.bn_images * side**2
    if values >= FEWEST_VALUES:
        return []
    return [
        f"the last maps are {side} × {side}, so that {plan.bn_images} images give normalisation {values} values of a channel: "
        "gradients explode then, in any precision; give larger images or a larger --train.bn-batch"
    ]


def resolve(config: Config, process: Process, *, count: int, classes: int) -> Config:
    """Fill in what the configuration leaves to the data and the device."""
    given = config.model.classes
    if given and given < classes:
        raise DataError(f"the data has {classes} classes, but --model.classes is {given}; give at least {classes}")
    amp = choose_precision(config.train.amp, process.device, deterministic=config.train.deterministic)
    settings = replace(config.train, amp=amp, compile=choose_compile(config.train.compile, process.device))
    model = replace(config.model, classes=given or classes, merge=choose_merge(config.model, settings.compile, process.device))
    if settings.deterministic:
        config = replace(config, input=replace(config.input, hw_decoder_load=0.0))  # pixels then repeat exactly
    plan = divide(config, process.world, count)
    if settings.cuda_graph == "on":
        check_capture(plan)
    schedule = for_run(config.schedule, global_batch=settings.global_batch, count=count, total_steps=plan.total_steps)
    return replace(config, model=model, train=settings, schedule=schedule)


def choose_merge(model: ModelConfig, compile: Compile, device: torch.device) -> Literal["on", "off"]:
    """Resolve "auto": on where the step was measured to be faster so, which is on a CPU and not compiled."""
    if model.merge == "auto":
        return "on" if compile == "off" and device.type == "cpu" else "off"
    return model.merge


def divide(config: Config, world: int, count: int) -> Plan:
    """Divide the configuration's global batch among `world` ranks."""
    settings = config.train
    return make_plan(
        global_batch=settings.global_batch,
        world=world,
        batch=0 if settings.batch == "auto" else settings.batch,
        bn_batch=settings.bn_batch,
        sync_bn=settings.sync_bn,
        count=count,
        epochs=settings.epochs,
    )


def fit_batch(options: Options, process: Process, console: Console) -> Options:
    """Fill in `--train.batch auto` with what the devices hold of the run's largest images; every rank calls this.

    Raises:
        UsageError: not even the smallest pass fits.
    """
    config = options.config
    settings = config.train
    if settings.batch != "auto":
        return options
    candidates = possible_batches(settings.global_batch, process.world, settings.bn_batch, settings.sync_bn)
    amp = choose_precision(settings.amp, process.device, deterministic=settings.deterministic)
    merge = choose_merge(config.model, choose_compile(settings.compile, process.device), process.device)
    shape = replace(config.model, classes=config.model.classes or 1000, merge=merge)

    def make(alone: Process, batch: int) -> tuple[Engine, Begun]:
        model = new_network(replace(config, model=shape))
        splits = divide(replace(config, train=replace(settings, batch=batch)), process.world, 1).bn_splits if batch else 1
        share_statistics(model, Statistics(splits=splits))
        engine = Engine(
            model,
            alone,
            amp=amp,
            accumulation=1,
            normalise=NORMALISE[config.input.normalise],
            ema=config.ema,
            recompute=settings.recompute,
        )
        return engine, create_optimizer(engine.model, config.optimizer)

    largest = max(crop for _, crop in crops(config))
    batch, said = largest_batch(candidates, make, process, largest)
    console.say(said)
    return replace(options, config=replace(config, train=replace(settings, batch=batch)))


def build(
    prepared: Prepared,
    folder: Path,
    process: Process,
    console: Console,
    watchdog: Watchdog,
    state: dict[str, Any] | None,
    beginning: Contents | None,
) -> Run:
    """Make the network, the optimizer and the input on this rank; take up the checkpoint, or the weights to begin from."""
    config, plan = prepared.config, prepared.plan
    engine = make_engine(prepared, make_network(prepared, process, console, None if state else beginning), process)
    order = partial(
        TrainOrder,
        prepared.train,
        config.input,
        seed=config.train.seed,
        global_batch=plan.global_batch,
        world=plan.world,
        rank=process.rank,
        parts=plan.accumulation,
        block=config.data.block,
    )
    val_order = ValidationOrder(prepared.val, config.input, batch=plan.batch, world=plan.world, rank=process.rank)
    shape = {"batch": plan.batch, "device": process.device, "cpus": process.cpus, "on_bad": config.data.on_bad}
    run = Run(
        plan=plan,
        process=process,
        console=console,
        reporter=Reporter(folder, prepared.table, console, first=process.first),
        folder=folder,
        table=prepared.table,
        classes=prepared.train.classes,
        checkpoint=config.checkpoint,
        sync_bn=config.train.sync_bn,
        engine=engine,
        optimizer=create_optimizer(engine.model, config.optimizer),
        train=Loader(prepared.train, order(step=state["step"] if state else 0), config.input, **shape),
        val=Loader(prepared.val, val_order, config.input, **shape),
        most_bad=max(1, len(prepared.train) // 1000),
        val_steps=val_order.steps,
        agreement=Agreement(watchdog),
        crops=crops(config),
        utilisation=known_utilisation(config, process),
    )
    if config.train.recalibrate:

        def recalibrate(stop: Callable[[], bool]) -> None:
            batches = Loader(prepared.train, order(step=plan.total_steps), config.input, **shape)
            engine.recalibrate(batches, config.train.recalibrate, stop)
            wait_for(process.device)  # kernels still read the last batches, whose memory other graphs may have once it closes
            batches.close()

        run.recalibration = recalibrate
    if state:
        restore(run, state)
    return run


def make_engine(prepared: Prepared, model: nn.Module, process: Process) -> Engine:
    """Make what runs the network on this rank."""
    config, plan = prepared.config, prepared.plan
    return Engine(
        model,
        process,
        amp=config.train.amp,
        accumulation=plan.accumulation,
        normalise=NORMALISE[config.input.normalise],
        label_smoothing=config.train.label_smoothing,
        clip=config.optimizer.clip,
        ema=averaging(config.ema, global_batch=plan.global_batch, batch=config.schedule.batch),
        compile=config.train.compile,
        recompute=config.train.recompute,
        capture=config.train.cuda_graph == "on",
    )


def new_network(config: Config) -> nn.Module:
    """Make the network of a configuration at random, with what is to stay as it is frozen."""
    model = create(config.model.arch, config.model.classes, config.model.dropout, merge=config.model.merge == "on")
    freeze(model, config.train.freeze)
    return model


def make_network(prepared: Prepared, process: Process, console: Console, beginning: Contents | None) -> nn.Module:
    """Make the network as it begins."""
    config, plan = prepared.config, prepared.plan
    torch.manual_seed(config.train.seed)
    model = new_network(config)
    if beginning:
        console.say(together(lambda: begin_from(model, beginning, prepared.train.classes)))
    share_statistics(model, Statistics(neighbours(process, plan.bn_ranks), plan.bn_splits))
    return model


def crops(config: Config) -> list[tuple[int, int]]:
    """Return the first epoch of each crop in training, and its side in pixels."""
    return [(first, crop) for first, _, crop in config.input.stages()]


def at_largest_crop(config: Config) -> Config:
    """Return the configuration with its largest crop from the first epoch on."""
    largest = max(crop for _, crop in crops(config))
    return replace(config, input=replace(config.input, sizes=(f"1:{largest}",) if config.input.sizes else ()))


def known_utilisation(config: Config, process: Process) -> Utilisation | None:
    """Return what tells the utilisation of all devices, or None where nothing is known of their peak."""
    peak = config.device.peak_tflops or peak_tflops(device_name(process.device), config.train.amp)
    return utilisation(partial(new_network, config), crops(config), peak_tflops=peak, devices=process.world)
