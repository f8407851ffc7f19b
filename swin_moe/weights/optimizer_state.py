"""What an official training file holds beside the weights: AdamW's moments, and how long it had trained.

An optimizer knows its parameters by number: first those with weight decay, then those without, each in the
order of the model, which is the order of the weights in the file. Frozen parameters have no number. In a set
of rank files each rank's optimizer is of the dense weights and its own experts; the experts-only files of an
official run's end, and its master, hold none.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swin_moe.weights import moe_shards, official
from swin_moe.weights.errors import WeightsError, some
from swin_moe.weights.files import Content, read_file

MOMENTS = ("exp_avg", "exp_avg_sq")
NO_DECAY = (  # parts of names, of any of the official models; 1-D tensors and *.bias besides
    "absolute_pos_embed",
    "relative_position_bias_table",
    "cpb_mlp",
    "logit_scale",
    "fc1_bias",
    "fc2_bias",
    "temperature",
    "cosine_projector",
    "sim_matrix",
)
REMEDY = "--without-optimizer imports the weights alone"

Moments = dict[str, dict[str, Tensor]]  # by kind, then by name


@dataclass(kw_only=True)
class TrainingState:
    """How far a file's run had come; names are ours, one an expert."""

    epochs: int | None = None  # that were completed
    updates: int | None = None  # that its AdamW counted
    moments: Moments = field(default_factory=dict)  # empty where the file has no optimizer
    notices: list[str] = field(default_factory=list)


def read_training_state(path: Path) -> TrainingState:
    """The epoch and the optimizer of an official file or set of rank files.

    Raises:
        WeightsError: the file is damaged or not trusted, or its optimizer is not AdamW of these weights.
    """
    base = moe_shards.base_of(path)
    contents = moe_shards.rank_files(base) if base else [read_file(path)]
    first = contents[0].beside
    state = TrainingState(epochs=_epochs(first.get("epoch")))
    if "optimizer" not in first:
        return state
    try:
        parts = [_moments(content, state) for content in contents]
        for kind in MOMENTS:
            by_rank = [part[kind] for part in parts]
            merged = moe_shards.merge(base, by_rank[0], by_rank) if base else by_rank[0]
            state.moments[kind] = official.convert(merged).tensors
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    return state


def _epochs(epoch: Any) -> int | None:
    """Epochs completed, of the number of the last one, which counts from 0."""
    return epoch + 1 if isinstance(epoch, int) and not isinstance(epoch, bool) and epoch >= 0 else None


def _moments(content: Content, state: TrainingState) -> Moments:
    """The moments of one file by the names of its weights."""
    optimizer = content.beside.get("optimizer")
    groups, entries = (
        optimizer.get(key) if isinstance(optimizer, Mapping) else None for key in ("param_groups", "state")
    )
    if not isinstance(groups, Sequence) or not isinstance(entries, Mapping):
        raise WeightsError(f"its optimizer has no param_groups and state; {REMEDY}")
    if any("momentum_buffer" in entry for entry in entries.values() if isinstance(entry, Mapping)):
        raise WeightsError(f"its optimizer is SGD, not AdamW; {REMEDY}")
    names = _numbered([_numbers(group) for group in groups], content.tensors)
    moments: Moments = {kind: {} for kind in MOMENTS}
    fresh = [name for number, name in names.items() if number not in entries]
    for number, name in names.items():
        entry = entries.get(number, {})
        for kind in MOMENTS:
            weight = content.tensors[name]
            value = entry.get(kind) if entry else torch.zeros(weight.shape)
            if not isinstance(value, Tensor) or value.shape != weight.shape:
                shape = list(value.shape) if isinstance(value, Tensor) else value
                raise WeightsError(
                    f"its optimizer's {kind} number {number} is {shape}, of {name} {list(weight.shape)}: the "
                    f"weights are in another order; {REMEDY}"
                )
            moments[kind][name] = value.float()
    _note(state, [_updates(entry) for entry in entries.values()] + [_updates(group) for group in groups])
    if fresh:
        state.notices.append(f"no moments of {some(fresh)}: zero, as before a first update")
    return moments


def _numbers(group: Any) -> list[int]:
    numbers = group.get("params") if isinstance(group, Mapping) else None
    if not isinstance(numbers, Sequence) or not all(isinstance(number, int) for number in numbers):
        raise WeightsError(f"its optimizer's groups name no parameters; {REMEDY}")
    return list(numbers)


def _numbered(groups: Sequence[Sequence[int]], tensors: Mapping[str, Tensor]) -> dict[int, str]:
    """Which weight each number of an optimizer is: with decay, then without, in the order of the file."""
    weights = [name for name in tensors if name.rpartition(".")[2] not in official.BUFFERS]
    trained = [name for name in weights if not name.endswith("batched_fc2_bias")]  # frozen in Swin-MoE
    for names in (weights, trained):
        plain = [name for name in names if _is_plain(name, tensors[name])]
        split = [[name for name in names if name not in set(plain)], plain]
        if [len(part) for part in split if part] == [len(group) for group in groups if group]:
            pairs = zip((group for group in groups if group), (part for part in split if part), strict=True)
            return {n: name for group, part in pairs for n, name in zip(group, part, strict=True)}
    raise WeightsError(
        f"its optimizer has groups of {[len(group) for group in groups]} parameters, its weights make "
        f"{[len(part) for part in split]} with and without decay; {REMEDY}"
    )


def _is_plain(name: str, tensor: Tensor) -> bool:
    """Whether a parameter has no weight decay."""
    return tensor.dim() == 1 or name.endswith(".bias") or any(part in name for part in NO_DECAY)


def _updates(entry: Any) -> int | None:
    step = entry.get("step") if isinstance(entry, Mapping) else None
    if isinstance(step, Tensor) and step.numel() == 1:
        step = step.item()
    return int(step) if isinstance(step, int | float) and math.isfinite(step) else None


def _note(state: TrainingState, counts: Sequence[int | None]) -> None:
    """Keep the largest count of updates: a parameter that got no gradient at first counts fewer."""
    state.updates = max([count for count in (*counts, state.updates) if count is not None], default=None)
