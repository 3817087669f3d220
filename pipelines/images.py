"""One graph for training and validation, on CPU and GPU: decode, one resize that warps, crops and mirrors, then colours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from nvidia.dali import Pipeline, __version__, fn, tensors, types
from nvidia.dali.data_node import DataNode

from .colours import COLOURS

# Those that turn images by their EXIF block: before 2.2 the others left them lying.
DECODERS = fn.decoders if tuple(map(int, __version__.split(".")[:2])) >= (2, 2) else fn.experimental.decoders
_FILTERS = {"linear": types.INTERP_LINEAR, "cubic": types.INTERP_CUBIC}


def image_pipeline(
    source: Callable[[], list[Any]],
    *,
    batch: int,
    device_id: int | None,
    threads: int,
    prefetch: int,
    form: Literal["encoded", "files", "planes"],
    colours: Literal["none", "jitter", "distortion"],
    interpolation: Literal["linear", "cubic"],
    whole: bool,
    hw_decoder_load: float,
    views: int = 1,
) -> Pipeline:
    """Make the graph from `source`'s batches to images and labels.

    The window of each sample is given relative to its image. Resizing the window to the output's size equals resizing the
    whole image and cropping, to within 1/255, in one kernel instead of two; a window whose right edge comes first is
    mirrored. EXIF orientation is applied, as it is when records are built.

    Args:
        source: called once a batch, ahead of time; returns [images as `form` says (a list of uint8 arrays), window starts
            float32 (batch, 2) as (y, x) in 0 … 1, window ends likewise, sizes of the output in pixels, float32 (batch, 2),
            labels int64 (batch,), and what `colours` takes], or the `handles` of these. The arrays are not copied: they
            stay as they are until the batch has come out.
        batch: samples a batch.
        device_id: the GPU that decodes and resizes, or None for the CPU.
        threads: host threads of the pipeline.
        prefetch: batches made ahead.
        form: what `source` gives: "encoded" images, "files" (their paths, which the pipeline's threads read), or "planes":
            raw images (3, height, width) in the order blue, green, red.
        colours: the graph of `colours.py` that the images go through; "jitter" and "distortion" take three arrays more.
        interpolation: the filter of the resize, antialiased.
        whole: every image is stored at the size that windows are cut from, so that nothing is resized: windows are given in
            pixels, as their top left corners int32 (batch, 2) and sizes int32 (batch, 2), (y, x), and by int32 (batch,) of
            what is mirrored, in place of the window starts, ends and sizes above. Only what is cut out is decoded.
        hw_decoder_load: share of a batch that goes to a GPU's JPEG engines, 0 … 1; pixels repeat exactly only at 0.
        views: windows of an image, which is decoded once: where it is more than one, window starts and ends are float32
            (batch, views, 2), the images are not `whole`, and `colours` is "none".

    Returns:
        a pipeline, not built, with two outputs: images (batch, height, width, 3), or (batch, views, height, width, 3) of
        several views, in RGB, 0 … 255, uint8, or float16 from "jitter", which exceeds that range; labels int64 (batch,).
    """
    pipeline = Pipeline(
        batch_size=batch, num_threads=threads, device_id=device_id, prefetch_queue_depth=prefetch, exec_dynamic=True
    )
    decoder = {"device": "cpu"} if device_id is None else {"device": "mixed", "hw_decoder_load": hw_decoder_load}
    decoder |= {"output_type": types.RGB, "jpeg_fancy_upsampling": True}
    count = 5 if colours == "none" else 8
    with pipeline:
        stored, start, end, size, labels, *drawn = fn.external_source(
            source=source,
            num_outputs=count,
            batch=True,
            no_copy=True,
            layout=["CHW" if form == "planes" else None, *[None] * (count - 1)],
        )
        stored = _on_device(stored, device_id) if form == "planes" else stored
        stored = fn.io.file.read(stored) if form == "files" else stored
        if whole:
            images = _cut(stored, start, end, size, form, decoder)
        else:
            images = stored if form == "planes" else DECODERS.image(stored, **decoder)
            windows = [(start, end)] if views == 1 else [(start[view], end[view]) for view in range(views)]
            options = {"size": size, "interp_type": _FILTERS[interpolation], "roi_relative": True}
            resized = [fn.resize(images, roi_start=first, roi_end=last, **options) for first, last in windows]
            images = resized[0] if views == 1 else fn.stack(*resized)
        if form == "planes":
            images = fn.transpose(images, perm=[1, 2, 0] if views == 1 else [0, 2, 3, 1])
            images = fn.color_space_conversion(images, image_type=types.BGR, output_type=types.RGB)
        if colours != "none":
            images = COLOURS[colours](images, *drawn)
        pipeline.set_outputs(images, _on_device(labels, device_id))
    return pipeline


def _cut(
    stored: DataNode, corner: DataNode, shape: DataNode, mirrored: DataNode, form: str, decoder: dict[str, Any]
) -> DataNode:
    """Return windows in whole pixels, mirrored where asked; of encoded images no more is decoded than they need."""
    if form == "planes":
        images = fn.slice(stored, start=corner, shape=shape, axes=[1, 2])
    else:
        images = DECODERS.image_slice(stored, start=corner, shape=shape, axes=[0, 1], **decoder)
    return fn.flip(images, horizontal=mirrored)


def _on_device(node: DataNode, device_id: int | None) -> DataNode:
    """Bring data to where the images are."""
    return node if device_id is None else node.gpu()


def handles(arrays: list[Any]) -> list[Any]:
    """Return what a graph's source gives, a list of arrays first, as DALI's own handles of the same memory.

    DALI makes such handles of arrays anyway, and lets go of them where its threads are done with them: of each image's in turn,
    which waits for Python's lock while a step is being queued. Whoever keeps these has the last one go where Python runs.
    """
    images, *others = arrays
    return [[tensors.TensorCPU(image, "") for image in images], *(tensors.TensorListCPU(other, "") for other in others)]


def decoding_error(data: Any) -> str:
    """Return why the CPU decoder refuses an encoded image, a uint8 array (bytes,), or an empty string when it does not."""
    pipeline = Pipeline(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    with pipeline:
        encoded = fn.external_source(source=lambda: [data], batch=True)
        pipeline.set_outputs(DECODERS.image(encoded, output_type=types.RGB))
    try:
        pipeline.run()
    except RuntimeError as error:
        return str(error).strip().splitlines()[-1]
    return ""
