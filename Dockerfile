# fastirv2 in NVIDIA's PyTorch container, which brings torch, DALI (its CUDA 13 build) and apex, built for one another.
# Not yet built: written on a machine without a container engine, where the linter and the pip lines below were run by hand.
#
#   docker build --tag fastirv2 .
#   docker run --gpus all --ipc host --user "$(id -u):$(id -g)" --volume /data:/data:ro --volume /big/runs:/runs fastirv2 \
#       torchrun --nproc-per-node gpu -m fastirv2.train --recipe NAME --train /data/train --val /data/val --out /runs/first
ARG BASE=nvcr.io/nvidia/pytorch:26.05-py3
FROM ${BASE}

# All that setup.py requires except torch and DALI; what the container has within its own constraints stays as it is.
RUN pip install --no-cache-dir --constraint /etc/pip/constraint.txt \
    "jpeglib>=1.0.2,<1.1" lmdb matplotlib numpy pillow protobuf rich safetensors simplejpeg tomli-w tyro

# --no-deps: setup.py asks for DALI by the name of its CUDA 12 wheel, which would overwrite the container's nvidia/dali.
COPY . /opt/fastirv2
RUN pip install --no-cache-dir --no-deps --no-build-isolation /opt/fastirv2

# `docker run --user` may choose another user than this one: so /runs is writable for anyone, and USER has a name, which torch's
# compiler asks for, also where the user has none.
ENV USER=trainer
RUN useradd --uid 10001 --create-home trainer && install --directory --mode 1777 /runs
USER 10001
WORKDIR /runs
RUN python -c "import fastirv2.data, fastirv2.models, fastirv2.pipelines"
