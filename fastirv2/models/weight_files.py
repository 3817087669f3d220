"""Files of weights, read so that no code in them ever runs: checkpoints of ours, torch's state dicts, safetensors, Keras'."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open

from fastirv2.errors import DataError, UsageError
from fastirv2.models.keras import HDF5, WEIGHTS_IN_ARCHIVE, read_keras

Which = Literal["auto", "raw", "ema"]
Tensors = dict[str, torch.Tensor]

ABOUT = {"arch": str, "classes": list, "input": dict, "results": dict}  # in a safetensors file's header, as JSON each
_ARCHS = ('"paper"', '"slim"')  # by which a header is known to be ours
_OF_A_CHECKPOINT = {"format", "model", "config", "classes", "step", "best_step"}
_WRAPPERS = ("state_dict", "model")  # what other trainers keep a state dict under
_PREFIXES = ("_orig_mod.", "module.", "_orig_mod.")  # what torch.compile and DistributedDataParallel put before names


@dataclass(frozen=True)
class Contents:
    """What a file of weights holds.

    `tensors` are under the names that the file has for them, `about` is what it says of them besides: the rest of a
    checkpoint of ours, or what we have written into a safetensors file's header. `classes` are the names of its classes,
    None where it is a file of others, which does not say. `which` is "raw" or "ema" where the file knows it.
    """

    path: Path
    tensors: Tensors
    about: dict[str, Any] = field(default_factory=dict)
    classes: list[str] | None = None
    which: str = ""


def find_file(path: str | os.PathLike[str]) -> Path:
    """Return the file that a path means: of a run folder its best checkpoint, or its latest while none is the best.

    Raises:
        DataError: there is no such file, or no checkpoint in the folder.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / "checkpoints" / name for name in ("best.pt", "latest.pt")]
        file = next((file for file in found if file.exists()), None) or _without_links(path / "checkpoints")
        if file is None:
            raise DataError(f"{path} is a folder without checkpoints/best.pt: give a run folder, or a file of weights")
        return file
    if not path.exists():
        raise DataError(f"{path} does not exist: there are no weights to read")
    return path


def _without_links(folder: Path) -> Path | None:
    """Return a run's best checkpoint, or its latest, where its file system knows no links: by what the latest says."""
    latest = max(folder.glob("step-????????.pt"), default=None)
    if latest is None:
        return None
    best = folder / f"step-{_unpickled(latest).get('best_step', 0):08d}.pt"
    return best if best.exists() else latest


def read_contents(path: str | os.PathLike[str], weights: Which = "auto") -> Contents:
    """Read what a run folder or a file holds, onto the CPU.

    `weights` chooses between a checkpoint's own ("raw") and their running averages ("ema"); "auto" takes the averages where
    there are any, since it is they that a run then calls its best by.

    Raises:
        DataError: the file is missing, damaged, no file of weights, or holds objects whose loading could run code.
        UsageError: averages are asked for and the file has none.
    """
    file = find_file(path)
    contents = _read(file, weights)
    if weights != "auto" and contents.which not in ("", weights):
        raise UsageError(f"{file} holds {contents.which} weights alone, not {weights} ones")
    return contents


def _read(file: Path, weights: Which) -> Contents:
    """Read a file by what it begins with, whatever it is called."""
    try:
        with file.open("rb") as opened:
            start = opened.read(9)
        if start.startswith(HDF5):
            return Contents(file, read_keras(file))
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                if WEIGHTS_IN_ARCHIVE in archive.namelist():
                    return Contents(file, read_keras(file))
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{file} cannot be read ({_first_line(error)})") from error
    if start[8:] == b"{":  # a header's length, and the header
        return _of_safetensors(file)
    return _of_pickle(file, weights)


def _of_safetensors(file: Path) -> Contents:
    try:
        with safe_open(file, framework="pt") as opened:
            names, header = list(opened.keys()), opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in names}
            about = _about(header) if header.get("arch") in _ARCHS else {}
    except (OSError, SafetensorError, ValueError) as error:
        raise DataError(f"{file} cannot be read as safetensors ({_first_line(error)})") from error
    results = about.get("results", {})
    return Contents(file, tensors, about, about.get("classes"), results.get("weights", ""))


def _about(header: dict[str, str]) -> dict[str, Any]:
    """Return what we have written into a header; raises ValueError where it is something else."""
    about = {name: json.loads(header[name]) for name in ABOUT if name in header}
    for name, value in about.items():
        if not isinstance(value, ABOUT[name]):
            raise ValueError(f"its header's '{name}' is none of ours")
    return about


def _of_pickle(file: Path, weights: Which) -> Contents:
    state = _unpickled(file)
    if isinstance(state, dict) and state.keys() >= _OF_A_CHECKPOINT:
        return _of_checkpoint(file, state, weights)
    for name in _WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not isinstance(state, dict) or not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise DataError(f"{file} is no state dict: tensors by name are needed")
    return Contents(file, {_plain(name): tensor for name, tensor in state.items()})


def _of_checkpoint(file: Path, state: dict[str, Any], weights: Which) -> Contents:
    """Take the weights that are asked for out of a checkpoint of ours."""
    if weights == "ema" and "ema" not in state:
        raise UsageError(f"{file} holds no averaged weights: its run kept none (--ema.decay); take raw ones")
    which = "ema" if "ema" in state and weights != "raw" else "raw"
    tensors = state["ema"]["weights"] if which == "ema" else state["model"]
    rest = {name: value for name, value in state.items() if name not in ("model", "ema", "optimizer", "gate")}
    return Contents(file, dict(tensors), rest, list(state["classes"]), which)


def _unpickled(file: Path) -> Any:
    """Return what torch.save has written; anything but tensors and plain values is refused."""
    if member := damaged_member(file):  # torch takes what it reads
        raise DataError(f"{file} is damaged: {member} in it is not what was written; copy it again")
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{file} holds more than tensors and plain values, or is no file of weights: it is not loaded, since that could "
            "run code that comes with it"
        ) from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # torch raises anything from EOFError to EINVAL, for a seek before the beginning, if it is cut
        raise DataError(f"{file} is cut short, or no file of weights") from error


def damaged_member(path: Path) -> str | None:
    """Return the name of the first member of a zip file whose bytes are not those that were written; None if all are."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip()
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):  # whoever reads it will tell
        return None


def _plain(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(". ")
