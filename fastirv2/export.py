"""Write a trained network in a form that other programs take: `python -m fastirv2.export CHECKPOINT OUT --format FORMAT`."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from safetensors.torch import save
from tyro.conf import Positional, arg

from fastirv2.errors import DataError, UsageError, run_command
from fastirv2.exporting.card import card
from fastirv2.exporting.onnx_form import as_onnx
from fastirv2.exporting.timm_form import SUFFIXES, check_timm, timm_config_text
from fastirv2.files import write_file
from fastirv2.models.weight_files import Which
from fastirv2.trained import Trained, metadata, open_trained

PROGRAM = "fastirv2.export"
_SUFFIXES = {"timm": SUFFIXES, "safetensors": (".safetensors",), "onnx": (".onnx",)}
_CONFIG = "config.json"


@dataclass(frozen=True)
class Options:
    """Write a trained network for other programs, with a model card beside it."""

    checkpoint: Positional[Annotated[str, arg(metavar="CHECKPOINT")]]
    """A run folder (its best weights), a checkpoint of ours, a safetensors file, or a file of another program."""
    out: Positional[Annotated[Path, arg(metavar="OUT")]]
    """The file to write; the model card goes beside it, with .md after its name."""
    format: Literal["timm", "safetensors", "onnx"]
    """timm: a state dict for its inception_resnet_v2, with config.json beside it; safetensors: with classes, input and errors
    in its header; onnx: any number of images, normalisation folded, held against PyTorch."""
    arch: Literal["paper", "slim"] | None = None
    """The network, where CHECKPOINT does not say it."""
    weights: Which = "auto"
    """A checkpoint's own weights (raw) or their running averages (ema); auto: the averages where there are any."""
    overwrite: bool = False
    """Replace files that are there."""

    def __post_init__(self) -> None:
        suffixes = _SUFFIXES[self.format]
        if self.out.suffix not in suffixes:
            raise UsageError(f"{self.out}: a file of format {self.format} is to end in {' or '.join(suffixes)}")

    @property
    def files(self) -> dict[str, Path]:
        """All that is written, by what it is."""
        config = {"config": self.out.with_name(_CONFIG)} if self.format == "timm" else {}
        return {"weights": self.out, **config, "card": self.out.with_name(f"{self.out.name}.md")}


@dataclass(frozen=True)
class Form:
    """What a format makes of a network: the bytes of its file, lines of Python that use it, and what the card is to add."""

    data: bytes
    usage: list[str]
    notes: dict[str, str]


def timm_form(trained: Trained, out: Path) -> Form:
    """Return a state dict with timm's names."""
    check_timm(trained)
    state = trained.model.state_dict()
    stream = io.BytesIO()
    if out.suffix == ".safetensors":
        stream.write(save(state, {"format": "pt"}))
    else:
        torch.save(state, stream)
    count = len(trained.classes)
    usage = [
        "import timm",
        f'model = timm.create_model("inception_resnet_v2", num_classes={count}, checkpoint_path="{out.name}").eval()',
        f"# with {_CONFIG}, a folder of timm's: timm.create_model('local-dir:FOLDER', pretrained=True)"
        if out.name == "model.safetensors"
        else f"# {_CONFIG} beside it has the preprocessing, in timm's form",
    ]
    return Form(stream.getvalue(), usage, {})


def safetensors_form(trained: Trained, out: Path) -> Form:
    """Return tensors under our names, with all that is known in the header."""
    scores = 'scores = model(model.preprocess("photo.jpg")).softmax(1)  # in the order of model.classes'
    usage = ["import fastirv2", f'model = fastirv2.load("{out.name}")', scores]
    return Form(save(trained.model.state_dict(), metadata(trained)), usage, {})


def onnx_form(trained: Trained, out: Path) -> Form:
    """Return an ONNX model that was held against PyTorch."""
    made = as_onnx(trained)
    crop = trained.input.crop
    usage = [
        "import onnxruntime",
        f'session = onnxruntime.InferenceSession("{out.name}")',
        f'(logits,) = session.run(["logits"], {{"images": images}})  # float32 (N, 3, {crop}, {crop})',
    ]
    checked = f"opset {made.opset}; logits within {made.difference:.2g} of PyTorch's on batches of noise"
    return Form(made.data, usage, {"ONNX": checked})


FORMS: dict[str, Callable[[Trained, Path], Form]] = {"timm": timm_form, "safetensors": safetensors_form, "onnx": onnx_form}


def export(options: Options) -> list[str]:
    """Write it, and return a sentence for each file."""
    for path in options.files.values():
        if path.is_dir() or (path.exists() and not options.overwrite):
            raise DataError(f"{path} exists already; give --overwrite to replace it, or another OUT")
    trained = open_trained(options.checkpoint, options.arch, options.weights)
    form = FORMS[options.format](trained, options.out)
    contents = {
        "weights": form.data,
        "config": timm_config_text(trained) if options.format == "timm" else b"",
        "card": card(trained, options.out.stem, form.usage, form.notes).encode(errors="surrogateescape"),
    }
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        for what, path in options.files.items():
            write_file(path, lambda file, what=what: file.write(contents[what]))
    except OSError as error:
        raise DataError(f"{options.out} cannot be written: {error.strerror or error}; choose another OUT") from error
    checked = [f"{what} {text}" for what, text in form.notes.items()]
    size = f"{len(form.data) / 1e6:,.1f} MB"
    return [f"{path}: {what}{f', {size}' if what == 'weights' else ''}" for what, path in options.files.items()] + checked


def command() -> int:
    """Read the command line and do what it says; return the exit code."""
    flags = tyro.conf.configure(tyro.conf.FlagCreatePairsOff)(Options)
    options = tyro.cli(flags, prog=f"python -m {PROGRAM}", description=Options.__doc__)
    for sentence in export(options):
        print(sentence)
    return 0


if __name__ == "__main__":
    run_command(command, PROGRAM, short=True)
