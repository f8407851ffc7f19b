"""AOTInductor: a library of compiled kernels with the weights, in a package that torch runs.

A package is tied to the version of torch that made it, to the kind of device and, on a CPU, to the
instructions of the processor.
"""

import logging
import platform
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from launcher.deploy.card import ArtifactError, Card
from launcher.deploy.options import DeployOptions
from launcher.deploy.predictor import Program
from launcher.deploy.source import check_device
from launcher.deploy.targets.base import Subject
from launcher.deploy.targets.exported import exported
from launcher.deploy.targets.processor import instructions, missing
from parallel.versions import version_of
from swin_moe.config import ModelConfig

FILE = "model.pt2"


class Pt2Target:
    """model.pt2 is a package of AOTInductor."""

    needs_calibration = False

    def refusal(self, options: DeployOptions, model: ModelConfig) -> str | None:
        """Grouped products in fp32, and a machine without a C++ compiler."""
        if model.moe and options.products == "grouped" and options.precision == "fp32":
            return (
                "--experts grouped: torch exports this product in bf16 and fp16 alone; take dense or gathered"
            )
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            return "--to pt2 needs a C++ compiler, which this machine lacks: apt-get install g++, or set CXX"
        return None

    def write(self, subject: Subject, folder: Path) -> dict[str, Any]:
        """Export and compile, without files in the caches of torch."""
        from torch._inductor.utils import fresh_cache

        with fresh_cache(), warnings.catch_warnings(action="ignore"), _without_notices():
            torch._inductor.aoti_compile_and_package(exported(subject), package_path=str(folder / FILE))
        return {"instructions": instructions() if subject.device.type == "cpu" else []}

    def open(self, card: Card, folder: Path) -> Program:
        """The package, where it can run."""
        _check(card, folder)
        check_device(card.device)
        try:
            with _without_notices():
                package = torch._inductor.aoti_load_package(str(folder / FILE))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise ArtifactError(
                f"{folder / FILE} cannot be loaded: {reason}; deploy the model again"
            ) from error

        def run(images: Tensor) -> Sequence[Tensor]:
            return tuple(package(images))

        return run


@contextmanager
def _without_notices() -> Iterator[None]:
    """Silence a notice of torch that no CUDA was found, which tells nothing about a program for a CPU."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _check(card: Card, folder: Path) -> None:
    """Refuse a package that would crash here.

    Raises:
        ArtifactError: with what differs.
    """
    again = "deploy the model again here, or take --to onnx, which is tied to none of them"
    made, here = card.versions.get("torch"), version_of("torch")
    if made != here:
        raise ArtifactError(
            f"{folder} was compiled by torch {made}, which alone runs it; here is {here}: {again}"
        )
    processor = card.machine.get("processor")
    if processor != platform.machine():
        raise ArtifactError(f"{folder} was compiled for {processor}; this is {platform.machine()}: {again}")
    if lacking := missing(list(card.options.get("instructions", [])), instructions()):
        raise ArtifactError(
            f"{folder} needs instructions that this processor lacks ({', '.join(lacking)}): {again}"
        )
