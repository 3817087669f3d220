"""One graph for training and validation, on CPU and GPU: decode, then one resize that warps, crops and mirrors at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nvidia.dali import Pipeline, fn, types


def image_pipeline(
    source: Callable[[], list[Any]],
    *,
    batch: int,
    crop: int,
    device_id: int | None,
    threads: int,
    prefetch: int,
    form: str,
    hw_decoder_load: float,
) -> Pipeline:
    """Make the graph from `source`'s batches to images and labels.

    The window of each sample is given relative to its image. Resizing the window to crop² equals resizing the whole image
    to resize² and cropping, to within 1/255, in one kernel instead of two; a window whose right edge comes first is mirrored.
    EXIF orientation is applied, as it is when records are built.

    Args:
        source: called once a batch, ahead of time; returns [images as `form` says (a list of uint8 arrays), window starts
            float32 (batch, 2) as (y, x) in 0 … 1, window ends likewise, labels int64 (batch,)]. The arrays are not copied:
            they stay as they are until the batch has come out.
        batch: samples a batch.
        crop: side of the output in pixels.
        device_id: the GPU that decodes and resizes, or None for the CPU.
        threads: host threads of the pipeline.
        prefetch: batches made ahead.
        form: what `source` gives: "encoded" images, "files" (their paths, which the pipeline's threads read), or "planes":
            raw images (3, height, width) in the order blue, green, red.
        hw_decoder_load: share of a batch that goes to a GPU's JPEG engines, 0 … 1; pixels repeat exactly only at 0.

    Returns:
        a pipeline, not built, with two outputs: images uint8 (batch, crop, crop, 3) in RGB, labels int64 (batch,).
    """
    pipeline = Pipeline(
        batch_size=batch, num_threads=threads, device_id=device_id, prefetch_queue_depth=prefetch, exec_dynamic=True
    )
    decoder = {"device": "cpu"} if device_id is None else {"device": "mixed", "hw_decoder_load": hw_decoder_load}
    with pipeline:
        layout = ["CHW" if form == "planes" else None, None, None, None]
        stored, start, end, labels = fn.external_source(
            source=source, num_outputs=4, batch=True, no_copy=True, layout=layout
        )
        if form == "planes":
            images = stored if device_id is None else stored.gpu()
        else:
            encoded = fn.io.file.read(stored) if form == "files" else stored
            images = fn.decoders.image(encoded, output_type=types.RGB, jpeg_fancy_upsampling=True, **decoder)
        images = fn.resize(images, size=(crop, crop), roi_start=start, roi_end=end, roi_relative=True)
        if form == "planes":
            pixels = fn.transpose(images, perm=[1, 2, 0])
            images = fn.color_space_conversion(pixels, image_type=types.BGR, output_type=types.RGB)
        pipeline.set_outputs(images, labels if device_id is None else labels.gpu())
    return pipeline


def decoding_error(data: Any) -> str:
    """Return why the CPU decoder refuses an encoded image, a uint8 array (bytes,), or an empty string when it does not."""
    pipeline = Pipeline(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    with pipeline:
        encoded = fn.external_source(source=lambda: [data], batch=True)
        pipeline.set_outputs(fn.decoders.image(encoded, output_type=types.RGB))
    try:
        pipeline.run()
    except RuntimeError as error:
        return str(error).strip().splitlines()[-1]
    return ""
