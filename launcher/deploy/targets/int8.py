"""ONNX Runtime with products in int8: static quantization (QDQ) over images drawn by a seed.

Weights are symmetric, one scale a channel; activations have one scale a tensor, from the least and the
largest value over the calibration images. What has no constant weight (the products of attention) stays in
fp32, and with it the addition of masks, whose -1e4 would take the range of a scale. So do routers, which
choose experts by small differences, and experts: one that no calibration image chose would have no range.
Legend: N images of h x w pixels.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_shards.augment.normalize import Normalize
from launcher.deploy.card import Card
from launcher.deploy.options import DeployOptions
from launcher.deploy.predictor import Program
from launcher.deploy.targets.base import Subject
from launcher.deploy.targets.onnx_graph import OPSET, write_onnx
from launcher.deploy.targets.onnx_runtime import FILE, PROVIDERS, OnnxTarget, session
from launcher.deploy.targets.processor import instructions
from swin_moe.config import ModelConfig
from swin_moe.weights.input_spec import InputSpec

QUANTIZED = ("Conv", "Gemm", "MatMul")
MODULES = {"merging": ".merge.reduction", "fc2": ".fc2"}  # of --keep-float
SCOPES = "pkg.torch.onnx.name_scopes"  # where torch's exporter writes the modules of a node
BATCH = 8  # images of a calibration batch


class Int8Target:
    """model.onnx is a graph whose products have quantized inputs and weights."""

    needs_calibration = True

    def refusal(self, options: DeployOptions, model: ModelConfig) -> str | None:
        """As ONNX Runtime, and precisions and devices for which it has no products in int8."""
        if options.precision != "fp32":
            return f"--precision {options.precision}: onnx-int8 has the rest of the model in fp32"
        if options.device != "cpu":
            return f"--device {options.device}: onnx-int8 is for processors; take --to pt2 --precision fp16"
        return OnnxTarget().refusal(options, model)

    def write(self, subject: Subject, folder: Path) -> dict[str, Any]:
        """Export, calibrate and quantize."""
        from onnxruntime.quantization import QuantFormat, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        assert subject.calibration is not None
        narrow = not has_vnni(instructions())
        with tempfile.TemporaryDirectory(dir=folder, prefix=".int8-") as work:
            exported, prepared = Path(work, "exported.onnx"), Path(work, "prepared.onnx")
            write_onnx(subject, exported)
            # torch's exporter has folded constants and written shapes; ONNX Runtime's fusions lose the scopes
            quant_pre_process(exported, prepared, skip_optimization=True, skip_symbolic_shape=True)
            nodes = quantized_nodes(prepared, subject.options.keep_float)
            quantize_static(
                prepared,
                folder / FILE,
                _Calibration(subject.calibration, subject.loaded.inputs, subject.options.batch),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTIZED),
                nodes_to_quantize=nodes,
                per_channel=True,
                reduce_range=narrow,
            )
        return {
            "opset": OPSET,
            "calibration_images": len(subject.calibration),
            "quantized_products": len(nodes),
            "weight_bits": 7 if narrow else 8,
            "keep_float": list(subject.options.keep_float),
        }

    def open(self, card: Card, folder: Path) -> Program:
        """A session, with as many threads as torch has."""
        return session(folder / FILE, PROVIDERS["cpu"])


def has_vnni(here: list[str]) -> bool:
    """Whether products of int8 are summed in 32 bits.

    Without VNNI, x86 sums pairs of products in 16 bits, which saturate: ONNX Runtime then wants weights of 7
    bits (`reduce_range`). Processors that are not x86 have no such limit.
    """
    is_x86 = any(flag.startswith("sse") for flag in here)
    return not is_x86 or any("vnni" in flag for flag in here)


def quantized_nodes(path: Path, keep_float: tuple[str, ...]) -> list[str]:
    """The names of the products in a graph that are computed in int8.

    Args:
        path: of the graph.
        keep_float: names of MODULES that stay in fp32.
    """
    import onnx

    graph = onnx.load(path).graph
    constants = {tensor.name for tensor in graph.initializer}
    kept = tuple(MODULES[name] for name in keep_float)
    return [
        node.name
        for node in graph.node
        if node.op_type in QUANTIZED and node.input[1] in constants and _is_quantized(_module(node), kept)
    ]


def _module(node: Any) -> str:
    """The module that a node computes: `model.layers.0.blocks.1.mlp.fc1`."""
    scopes = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), "")
    names = [part.strip().strip("'\"") for part in scopes.strip("[]").split(",")]
    return names[-2] if len(names) > 1 else ""


def _is_quantized(module: str, kept: tuple[str, ...]) -> bool:
    is_of_experts = module.endswith((".mlp", ".experts")) or ".router" in module
    return module != "" and not is_of_experts and not module.endswith(kept or ("\0",))


class _Calibration:
    """Gives ONNX Runtime's calibration its batches; a program of fixed batch gets that many, repeated."""

    def __init__(self, images: Tensor, inputs: InputSpec, batch: tuple[int, int]) -> None:
        self._batches = _calibration_batches(images, inputs, min(max(BATCH, batch[0]), batch[1]))

    def get_next(self) -> dict[str, Any] | None:
        """A batch by the name of the input; None at the end."""
        images = next(self._batches, None)
        return None if images is None else {"images": images.numpy()}


def _calibration_batches(images: Tensor, inputs: InputSpec, size: int) -> Iterator[Tensor]:
    normalize = Normalize(inputs.mean, inputs.std, torch.device("cpu"))
    for start in range(0, len(images), size):
        yield normalize(images[torch.arange(start, start + size) % len(images)])
