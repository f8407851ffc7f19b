"""Load weights of any known format into a model, every tensor of both accounted for."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parallel.checkpoint.manifest import CheckpointError
from parallel.experts.names import own_slice_of_expert, parameter_shapes, persistent_buffers
from parallel.experts.placement import experts_of, global_name
from parallel.suggest import suggestion
from parallel.zero.init import gathered
from swin_moe.backbone.backbone import Backbone
from swin_moe.weights import hf, moe_shards, native, official
from swin_moe.weights.adapt import HEAD, Head, adapt_head, check_windows, drop_unneeded, resize_tables
from swin_moe.weights.converted import ConvertedStateDict
from swin_moe.weights.errors import WeightsError, some
from swin_moe.weights.files import Content, read_file, read_folder, read_json
from swin_moe.weights.finite import check_finite
from swin_moe.weights.upcycle import upcycle


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What was loaded, and what became of everything else."""

    path: Path
    format: str
    loaded: int  # tensors of the model that were written, each expert's counted
    dropped: dict[str, str] = field(default_factory=dict)  # tensors of the file that were not used, and why
    changes: list[str] = field(default_factory=list)  # what was adapted to the model
    notices: list[str] = field(default_factory=list)
    beside: list[str] = field(default_factory=list)  # what else the file held: optimizer, epoch ...

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.format}, {self.loaded} tensors loaded", *self.changes]
        for reason in Counter(self.dropped.values()):
            names = [name for name, why in self.dropped.items() if why == reason]
            lines.append(f"not used, {reason}: {some(names)}")
        lines += self.notices
        lines += [f"beside the weights, not used: {some(self.beside)}"] if self.beside else []
        return "\n  ".join(lines)


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """What is taken from weights, and how.

    - `head`: `strict` refuses another classifier, `replace` keeps the model's own, a ClassMap picks classes.
    - `ema`: take the moving average of the weights: of a run of ours, a checkpoint of one, or a file in which
      a trainer saved it beside the weights.
    - `upcycle_noise`: make each expert a copy of the dense model's MLP that it replaces, with so much noise
      (see upcycle.py); None takes weights with experts.
    """

    head: Head = "strict"
    ema: bool = False
    upcycle_noise: float | None = None


@dataclass(frozen=True, kw_only=True)
class LoadPlan:
    """Weights that fit a model, not yet written into it."""

    tensors: Mapping[str, Tensor]  # by global name
    report: LoadReport  # with nothing loaded


def load_weights(
    model: Backbone,
    path: str | Path,
    *,
    head: Head = "strict",
    ema: bool = False,
    upcycle_noise: float | None = None,
) -> LoadReport:
    """Load weights whatever their format: official, timm, SimMIM, Hugging Face, sets of rank files, our own.

    Needs no process group; a model that holds some of the experts takes those. Either everything fits and is
    written, or nothing is.

    Args:
        model: to be written into.
        path: a file, a Hugging Face folder, a run, a checkpoint, or NAME.pth of NAME.pth.rank0 ...
        head: see LoadOptions; so are `ema` and `upcycle_noise`.

    Raises:
        WeightsError: the file is damaged or not trusted, or a tensor is missing, unknown or of another shape.
    """
    options = LoadOptions(head=head, ema=ema, upcycle_noise=upcycle_noise)
    return apply(model, plan_load(model, path, options))


def plan_load(model: Backbone, path: str | Path, options: LoadOptions) -> LoadPlan:
    """Read weights and fit them to a model, without writing into it. `apply` then cannot fail.

    Only the shapes of the model count: it may be on the meta device.

    Raises:
        WeightsError: as `load_weights`.
    """
    path, head = Path(path), options.head
    content = read(path, ema=options.ema)
    try:
        converted = convert(content)
        shapes = _shapes(model)
        resized, unknown = resize_tables(converted, shapes, model.config)
        changes = [*adapt_head(converted, shapes, head), *resized]
        notices = [*content.notices, *unknown, *check_windows(converted, model.config)]
        drop_unneeded(converted, shapes)
        kept = set(HEAD if head == "replace" else ())
        if options.upcycle_noise is not None:
            upcycled, routers = _upcycled(model, converted, shapes, options.upcycle_noise)
            changes, kept = [*changes, *upcycled], kept | routers
        _check(converted, {name: shape for name, shape in shapes.items() if name not in kept})
        check_finite({converted.names[name]: tensor for name, tensor in converted.tensors.items()})
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    report = LoadReport(
        path=path,
        format=converted.format,
        loaded=0,
        dropped=content.dropped | converted.dropped,
        changes=changes,
        notices=notices,
        beside=[*content.beside],
    )
    return LoadPlan(tensors=converted.tensors, report=report)


