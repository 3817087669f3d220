"""Say what is in images: `python -m fastirv2.predict CHECKPOINT IMAGE…`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

import numpy as np
import torch
import tyro
from tyro.conf import Positional, arg

from fastirv2.data.picture_files import find_pictures
from fastirv2.data.samples import describe
from fastirv2.errors import DataError, UsageError, put, run_command
from fastirv2.files import write_file
from fastirv2.models.weight_files import Which
from fastirv2.scoring.network import Network, enough_memory
from fastirv2.scoring.progress import progress
from fastirv2.scoring.protocol import choose_protocol
from fastirv2.scoring.stream import stream
from fastirv2.trained import PUBLIC_INPUT, open_trained
from fastirv2.training.distributed import Process, join
from fastirv2.training.engine import choose_precision
from fastirv2.training.plan import Amp

PROGRAM = "fastirv2.predict"
_BATCH = {"cuda": 256, "cpu": 16}


@dataclass(frozen=True)
class Options:
    """Say what is in images, by a trained network. An image that cannot be read is said on stderr and passed over."""

    checkpoint: Positional[Annotated[str, arg(metavar="CHECKPOINT")]]
    """A run folder (its best weights), a checkpoint of ours, a safetensors file, or a file of another program."""
    images: Positional[Annotated[tuple[str, ...], arg(metavar="IMAGE…")]]
    """Images, folders of images at any depth, or text files that list images, a path a line."""
    arch: Literal["paper", "slim"] | None = None
    """The network, where CHECKPOINT does not say it."""
    weights: Which = "auto"
    """A checkpoint's own weights (raw) or their running averages (ema); auto: the averages where there are any."""
    top: Annotated[int, arg(metavar="K")] = 5
    """Classes of each image, the most probable first."""
    features: Annotated[Path | None, arg(metavar="OUT.npy")] = None
    """Write what the last layer sees of each image into this file too, float32: 2048 numbers, 1536 of the slim network. The
    rows are the images that could be read, as they are printed."""
    json: bool = False
    """Print a line of JSON for each image."""
    batch: Annotated[int, arg(metavar="N")] = 0
    """Images at once; 0: 256 on a GPU, 16 on a CPU."""
    amp: Amp = "auto"
    """Precision, as in training; auto: bf16 where the device computes in it, else fp32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU if there is one, else the CPU."""

    def __post_init__(self) -> None:
        if self.top < 1 or self.batch < 0:
            raise UsageError(f"--top must be at least 1 and --batch not negative; got {self.top}, {self.batch}")
        if not self.images:
            raise UsageError("name at least one image, folder or list of images")
        if self.features and (self.features.is_dir() or not self.features.parent.is_dir()):
            raise DataError(f"{self.features} cannot be written: a file in a folder that exists is needed")


@dataclass
class Tally:
    """What became of the images."""

    read: int = 0
    refused: int = 0
    features: int = 0  # numbers of each

    def refuse(self, file: str, reason: str) -> None:
        """Say on stderr that an image is passed over."""
        self.refused += 1
        print(f"{PROGRAM}: {file} cannot be read: {reason}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Predictor:
    """Names the classes of images."""

    options: Options
    process: Process
    tally: Tally = field(default_factory=Tally)

    def __call__(self) -> Iterator[np.ndarray]:
        """Print the classes of all images, a batch at a time, and yield their features, float32 (B, F)."""
        options, device = self.options, self.process.device
        trained = open_trained(options.checkpoint, options.arch, options.weights)
        if trained.input is PUBLIC_INPUT:
            shown = f"it is shown what public weights are: {describe(trained.input)}"
            print(f"{PROGRAM}: {trained.source} does not say what its network was shown; {shown}", file=sys.stderr, flush=True)
        network = Network(trained, device, choose_precision(options.amp, device))
        size = options.batch or _BATCH[device.type]
        files = list(find_pictures(options.images))
        settings = {"batch": min(size, len(files)), "threads": self.process.cpus, "refuse": self.tally.refuse}
        with progress(len(files), "images", shown=not sys.stdout.isatty()) as advance:
            for names, images in stream(files, choose_protocol(trained.input).input, **settings):
                scores = network(images.to(device, non_blocking=True))
                best = scores.exp().topk(min(options.top, scores.shape[1]))
                for name, values, labels in zip(names, best.values.tolist(), best.indices.tolist(), strict=True):
                    self._say(
                        name, [(trained.classes[label], label, value) for label, value in zip(labels, values, strict=True)]
                    )
                self.tally.read += len(names)
                self.tally.features = network.features.shape[1]
                advance(len(names))
                yield network.features.cpu().numpy()

    def _say(self, file: str, best: list[tuple[str, int, float]]) -> None:
        """Print an image's classes; the reader of a pipe may have them at once. Raises DataError where the disk is full."""
        if self.options.json:
            top = [{"class": name, "label": label, "probability": round(value, 6)} for name, label, value in best]
            text = json.dumps({"path": file, "top": top})
        else:
            text = "\n".join([file, *(f"{100 * value:7.2f} %  {name}" for name, _, value in best)])
        put(text)


def write_features(out: Path, predictor: Predictor) -> None:
    """Print the classes of all images while their features go into a .npy file, which is there once it is whole."""

    def write(file: BinaryIO) -> None:
        np.lib.format.write_array_header_1_0(file, _header(0, 0))
        start = file.tell()
        for features in predictor():
            file.write(np.ascontiguousarray(features, "<f4").tobytes())
        _refuse_nothing(predictor.tally)
        file.seek(0)  # now their number is known; numpy leaves room for it
        np.lib.format.write_array_header_1_0(file, _header(predictor.tally.read, predictor.tally.features))
        if file.tell() != start:
            raise RuntimeError(f"numpy wrote headers of {start} and {file.tell()} bytes")

    try:
        write_file(out, write)
    except BrokenPipeError:  # of stdout
        raise
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror or error}; choose another --features") from error


def _header(rows: int, columns: int) -> dict[str, object]:
    return {"descr": "<f4", "fortran_order": False, "shape": (rows, columns)}


def _refuse_nothing(tally: Tally) -> None:
    if not tally.read:
        raise DataError("none of the images could be read" if tally.refused > 1 else "the image could not be read")


def command() -> int:
    """Read the command line and do what it says; return the exit code."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("predict works on one device: start it with python -m fastirv2.predict, without torchrun")
    single = tyro.conf.configure(tyro.conf.FlagCreatePairsOff)(Options)
    options = tyro.cli(single, prog=f"python -m {PROGRAM}", description=Options.__doc__)
    predictor = Predictor(options, join(options.device))
    with enough_memory(), torch.no_grad():
        if options.features:
            write_features(options.features, predictor)
        else:
            for _ in predictor():
                pass
    _refuse_nothing(predictor.tally)
    if predictor.tally.refused:
        of = predictor.tally.read + predictor.tally.refused
        print(f"{PROGRAM}: {predictor.tally.refused:,} of {of:,} images were passed over", file=sys.stderr)
    return 0


if __name__ == "__main__":
    run_command(command, PROGRAM, short=True)
