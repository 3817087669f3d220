"""The demo's image folders: 16 photographs that scikit-image ships, each a class of many views of itself.

Validation images are other views of the same 16 photographs: they show that the whole chain learns, not that it generalises.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import os
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from PIL import Image

from fastirv2.errors import DataError, UsageError, run_command

PROGRAM = "fastirv2.demo"
PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "clock_motion.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "page.png",
    "retina.jpg",
    "rocket.jpg",
)
VIEWS = {"train": 40, "val": 10}
MARKER = "demo.json"
ASIDE = ".writing"
JPEG_QUALITY = 92


@dataclass(frozen=True)
class Options:
    """Write the demo's image folders: DIR/train/CLASS and DIR/val/CLASS, 16 classes of 40 and 10 JPEG files."""

    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """The folder to write; it is made if missing, and must hold nothing else."""
    seed: int = 0
    """The same seed gives the same files, byte for byte, on the same versions of numpy and Pillow."""


@dataclass(frozen=True)
class Sample:
    """One image to write: which view of which photograph, and the file (relative to DIR) that it goes to."""

    file: Path
    photograph: str
    key: tuple[int, int, int]
    """The numbers of split, class and view: with the seed, all that its random numbers depend on."""


def samples() -> list[Sample]:
    """Return every image of the demo, in the order in which they are written."""
    return [
        Sample(Path(split, Path(photograph).stem, f"{view:04d}.jpg"), photograph, (split_number, label, view))
        for split_number, (split, count) in enumerate(VIEWS.items())
        for label, photograph in enumerate(PHOTOGRAPHS)
        for view in range(count)
    ]


def photograph_folder() -> Path:
    """Return the folder of images inside the installed scikit-image; its own loader might download what is there already."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise DataError("the demo's photographs come with scikit-image, which is not installed: pip install scikit-image")
    folder = Path(spec.origin).parent / "data"
    missing = [name for name in PHOTOGRAPHS if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"{folder} has no {', '.join(missing)}: this release of scikit-image ships other photographs; "
            "install the one that constraints.txt names"
        )
    return folder


@functools.cache
def load_photograph(file: Path) -> Image.Image:
    """Return the photograph as RGB, its shorter side at most 512 px: more would only cost time."""
    with Image.open(file) as opened:
        photograph = opened.convert("RGB")
    scale = min(1.0, 512 / min(photograph.size))
    width, height = (round(extent * scale) for extent in photograph.size)
    return photograph.resize((width, height), Image.Resampling.LANCZOS)


def cut_view(photograph: Image.Image, random: np.random.Generator) -> Image.Image:
    """Return a random turned square of the photograph, 160–200 px a side, all of whose pixels lie inside the photograph.

    The square covers 15–70 % of the area of the largest one that fits at its angle.
    """
    angle = math.radians(random.uniform(-20, 20))
    reach = math.cos(angle) + abs(math.sin(angle))  # side of the upright box around a turned unit square
    side = math.sqrt(random.uniform(0.15, 0.70)) * min(photograph.size) / reach
    centre_x, centre_y = (random.uniform(side * reach / 2, extent - side * reach / 2) for extent in photograph.size)
    pixels = max(1, math.floor(side))
    right, down = math.cos(angle) * side / pixels, math.sin(angle) * side / pixels
    corner_x = centre_x - (right - down) * pixels / 2
    corner_y = centre_y - (right + down) * pixels / 2
    square = photograph.transform(
        (pixels, pixels),
        Image.Transform.AFFINE,
        (right, -down, corner_x, down, right, corner_y),
        Image.Resampling.BICUBIC,
    )
    size = int(random.integers(160, 201))
    return square.resize((size, size), Image.Resampling.LANCZOS)


def change_light(view: Image.Image, random: np.random.Generator) -> Image.Image:
    """Return the view with another saturation, exposure and white balance."""
    gray = view.convert("L").convert("RGB")
    view = Image.blend(gray, view, random.uniform(0.6, 1.2))
    gains = random.uniform(0.75, 1.25) * random.uniform(0.93, 1.07, size=3)
    levels = np.rint(np.clip(gains[:, None] * np.arange(256), 0, 255)).astype(int)
    return view.point(levels.ravel().tolist())


def write_sample(sample: Sample, root: Path, photographs: Path, seed: int) -> None:
    """Write one image, aside first: a file under its own name is a whole one."""
    random = np.random.Generator(np.random.PCG64([seed, *sample.key]))
    view = change_light(cut_view(load_photograph(photographs / sample.photograph), random), random)
    view.save(root / ASIDE, "JPEG", quality=JPEG_QUALITY)
    target = root / sample.file
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(root / ASIDE, target)


def refuse_other_content(root: Path) -> None:
    """Raise DataError unless everything in `root` is something that the demo writes."""
    if root.exists() and not root.is_dir():
        raise DataError(f"{root} is not a folder: give the demo a folder of its own")
    own = {Path(MARKER), Path(ASIDE)}
    for sample in samples():
        own.update((sample.file, *sample.file.parents))
    for path in root.rglob("*"):
        if path.relative_to(root) not in own:
            raise DataError(f"{path} is not the demo's: give the demo a folder of its own")


def is_complete(root: Path, seed: int) -> bool:
    """Tell whether an earlier call has written everything; raise DataError if it did so with another seed."""
    try:
        written = json.loads((root / MARKER).read_text())["seed"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False
    if written != seed:
        raise DataError(f"{root} holds the demo of seed {written}, not {seed}: remove it or choose another folder")
    return all((root / sample.file).is_file() for sample in samples())


def write_marker(root: Path, seed: int) -> None:
    """Note that all images are there, and what they were made with."""
    made_with = {name: version(name) for name in ("numpy", "pillow", "scikit-image")}
    (root / ASIDE).write_text(json.dumps({"seed": seed, "made_with": made_with}) + "\n")
    os.replace(root / ASIDE, root / MARKER)


def write_demo(root: Path, seed: int) -> None:
    """Write every image, then the marker; what an interrupted call left is written again, which takes seconds."""
    photographs = photograph_folder()
    try:
        root.mkdir(parents=True, exist_ok=True)
        for sample in samples():
            write_sample(sample, root, photographs, seed)
        write_marker(root, seed)
    except OSError as error:
        raise DataError(f"cannot write the demo to {root}: {error.strerror or error}") from error


def main() -> None:
    """Run the command."""
    options = tyro.cli(Options, prog=f"python -m {PROGRAM}")
    if options.seed < 0:
        raise UsageError(f"--seed {options.seed} is negative: give 0 or more")
    root = options.directory
    refuse_other_content(root)
    if is_complete(root, options.seed):
        print(f"{root} is done already")
        return
    write_demo(root, options.seed)
    counts = " and ".join(f"{len(PHOTOGRAPHS) * views} {split}" for split, views in VIEWS.items())
    print(f"{root}: wrote {counts} images of {len(PHOTOGRAPHS)} classes")


if __name__ == "__main__":
    run_command(main, PROGRAM)
