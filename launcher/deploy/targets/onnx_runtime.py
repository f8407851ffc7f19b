"""ONNX Runtime: a graph that it runs, on any processor that it supports and without torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from launcher.deploy.card import ArtifactError, Card
from launcher.deploy.options import DeployOptions
from launcher.deploy.predictor import Program
from launcher.deploy.targets.base import Subject
from launcher.deploy.targets.onnx_graph import NEEDED, OPSET, packages_missing, write_onnx
from swin_moe.config import ModelConfig

FILE = "model.onnx"
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxTarget:
    """model.onnx is a graph with its weights."""

    needs_calibration = False

    def refusal(self, options: DeployOptions, model: ModelConfig) -> str | None:
        """Precisions and experts that ONNX Runtime has no kernels for, and packages that are missing."""
        if reason := packages_missing(*NEEDED):
            return reason
        return _without_kernels(options, model) or _without_provider(options)

    def write(self, subject: Subject, folder: Path) -> dict[str, Any]:
        """Export the graph."""
        write_onnx(subject, folder / FILE)
        return {"opset": OPSET}

    def open(self, card: Card, folder: Path) -> Program:
        """A session, with as many threads as torch has."""
        return session(folder / FILE, PROVIDERS[card.device])


def session(path: Path, provider: str) -> Program:
    """A graph that is ready to run.

    Raises:
        ArtifactError: ONNX Runtime is missing or refuses the graph.
    """
    if reason := packages_missing("onnxruntime"):
        raise ArtifactError(f"{path}: {reason}")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 4  # fatal
    try:
        opened = onnxruntime.InferenceSession(path, options, providers=[provider])
    except Exception as error:  # its errors have no common base but this
        raise ArtifactError(f"ONNX Runtime cannot load {path}: {_reason(error)}") from error

    def run(images: Tensor) -> Sequence[Tensor]:
        try:
            outputs = opened.run(None, {"images": images.cpu().numpy()})
        except Exception as error:
            raise ArtifactError(f"ONNX Runtime cannot run {path}: {_reason(error)}") from error
        return [torch.from_numpy(output) for output in outputs]

    return run


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _without_kernels(options: DeployOptions, model: ModelConfig) -> str | None:
    if options.precision == "bf16":
        return "--precision bf16: ONNX Runtime has no kernels for it; take fp32, fp16 or --to pt2"
    if model.moe is None:
        return None
    if options.products == "grouped":
        return "--experts grouped: ONNX has no grouped product; take dense or gathered"
    return None


def _without_provider(options: DeployOptions) -> str | None:
    import onnxruntime

    provider = PROVIDERS[options.device]
    if provider in onnxruntime.get_available_providers():
        return None
    return f"--device {options.device}: this ONNX Runtime lacks it: pip install onnxruntime-gpu in its place"
