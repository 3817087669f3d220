"""What binds the input, what to turn first, and how many GPUs it feeds: pure functions of what was measured."""

from __future__ import annotations

from dataclasses import dataclass, field

DISK = "the disk"
COLD_MATTERS = 0.8  # of the loader's rate: where cold pages leave less, the disk binds
BUSY = 0.85  # of the CPUs' time: above, more threads bring nothing
WORK = {"read": "reading", "decode": "decoding", "resize/crop": "resizing and cropping", "hand-over": "handing over to torch"}


@dataclass(frozen=True)
class Figures:
    """What a verdict rests on."""

    stages: dict[str, float]
    """Images/s of each stage with all before it, in order; the last is the loader's."""
    cpu_share: float
    """Share of the CPUs' time that the loader took."""
    threads: int
    """Host threads of the loader."""
    cpus: int
    """CPUs that it may use."""
    gpus: int = 0
    """GPUs of this host: the loader was measured on one of them, or on none."""
    hw_decoder_load: float = 0.65
    """Share of a batch that goes to a GPU's JPEG engines."""
    build: str | None = None
    """The --resize of fastirv2-build-lmdb that makes records of the size that windows are cut from; None: they have it."""
    cold: float | None = None
    """The loader's images/s from cold pages, where there is such a figure."""
    cold_ratio: float = 1.0
    """Of that to the same measurement from warm pages."""


@dataclass(frozen=True)
class Verdict:
    """What binds, and its share of an image's time (of the disk: of the rate that it costs); GPUs where a need was given."""

    binds: str
    share: float
    turn_first: str
    gpus_fed: float | None = None
    gpus_fed_cold: float | None = None
    gpus_fed_by_all: float | None = None
    sentences: list[str] = field(default_factory=list)


def verdict(figures: Figures, need: float | None = None) -> Verdict:
    """Return the verdict; `need` is the images/s of one GPU."""
    stage, share = binding(figures)
    turn_first = first_knob(stage, figures)
    used = f"the loader took {figures.cpu_share:.0%} of the time of {figures.cpus} CPUs"
    of_what = "of the loader's rate is lost from cold pages" if stage == DISK else "of an image's time"
    work = "decoding and cropping" if stage == "resize/crop" and "decode" not in figures.stages else WORK.get(stage, stage)
    sentences = [f"binds: {work}, {share:.0%} {of_what}; {used}", f"turn first: {turn_first}"]
    if need is None:
        return Verdict(stage, share, turn_first, sentences=sentences)
    rate = _last(figures)
    fed, cold = rate / need, None if figures.cold is None else figures.cold / need
    by_all = fed * _pipelines(figures) if figures.gpus else None
    return Verdict(stage, share, turn_first, fed, cold, by_all, [*sentences, _fed(figures, need, fed, cold, by_all)])


def binding(figures: Figures) -> tuple[str, float]:
    """Return the stage that binds and its share.

    A stage takes the time that it adds to all before it. Where the loader loses a fifth of its rate on cold pages, the disk
    binds whatever the stages say.
    """
    if figures.cold_ratio < COLD_MATTERS:
        return DISK, 1 - figures.cold_ratio
    added, before = {}, 0.0
    for stage, rate in figures.stages.items():
        added[stage], before = 1 / rate - before, 1 / rate
    stage = max(added, key=added.__getitem__)
    return stage, min(1.0, added[stage] / before)


def first_knob(stage: str, figures: Figures) -> str:
    """Return what to turn first where a stage binds."""
    busy = figures.cpu_share >= BUSY
    images = stage in ("decode", "resize/crop")
    build = f"build the LMDB with --resize {figures.build}, which leaves less to decode and resize"
    if stage == DISK:
        return (
            "copy the LMDB to this node's own disk (tools/launch/stage_lmdb.sh), with memory enough to cache it; if it is "
            "there, raise --input.read-ahead"
        )
    if figures.gpus and stage == "decode" and not (busy and figures.hw_decoder_load == 1):
        return _of_the_engines(figures.hw_decoder_load, busy)
    if images and figures.build and (figures.gpus or busy):
        return build
    if busy:
        return f"give it more CPUs: it has {figures.cpus} and uses them"
    if figures.threads < figures.cpus:
        return f"raise --input.threads from {figures.threads} to {figures.cpus}: CPUs are idle"
    return "raise --input.prefetch, and let nothing else run here: the loader does not get all of the CPUs' time"


def _of_the_engines(load: float, busy: bool) -> str:
    """Return which way to turn the share of images that go to a GPU's JPEG engines."""
    if load == 1:
        return "lower --input.hw-decoder-load from 1: the GPU's JPEG engines bind, and its cores decode too"
    why = "which spares the CPUs" if busy else "the GPU's JPEG engines decode beside its cores"
    other = ", or lower it: the engines bind, or the cores" if load and not busy else f", {why}"
    return f"raise --input.hw-decoder-load from {load:g}{other}"


def _last(figures: Figures) -> float:
    """Return the loader's rate."""
    return list(figures.stages.values())[-1]


def _pipelines(figures: Figures) -> float:
    """Return how many such pipelines run at once: one a GPU, and no more than the CPUs have time for."""
    return min(figures.gpus, 1 / max(figures.cpu_share, 1e-9))


def _fed(figures: Figures, need: float, fed: float, cold: float | None, by_all: float | None) -> str:
    """Say how many GPUs are fed."""
    from_cold = "" if cold is None else f", {cold:.1f} from cold pages"
    if by_all is None:
        return f"feeds: {fed:.1f} GPUs of {need:,.0f} images/s{from_cold}; decoded by CPUs alone, as the loader used no GPU"
    return (
        f"feeds: {fed:.1f} GPUs of {need:,.0f} images/s{from_cold}, measured with the pipeline of one GPU; with one on each of "
        f"this host's {figures.gpus} it would be {by_all:.1f}, reckoned from the CPUs' time, which is enough for "
        f"{1 / max(figures.cpu_share, 1e-9):.1f} pipelines; what they would share of disk and memory is left out"
    )
