"""Our own: the checkpoints of a run, and one safetensors file with global expert names."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from parallel.commit import MANIFEST, latest, read_manifest
from parallel.expert import experts_of, global_name
from parallel.tensors import persistent_buffers, whole_shape
from swin_moe.config import ModelConfig
from swin_moe.registry import load_model_config
from swin_moe.weights.errors import WeightsError
from swin_moe.weights.files import Content, read_config
from swin_moe.weights.translated import Translated, windows_of
from swin_moe.yaml_files import parse_yaml


def checkpoint_in(path: Path) -> Path | None:
    """The checkpoint that a directory is or, being a run or its checkpoints, holds; None where it is none."""
    if (path / MANIFEST).is_file():
        return path
    return latest(path / "checkpoints") or latest(path)


def read_checkpoint(path: Path) -> Content:
    """The master weights of a committed checkpoint, verified, one tensor an expert."""
    from parallel import checkpoint  # imports DeepSpeed, which looks for its device and takes seconds
    from parallel.masters import MASTER

    manifest = read_manifest(path)

    def shapes_of(kind: str) -> dict[str, list[int]]:
        named = (name.partition("/") for name in manifest["tensors"])
        return {name: manifest["tensors"][f"{of}/{name}"] for of, _, name in named if of == kind}

    module = _module_of(shapes_of(MASTER), shapes_of(checkpoint.BUFFER))
    checkpoint.load_weights(path, module, 0)
    return Content(
        tensors={name: tensor.detach() for name, tensor in module.state_dict().items()},
        beside=["exp_avg", "exp_avg_sq"],
        config=_model_section(manifest),
    )


def _model_section(manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    run = parse_yaml(manifest["config"]) if "config" in manifest else None
    return run.get("model") if isinstance(run, dict) else None


def config_of(path: Path) -> ModelConfig | None:
    """The model that a checkpoint, a run or a safetensors file of ours says it is of; None for others."""
    if path.is_dir():
        found = checkpoint_in(path)
        tree = _model_section(read_manifest(found)) if found else None
    else:
        tree = read_config(path)
    return load_model_config(ModelConfig(), **tree) if tree else None


def translate(tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> Translated:
    """Our own names, as they are."""
    windows = windows_of(config, rounds_up=True) if config else {}
    names = {name: name for name in tensors}
    return Translated(format="swin-moe", tensors=dict(tensors), names=names, windows=windows)


def tensors_of(model: nn.Module, num_experts: int) -> dict[str, Tensor]:
    """Every weight of a model under its global name, one tensor an expert.

    Raises:
        WeightsError: some experts are on other ranks.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        experts = experts_of(parameter)
        if experts is None:
            tensors[name] = parameter.detach().cpu()
            continue
        if len(experts) != num_experts or whole_shape(parameter) != list(parameter.shape):
            sliced = "" if len(experts) != num_experts else " in slices"
            raise WeightsError(
                f"the model holds experts {experts.start}..{experts.stop - 1} of {num_experts}{sliced}; "
                "export its checkpoint instead, in one process"
            )
        pieces = parameter.detach().cpu().unbind(0)
        tensors |= {global_name(name, e): piece for e, piece in zip(experts, pieces, strict=True)}
    return tensors | {name: buffer.cpu() for name, buffer in persistent_buffers(model).items()}


def metadata(config: ModelConfig) -> dict[str, str]:
    """What a safetensors file of ours says of its model."""
    return {"format": "pt", "writer": "swin-moe", "config": json.dumps(asdict(config))}


def _module_of(shapes: Mapping[str, list[int]], buffers: Mapping[str, list[int]]) -> nn.Module:
    """An empty module with parameters, and whole-number buffers, of these names and shapes: to read into."""
    root = nn.Module()
    for name, shape in shapes.items():
        place, leaf = _place(root, name)
        place.register_parameter(leaf, nn.Parameter(torch.empty(shape), requires_grad=False))
    for name, shape in buffers.items():
        place, leaf = _place(root, name)
        place.register_buffer(leaf, torch.empty(shape, dtype=torch.int64))
    return root


def _place(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds a tensor of a dotted name, made if need be, and the last part of the name."""
    *parts, leaf = name.split(".")
    for part in parts:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    return root, leaf
