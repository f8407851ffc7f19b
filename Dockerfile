# The image of swin-moe, for Docker, pyxis and Apptainer; docs/slurm.md#containers says how a cluster uses it.
#
#   docker build -t swin-moe .
#   docker run --rm --gpus all --ipc=host --user "$(id -u):$(id -g)" -v "$PWD:/workspace" \
#       swin-moe train CONFIG --nproc 8
#
# Without a GPU: --build-arg BASE=ubuntu:24.04. Of the base only nvcc and the headers are used, by extensions that are
# compiled at run time (DeepSpeed's optimizer for host memory, Tutel, Apex): torch brings its own CUDA libraries.
# CUDA 13.0 needs a driver of version 580 or later.
ARG BASE=nvidia/cuda:13.0.3-devel-ubuntu24.04
FROM ${BASE}

# g++ and Python.h: Triton and DeepSpeed compile when a run starts. libjpeg-dev: the decoder of the crop of a JPEG.
# tini: process 1, which passes SIGTERM on to swin-moe and collects ended processes.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates g++ libjpeg-dev python3 python3-dev python3-venv tini \
    && rm -rf /var/lib/apt/lists/*

# What is installed from the registry, in a layer of its own: a change of the code does not install torch again.
WORKDIR /opt/swin-moe
COPY setup.py pyproject.toml constraints.txt ./
# `mpi,remote` adds the clients of S3 and Google Cloud Storage, whose own dependencies are not all pinned.
ARG EXTRAS=mpi
RUN python3 -m venv /opt/venv
RUN /opt/venv/bin/python -m pip install --quiet --disable-pip-version-check --no-cache-dir -c constraints.txt -e ".[${EXTRAS}]"

COPY . .
RUN /opt/venv/bin/python -m pip install --quiet --disable-pip-version-check --no-cache-dir -c constraints.txt --no-deps . \
    && rm -rf build

# Any user may run it (--user, pyxis, Apptainer): the home is writable for all, and USER names one who has no entry in
# /etc/passwd. Ubuntu has a user 1000 already; `--build-arg UID=1000` gives its number to swin too.
ARG UID=10001
RUN useradd --create-home --non-unique --uid "${UID}" swin
RUN mkdir -p /workspace && chmod 1777 /workspace /home/swin
ENV PATH=/opt/venv/bin:${PATH} HOME=/home/swin USER=swin
USER swin
WORKDIR /workspace

ENTRYPOINT ["tini", "--", "swin-moe"]
CMD ["--help"]
