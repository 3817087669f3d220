"""Which records make up a batch, and what is drawn for each: the orders of training and of validation."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np

from fastirv2.data import colour, sampler, views
from fastirv2.data.augment import Windows, area_crops, centre_crops, distorted_crops, random_crops
from fastirv2.data.dataset import Records
from fastirv2.errors import DataError, UsageError

LARGEST_RESIZE = 4096  # pixels a side
_MOST_THREADS = 1024  # beyond these a system's limits end the process
_MOST_PREFETCHED = 1024


@dataclass(frozen=True)
class InputConfig:
    """What becomes of an image before the network sees it, and what may work on it."""

    resize: int = 328
    """Side in pixels that images are resized to before they are cropped; in training, where --input.augment is crop."""
    resize_mode: Literal["warp", "short"] = "warp"
    """Both sides to --input.resize, or only the shorter one, which keeps the aspect."""
    crop: int = 299
    """Side in pixels of the crop: random in training, central in validation."""
    augment: Literal["crop", "area", "resnet", "inception"] = "crop"
    """In training: crop and mirror; area crop and mirror; or area crop, colours, mirror as fb.resnet.torch or TF-slim's
    inception have them."""
    interpolation: Literal["auto", "bilinear", "bicubic"] = "auto"
    """The filter of the resize, antialiased; auto: as fb.resnet.torch has it, bicubic, where --input.augment is resnet, else
    bilinear."""
    normalise: Literal["unit", "imagenet"] = "unit"
    """Colours to -1 … 1, or less ImageNet's mean and divided by its standard deviation."""
    sizes: tuple[str, ...] = ()
    """The crop in training by epoch, as 1:192 31:299; --input.resize follows in proportion. Empty: --input.crop throughout."""
    threads: int = 0
    """Host threads of a rank's input pipeline; 0: its share of the processors it may use, for a GPU 32 at most."""
    prefetch: int = 2
    """Batches made ahead."""
    read_ahead: int = 4
    """Batches of an LMDB that the kernel is asked to read before they are due."""
    hw_decoder_load: float = 0.65
    """Share of a batch that goes to a GPU's JPEG engines; 0 makes pixels repeat exactly."""

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.resize:
            raise UsageError(f"--input.crop {self.crop} must lie between 1 and --input.resize {self.resize}")
        if self.resize > LARGEST_RESIZE:
            raise UsageError(f"--input.resize {self.resize} is beyond all use; at most {LARGEST_RESIZE} pixels")
        for name, value, least, most in (
            ("threads", self.threads, 0, _MOST_THREADS),
            ("prefetch", self.prefetch, 1, _MOST_PREFETCHED),
            ("read-ahead", self.read_ahead, 0, _MOST_PREFETCHED),
            ("hw-decoder-load", self.hw_decoder_load, 0, 1),
        ):
            if not least <= value <= most:
                raise UsageError(f"--input.{name} {value} must lie between {least} and {most:,}")
        self.stages()

    @property
    def filter(self) -> Literal["linear", "cubic"]:
        """The filter that images are resized with, as the graph calls it."""
        bicubic = self.interpolation == "bicubic" or (self.interpolation == "auto" and self.augment == "resnet")
        return "cubic" if bicubic else "linear"

    def stages(self) -> list[tuple[int, int, int]]:
        """Return (first epoch, resize, crop) of each stage of training, in order; raises UsageError for nonsense."""
        stages = []
        for text in self.sizes:
            stage = re.fullmatch(r"(\d{1,6}):(\d{1,4})", text, re.ASCII)
            if not stage:
                raise UsageError(f"--input.sizes {text} is not EPOCH:CROP, as in 1:192 31:299")
            epoch, crop = int(stage[1]), int(stage[2])
            stages.append((epoch, max(crop, round(crop * self.resize / self.crop)), crop))
        epochs = [epoch for epoch, _, _ in stages]
        if stages and (epochs[0] != 1 or sorted(set(epochs)) != epochs):
            raise UsageError(f"--input.sizes {' '.join(self.sizes)}: the epochs must rise from 1")
        if not all(crop >= 1 and resize <= LARGEST_RESIZE for _, resize, crop in stages):
            raise UsageError(f"--input.sizes {' '.join(self.sizes)}: crops must lie between 1 and {LARGEST_RESIZE} pixels")
        return stages or [(1, self.resize, self.crop)]