@torch.no_grad()
def apply(model: Backbone, plan: LoadPlan) -> LoadReport:
    """Write planned weights into a model. Of a partitioned model, every rank calls it together."""
    _refuse_meta(model)
    loaded = _write(model, plan.tensors)
    model.train(model.training)  # a position bias that was kept is of the old weights
    return replace(plan.report, loaded=loaded)


def read(path: Path, *, ema: bool = False) -> Content:
    """Read what is at a path; of a checkpoint of ours the master weights, or their moving average."""
    if (base := moe_shards.base_of(path)) and not ema:
        return moe_shards.read_ranks(base)
    if path.is_dir():
        try:
            if checkpoint := native.checkpoint_in(path):
                return native.read_checkpoint(checkpoint, ema=ema)
        except CheckpointError as error:
            raise WeightsError(str(error)) from error
    if ema and (path.is_dir() or base):
        raise WeightsError(f"{path} holds no moving average of the weights: it is no checkpoint of ours")
    if path.is_dir():
        return read_folder(path)
    if not path.exists():
        names = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = suggestion(path.name, names, most=3)
        raise WeightsError(f"{path} does not exist" + (f"; {hint}" if hint else ""))
    content = read_file(path, ema=ema)
    if content.config is None and (beside := path.parent / "config.json").is_file():
        config = read_json(beside)
        if str(config.get("model_type", "")).startswith("swin"):
            content.config = config
    return content


def convert(content: Content) -> ConvertedStateDict:
    """Recognise a format by the names of its tensors, and give them ours.

    Raises:
        WeightsError: no Swin is known by these names.
    """
    names = content.tensors
    if any(name.endswith(hf.ENTRY) for name in names):
        return hf.convert(names, content.config)
    if any(name.removeprefix("encoder.").startswith("layers.0.blocks.0.attention.") for name in names):
        return native.convert(names, content.config)
    if "patch_embed.proj.weight" in names or "encoder.patch_embed.proj.weight" in names:
        return official.convert(names)
    raise WeightsError(
        f"these are no weights of a Swin that is known here; the tensors begin {some([*names])}"
    )


def _upcycled(
    model: Backbone, converted: ConvertedStateDict, shapes: Mapping[str, list[int]], noise: float
) -> tuple[list[str], set[str]]:
    if model.config.moe is None:
        raise WeightsError("train.upcycle_noise is for a model with experts: set model.moe")
    return upcycle(converted, shapes, model.config.moe, noise=noise)


def _shapes(model: Backbone) -> dict[str, list[int]]:
    """Shape of every tensor of the model by global name, whichever experts this rank holds."""
    moe = model.config.moe
    buffers = {name: list(buffer.shape) for name, buffer in persistent_buffers(model).items()}
    return parameter_shapes(model, moe.num_experts if moe else 0) | buffers


def _check(converted: ConvertedStateDict, shapes: Mapping[str, list[int]]) -> None:
    """The tensors must be exactly the model's."""
    tensors, problems = converted.tensors, []
    if missing := [name for name in shapes if name not in tensors]:
        dense = any(".experts." in name for name in missing) and not any(".experts." in n for n in tensors)
        hint = "; to make experts of a dense model's MLPs: train.upcycle_noise=0" if dense else ""
        problems.append(f"{len(missing)} tensors of the model are missing ({some(missing)}){hint}")
    extra = [*converted.unknown, *(converted.names[name] for name in tensors if name not in shapes)]
    if extra:
        problems.append(f"{len(extra)} tensors are none of the model's ({some(extra)})")
    other = [
        f"{converted.names[name]} {list(tensors[name].shape)} instead of {shape}"
        for name, shape in shapes.items()
        if name in tensors and list(tensors[name].shape) != shape
    ]
    if other:
        problems.append(f"{len(other)} tensors have another shape ({some(other)})")
    if problems:
        raise WeightsError(f"{converted.format} weights of another model: {'; '.join(problems)}")


def _write(model: Backbone, tensors: Mapping[str, Tensor]) -> int:
    loaded = 0
    for name, parameter in model.named_parameters():
        experts = experts_of(parameter)
        if experts is None and name not in tensors:  # a classifier or router that is to stay
            continue
        with gathered(parameter):
            if experts is None:
                parameter.copy_(tensors[name])
                loaded += 1
                continue
            for expert, piece in zip(experts, parameter.unbind(0), strict=True):
                loaded += 1
                piece.copy_(own_slice_of_expert(parameter, tensors[global_name(name, expert)]))
    for name, buffer in persistent_buffers(model).items():
        if name in tensors:  # else a fresh router's
            buffer.copy_(tensors[name])
            loaded += 1
    return loaded


def _refuse_meta(model: Backbone) -> None:
    meta: list[Any] = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if meta:
        raise WeightsError(f"the model is on the meta device ({some(meta)}); give it memory first: to_empty")
