"""Our own: the checkpoints of a run, and one safetensors file with global expert names."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from parallel.checkpoint.commit import latest
from parallel.checkpoint.manifest import MANIFEST, CheckpointError, read_manifest
from parallel.checkpoint.reader import CheckpointReader
from parallel.checkpoint.scores import resolved
from parallel.checkpoint.verify import problems
from parallel.experts.names import BUFFER, EMA, MASTER, TEACHER, persistent_buffers, unsliced_shape
from parallel.experts.placement import experts_of, global_name
from swin_moe.config import ModelConfig
from swin_moe.recipes import load_model_config
from swin_moe.renamed import current_names
from swin_moe.weights.converted import ConvertedStateDict, learned_windows, windows_of
from swin_moe.weights.dense import put_head
from swin_moe.weights.errors import WeightsError
from swin_moe.weights.files import Content, read_config
from swin_moe.weights.parts import DENSE_HEADS
from swin_moe.yaml_files import parse_yaml

# what a backbone has under our names alone: a Swin, or an LR-Net
FIRST = "layers.0.blocks.0.attention.", "layers.0.blocks.0.relation."
MISSING = {  # what a checkpoint without a kind of weights lacks
    MASTER: "weights",
    EMA: "moving average of the weights: its run was trained without train.ema_decay",
    TEACHER: "teacher: the task of its run has none that is a moving average",
}


def checkpoint_in(path: Path) -> Path | None:
    """The checkpoint that a directory is or, being a run or its checkpoints, holds; None where it is none.

    RUN/checkpoints/best stands for the best checkpoint of a run.
    """
    path = resolved(path)
    if (path / MANIFEST).is_file():
        return path
    return latest(path / "checkpoints") or latest(path)


def read_checkpoint(path: Path, kind: str = MASTER) -> Content:
    """The master weights of a committed checkpoint, or an average of them; verified, one tensor an expert.

    What it holds of other weights is named as not used. The state of the optimizer goes without saying.

    Raises:
        CheckpointError: it is damaged; WeightsError: it does not hold the average `kind`.
    """
    stored = CheckpointReader(path)
    if wrong := problems(path):
        raise CheckpointError(f"could not verify {path}: {'; '.join(wrong)}")
    if kind not in stored.kinds():
        raise WeightsError(f"{path} holds no {MISSING[kind]}")
    names = stored.kind(kind) | stored.kind(BUFFER)
    return Content(
        tensors={name: stored[full] for name, full in names.items()},
        beside=dict.fromkeys(other for other in stored.kinds() if other in MISSING and other != kind),
        config=_model_section(stored.manifest),
    )


def _model_section(manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    run = parse_yaml(manifest["config"]) if "config" in manifest else None
    run = current_names(run, notice=False)
    return run.get("model") if isinstance(run, dict) else None


def config_of(path: Path) -> ModelConfig | None:
    """The model configuration in a checkpoint, a run or a safetensors file of ours; None for others."""
    if resolved(path).is_dir():
        checkpoint = checkpoint_in(path)
        tree = _model_section(read_manifest(checkpoint)) if checkpoint else None
    else:
        tree = current_names(read_config(path), "model", notice=False)
    return load_model_config(ModelConfig(), **tree) if tree else None


def has_classifier(path: Path) -> bool:
    """Whether a checkpoint, or a run that has one, is of a model with a classifier."""
    checkpoint = checkpoint_in(path)
    return checkpoint is not None and f"{MASTER}/head.weight" in read_manifest(checkpoint)["tensors"]


def prefix_of(names: Iterable[str]) -> str | None:
    """What comes before our names: "", or "encoder." and the like of the backbone in the model of a task.

    None where the names are not ours.
    """
    return next(
        (name.partition(first)[0] for name in names for first in FIRST if f".{first}" in f".{name}"), None
    )


def convert(
    tensors: Mapping[str, Tensor], prefix: str, config: Mapping[str, Any] | None
) -> ConvertedStateDict:
    """Our own names, without the prefix of a backbone in the model of a task, whose heads are left out."""
    result = ConvertedStateDict(format="swin-moe")
    if config and (own := windows_of(config, rounds_up=True)):
        result.windows, result.table_windows = learned_windows(config, own), dict(enumerate(own))
    result.padding = (config or {}).get("window_padding")
    for name, tensor in tensors.items():
        if name.startswith("decoder."):
            result.dropped[name] = "the decoder of the pre-training"
        elif name.startswith(prefix) or name == "mask_token":
            result.put(name.removeprefix(prefix), name, tensor)
        elif name.startswith(DENSE_HEADS):
            put_head(result, name, name, tensor)
        else:
            result.dropped[name] = "the heads of the task"
    return result


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
        if len(experts) != num_experts or unsliced_shape(parameter) != list(parameter.shape):
            sliced = "" if len(experts) != num_experts else " in slices"
            raise WeightsError(
                f"the model holds experts {experts.start}..{experts.stop - 1} of {num_experts}{sliced}; "
                "export its checkpoint instead, in one process"
            )
        pieces = parameter.detach().cpu().unbind(0)
        tensors |= {global_name(name, e): piece for e, piece in zip(experts, pieces, strict=True)}
    return tensors | {name: buffer.cpu() for name, buffer in persistent_buffers(model).items()}


def metadata(config: ModelConfig) -> dict[str, str]:
    """The metadata of a safetensors file of ours: its model configuration."""
    return {"format": "pt", "writer": "swin-moe", "config": json.dumps(asdict(config))}