class Fed(NamedTuple):
    """The records of one batch, int64 (B,), their windows, the side in pixels of the output, how many of the B are no
    padding, which comes last, and what was drawn for their colours."""

    numbers: np.ndarray
    windows: Windows
    crop: int
    valid: int
    colours: tuple[np.ndarray, ...] = ()


class Order(Protocol):
    """Batches in their order, without end.

    `colours` names what is drawn for their colours, `cuts` holds each (resize, crop) of windows that are whole pixels of a
    warped image; it is empty where they are others. `views` is how many samples are made of an image: where it is more than
    one, the windows are (B, views, 2), and nothing is drawn for colours.
    """

    colours: Literal["none", "jitter", "distortion"]
    views: int
    cuts: set[tuple[int, int]]

    def __call__(self) -> Fed:
        """Return the next batch."""


class TrainOrder:
    """The batches of one rank from an optimizer step on, without end: `parts` passes of equal size a step."""

    views = 1

    def __init__(
        self,
        records: Records,
        config: InputConfig,
        *,
        seed: int,
        global_batch: int,
        world: int,
        rank: int,
        parts: int,
        step: int,
        block: int = 1,
    ) -> None:
        self._where = (global_batch, world, rank)
        self._config, self._seed, self._count, self._parts, self._block = config, seed, len(records), parts, block
        self._sizes = records.sizes if needs_sizes(config, training=True) else None
        self._stages = config.stages()
        self._step, self._pending = step, deque[Fed]()
        self.cuts = {stage[1:] for stage in self._stages} if self._sizes is None else set()
        self.colours = {"resnet": "jitter", "inception": "distortion"}.get(config.augment, "none")

    def __call__(self) -> Fed:
        """Return the next batch."""
        if not self._pending:
            self._pending.extend(self._draw(self._step))
            self._step += 1
        return self._pending.popleft()

    def _draw(self, step: int) -> list[Fed]:
        """Draw a step's share of this rank."""
        numbers = sampler.batch(self._seed, step, self._count, *self._where, block=self._block)
        epochs = sampler.positions(step, *self._where) // self._count
        first_epoch = step * self._where[0] // self._count  # of the global batch, which has one size on all ranks
        resize, crop = next(stage[1:] for stage in reversed(self._stages) if stage[0] <= first_epoch + 1)
        windows = self._windows(epochs, numbers, resize, crop)
        draw = {"none": lambda *_: (), "jitter": colour.jitter, "distortion": colour.distortion}[self.colours]
        arrays = (numbers, windows.start, windows.end, *draw(self._seed, epochs, numbers))
        parts = zip(*(np.split(array, self._parts) for array in arrays), strict=True)
        return [Fed(part, Windows(start, end), crop, len(part), tuple(drawn)) for part, start, end, *drawn in parts]

    def _windows(self, epochs: np.ndarray, numbers: np.ndarray, resize: int, crop: int) -> Windows:
        """Draw the windows of some samples."""
        sizes = self._sizes[numbers] if self._sizes is not None else None
        if self._config.augment == "crop":
            return random_crops(self._seed, epochs, numbers, resize, crop, sizes)
        draw = distorted_crops if self._config.augment == "inception" else area_crops
        return draw(self._seed, epochs, numbers, sizes)


