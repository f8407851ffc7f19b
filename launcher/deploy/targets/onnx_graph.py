"""A frozen model as an ONNX graph, by torch's exporter."""

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from launcher.deploy.targets.base import Subject, output_names
from launcher.deploy.targets.exported import exported

OPSET = 20
NEEDED = ("onnx", "onnxscript", "onnxruntime")
INSTALL = "pip install 'swin-moe[export]'"


def packages_missing(*names: str) -> str | None:
    """Why ONNX cannot be used, or None."""
    missing = [name for name in names if find_spec(name) is None]
    return f"ONNX needs {', '.join(missing)}: {INSTALL}" if missing else None


def write_onnx(subject: Subject, path: Path) -> None:
    """Write the graph of a frozen model; weights of more than 2 GB become a second file beside it."""
    program = exported(subject)
    with warnings.catch_warnings(action="ignore"):
        graph = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            custom_translation_table=_translations(),
            input_names=["images"],
            output_names=output_names(len(program.graph_signature.user_outputs)),
            verbose=False,
        )
    assert graph is not None
    graph.save(path)


def _translations() -> dict[Any, Any]:
    """What torch's exporter lacks.

    TopK gives the lower index first among equal values, as a stable sort does.
    """
    from onnxscript import opset20 as op

    def stable_sort(self: Any, *, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
        number = op.Gather(op.Shape(self), op.Constant(value_ints=[dim]))
        return op.TopK(self, number, axis=dim, largest=int(descending), sorted=1)

    return {torch.ops.aten.sort.stable: stable_sort}
