"""A network as ONNX: normalisation folded into the convolutions, any number of images at once, and held against PyTorch."""

from __future__ import annotations

import copy
import logging
import warnings
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fastirv2.errors import DataError, UsageError
from fastirv2.models.branches import merge_siblings
from fastirv2.models.layers import Classifier, ConvNorm
from fastirv2.trained import Trained, metadata

MOST = 1e-4  # that logits may differ by from PyTorch's; of the largest of them, where that is above 1
_BATCHES = (1, 3)  # that are tried


class OnnxFile(NamedTuple):
    """The bytes of a model, the largest difference of its logits to PyTorch's, and the opset that it is written in."""

    data: bytes
    difference: float
    opset: int


def folded(model: nn.Module) -> nn.Module:
    """Return a copy of a network in which each convolution has its normalisation in its own weights and bias."""
    plain = copy.deepcopy(model).eval()
    merge_siblings(plain, False)  # for training: it would normalise what is folded here
    for module in plain.modules():
        if isinstance(module, ConvNorm):
            module.conv = fuse_conv_bn_eval(module.conv, module.bn)
            module.bn = nn.Identity()
    for name, child in list(plain.named_children()):
        if isinstance(child, Classifier):  # which switches autocast off: nothing that a graph could hold
            linear = nn.Linear(child.in_features, child.out_features)
            linear.load_state_dict(child.state_dict())
            setattr(plain, name, linear.eval())
    return plain


@torch.no_grad()
def as_onnx(trained: Trained) -> OnnxFile:
    """Return a model from `images`, float32 (N, 3, crop, crop) normalised as in training, to `logits`, float32 (N, classes).

    Its metadata is that of a safetensors file of ours.

    Raises:
        UsageError: the packages that write and run ONNX are not installed.
        DataError: its outputs are not PyTorch's.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # torch's exporter needs it
    except ImportError as error:
        raise UsageError(f"{error.name} is not installed: pip install onnx onnxscript onnxruntime") from error
    onnxruntime.set_default_logger_severity(3)
    model = _converted(trained)
    for name, text in metadata(trained).items():
        model.metadata_props.add(key=name, value=text)
    data = model.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    opset = next(each.version for each in model.opset_import if not each.domain)
    return OnnxFile(data, _difference(trained, session), opset)


def _converted(trained: Trained) -> object:
    """Return the network as an onnx.ModelProto; what torch's exporter says meanwhile is of no use to anyone here."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    example = torch.zeros(2, 3, trained.input.crop, trained.input.crop)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            folded(trained.model), (example,), dynamo=True, verbose=False, input_names=["images"], output_names=["logits"],
            dynamic_shapes={"x": {0: torch.export.Dim("batch")}},
        )  # fmt: skip
    return program.model_proto


def _difference(trained: Trained, session: object) -> float:
    """Return the largest difference of logits between a session and PyTorch, over batches of noise."""
    differences, scale = [], 1.0
    generator = torch.Generator().manual_seed(0)
    for count in _BATCHES:
        images = torch.rand(count, 3, trained.input.crop, trained.input.crop, generator=generator) * 2 - 1
        expected = trained.model(images)
        (found,) = session.run(["logits"], {"images": images.numpy()})
        differences.append((torch.from_numpy(found) - expected).abs().max())
        scale = max(scale, float(expected.abs().max()))
    largest = float(torch.stack(differences).max())  # torch's is NaN where one of them is, Python's would pass over it
    if not largest <= MOST * scale:
        most = f"{largest:.2g} from those of PyTorch, more than {MOST * scale:.2g}"
        raise DataError(f"the logits of the ONNX model differ by {most}: it is not written")
    return largest