class ValidationOrder:
    """The batches of one rank over all records in order, padded to one shape; after the last it begins again.

    With 12 or 144 `crops` of an image (data/views.py) an image gives `views` samples, and each batch of records comes
    `passes` times before the next: a validation is steps × passes calls. Raises UsageError for another number of crops.
    """

    colours: Literal["none"] = "none"

    def __init__(self, records: Records, config: InputConfig, *, batch: int, world: int, rank: int, crops: int = 1) -> None:
        self.views, self.passes = views.protocol(crops)
        self.steps = sampler.steps_in_validation(len(records), batch, world)
        self._where = (len(records), batch, world, rank)
        self._config, self._crops = config, crops
        self._sizes = records.sizes if needs_sizes(config, training=False, crops=crops) else None
        self.cuts = {(config.resize, config.crop)} if self._sizes is None and crops == 1 else set()
        self._calls = 0

    def __call__(self) -> Fed:
        """Return the next batch."""
        step, turn = divmod(self._calls, self.passes)
        self._calls = (self._calls + 1) % (self.steps * self.passes)
        numbers, valid = sampler.validation_batch(step, *self._where)
        sizes = self._sizes[numbers] if self._sizes is not None else None
        return Fed(numbers, self._windows(turn, len(numbers), sizes), self._config.crop, valid)

    def _windows(self, turn: int, count: int, sizes: np.ndarray | None) -> Windows:
        """Return the windows of `count` images in a pass over them."""
        if self._crops == 144:
            return views.pass_of_144_crops(turn, self._config.crop, sizes)
        cut = centre_crops if self._crops == 1 else views.twelve_crops
        return cut(count, self._config.resize, self._config.crop, sizes)


def needs_sizes(config: InputConfig, *, training: bool, crops: int = 1) -> bool:
    """Return whether windows depend on the sizes of the images; `crops` of each in validation."""
    return config.resize_mode == "short" or crops == 144 or (training and config.augment != "crop")


def describe(config: InputConfig) -> str:
    """Say what becomes of images in training and in validation."""
    resized = f"warped to {config.resize}" if config.resize_mode == "warp" else f"shorter side {config.resize}"
    crops = " then ".join(f"{crop}" + (f" from epoch {epoch}" if epoch > 1 else "") for epoch, _, crop in config.stages())
    if config.augment == "crop" and not config.sizes:
        return f"{resized} and cropped to {config.crop} pixels"
    colours = f"area crops and colours as {config.augment} has them, "
    trained = {"crop": "", "area": "area crops, "}.get(config.augment, colours)
    return f"{trained}cropped to {crops} pixels; in validation {resized} and cropped to {config.crop}"


def check_input(records: Records, config: InputConfig, *, training: bool, crops: int = 1) -> list[str]:
    """Return what is lost when records as they are stored become this input: a sentence each; `crops` as `needs_sizes` has it.

    Raises:
        DataError: the input would be something else than its options say.
    """
    sentences = []
    area = training and config.augment != "crop"
    for stored in records.resizes:
        sides = [int(side) for side in stored.removeprefix("short:").split("x") if side.isdigit()]
        built = f"{records.path} was built with --resize {stored}"
        if "x" in stored and config.resize_mode == "short" and not area:
            raise DataError(
                f"{built}, so that the aspect of its images is lost, which --input.resize-mode short is there to keep; build "
                "it with --resize none or short:N, or take --input.resize-mode warp"
            )
        if "x" in stored and area:
            sentences.append(
                f"{built}, so that the aspect of its images is lost: the area crops of --input.augment {config.augment} are "
                "distorted by as much; build it with --resize none or short:N"
            )
        if "x" in stored and crops == 144:
            sentences.append(
                f"{built}, so that the aspect of its images is lost: the three squares that 144 crops take at each scale are "
                "one; build it with --resize none or short:N"
            )
        _, resize, crop = max(config.stages(), key=lambda stage: stage[2]) if training else (1, config.resize, config.crop)
        needed = views.scales(config.crop)[-1] if crops == 144 else crop if area else resize
        if sides and min(sides) < needed:
            option = "sizes" if training and config.sizes else "crop" if area else "resize"
            instead = "take 12 crops" if crops == 144 else f"take a smaller --input.{option}"
            sentences.append(
                f"{built}: its images are enlarged to {needed} pixels; build it with at least {needed}, or {instead}"
            )
    if len(records.resizes) > 1:
        sentences.append(f"{records.path} joins LMDBs built with different --resize: {' and '.join(records.resizes)}")
    return sentences
