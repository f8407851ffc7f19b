"""Load weights of any known format into a model, every tensor of both accounted for."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from parallel.checkpoint.manifest import CheckpointError
from parallel.checkpoint.scores import resolved
from parallel.experts.names import MASTER
from parallel.suggest import suggestion
from swin_moe.config import ModelConfig
from swin_moe.weights import dense, hf, mmseg, moe_shards, native, official, video
from swin_moe.weights.adapt import (
    ClassMap,
    Head,
    adapt_head,
    check_padding,
    check_windows,
    drop_unneeded,
    resize_tables,
)
from swin_moe.weights.converted import ConvertedStateDict
from swin_moe.weights.errors import WeightsError, some
from swin_moe.weights.files import Content, read_file, read_folder, read_json
from swin_moe.weights.finite import check_finite
from swin_moe.weights.inflate import inflate
from swin_moe.weights.parts import HEAD, PARTS, Part, keep_others
from swin_moe.weights.target import Target, initial_parts, origins
from swin_moe.weights.upcycle import upcycle

Average = Literal["ema", "teacher"]  # kinds of parallel/experts/names.py


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
    initial: dict[str, int] = field(default_factory=dict)  # by part of the model, tensors not written

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

    - `parts`: what is loaded of the model, `backbone` and `head`; the other part stays as it is. The heads of
      a dense task and its norms of the stages are `head`; those that the weights lack stay as they are.
    - `head`: `strict` refuses another classifier, `replace` keeps the model's own, a ClassMap picks classes.
      A model without a classifier needs none. `head_option` is what messages call it.
    - `average`: take a moving average of the weights. `ema` is that of a run of ours, a checkpoint of one, or
      a file in which a trainer saved it beside the weights; `teacher` is what the teacher of a run's task
      computes with.
    - `upcycle_noise`: make each expert a copy of the dense model's MLP that it replaces, with so much noise
      (see upcycle.py); None takes weights with experts.
    """

    parts: Sequence[Part] = PARTS
    head: Head = "strict"
    head_option: str = "head"
    average: Average | None = None
    upcycle_noise: float | None = None

    def __post_init__(self) -> None:
        if not self.parts or not set(self.parts) <= set(PARTS):
            raise WeightsError(f"parts ({list(self.parts)}) must be some of {', '.join(PARTS)}")
        if isinstance(self.head, ClassMap) and "head" not in self.parts:
            raise WeightsError(f"{self.head.name} picks classes, and parts ({list(self.parts)}) has no head")
        if self.upcycle_noise is not None and "backbone" not in self.parts:
            raise WeightsError(f"upcycle_noise is of the backbone, and parts is {list(self.parts)}")


@dataclass(frozen=True, kw_only=True)
class LoadPlan:
    """Weights that fit a model, not yet written into it."""

    tensors: Mapping[str, Tensor]  # by global name
    report: LoadReport  # with nothing loaded


def load_weights(
    model: nn.Module,
    path: str | Path,
    *,
    parts: Sequence[Part] = PARTS,
    head: Head = "strict",
    ema: bool = False,
    teacher: bool = False,
    upcycle_noise: float | None = None,
) -> LoadReport:
    """Load weights of any format: official, timm, SimMIM, MoBY, FD, Hugging Face, files of ranks, our own.

    Weights of images are inflated for a model of clips, see `inflate.py`; those of clips are read in the
    dialects of `video.py`. Needs no process group; a model that holds some of the experts takes those. Either
    everything fits and is written, or nothing is.

    Args:
        model: to be written into; a `Backbone`, a `SwinTransformer` with its classifier, a `Segmenter` or a
            `Detector`.
        path: a file, a Hugging Face folder, a run, a checkpoint, or NAME.pth of NAME.pth.rank0 ...
        parts: see LoadOptions; so are `head` and `upcycle_noise`.
        ema: take the moving average of the weights, see `LoadOptions.average`.
        teacher: take the average that a task's teacher computes with.

    Raises:
        WeightsError: the file is damaged or not trusted, or a tensor is missing, unknown or of another shape.
    """
    if ema and teacher:
        raise WeightsError("ema and teacher are two averages; take one of them")
    average: Average | None = "ema" if ema else "teacher" if teacher else None
    options = LoadOptions(parts=parts, head=head, average=average, upcycle_noise=upcycle_noise)
    return apply(model, plan_load(model, path, options))


def plan_load(model: nn.Module, path: str | Path, options: LoadOptions) -> LoadPlan:
    """Read weights and fit them to a model, without writing into it. `apply` then cannot fail.

    Only the shapes of the model count: it may be on the meta device.

    Raises:
        WeightsError: as `load_weights`.
    """
    path, target = Path(path), Target(model)
    content = read(path, options.average)
    shapes = target.shapes()
    try:
        converted = convert(content)
        changes, notices = _fit(target.config, shapes, converted, options)
        check_finite({converted.names[name]: tensor for name, tensor in converted.tensors.items()})
    except WeightsError as error:
        raise type(error)(f"{path}: {error}") from None
    report = LoadReport(
        path=path,
        format=converted.format,
        loaded=0,
        dropped=content.dropped | converted.dropped,
        changes=changes,
        notices=[*content.notices, *notices],
        beside=[*content.beside],
        initial=initial_parts(shapes, converted.tensors),
    )
    return LoadPlan(tensors=converted.tensors, report=report)


def apply(model: nn.Module, plan: LoadPlan) -> LoadReport:
    """Write planned weights into a model. Of a partitioned model, every rank calls it together."""
    return replace(plan.report, loaded=Target(model).write(plan.tensors))


def _resolved(path: Path) -> Path:
    """RUN/checkpoints/best as the path of that checkpoint."""
    try:
        return resolved(path)
    except CheckpointError as error:
        raise WeightsError(str(error)) from error


def read(path: Path, average: Average | None = None) -> Content:
    """Read what is at a path; of a checkpoint of ours the master weights, or a moving average of them."""
    path = _resolved(path)
    if (base := moe_shards.base_of(path)) and not average:
        return moe_shards.read_ranks(base)
    if path.is_dir():
        try:
            if checkpoint := native.checkpoint_in(path):
                return native.read_checkpoint(checkpoint, average or MASTER)
        except CheckpointError as error:
            raise WeightsError(str(error)) from error
    if (average and (path.is_dir() or base)) or (average == "teacher" and path.exists()):
        what = "teacher" if average == "teacher" else "moving average of the weights"
        raise WeightsError(f"{path} holds no {what}: it is no checkpoint of ours")
    if path.is_dir():
        return read_folder(path)
    if not path.exists():
        names = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = suggestion(path.name, names, most=3)
        raise WeightsError(f"{path} does not exist" + (f"; {hint}" if hint else ""))
    content = read_file(path, ema=average == "ema")
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
    if (prefix := native.prefix_of(names)) is not None:
        return native.convert(names, prefix, content.config)
    if video.is_video(names):
        return video.convert(names)
    if mmseg.ENTRY in names:
        return mmseg.convert(names)
    if "patch_embed.proj.weight" in names or "encoder.patch_embed.proj.weight" in names:
        return official.convert(names)
    raise WeightsError(
        f"these are no weights of a Swin that is known here; the tensors begin {some([*names])}"
    )


def _fit(
    config: ModelConfig,
    shapes: Mapping[str, list[int]],
    converted: ConvertedStateDict,
    options: LoadOptions,
) -> tuple[list[str], list[str]]:
    """Make the tensors exactly those of the model's parts that are loaded.

    Returns:
        What was adapted, and what the weights do not determine.
    """
    kept = keep_others(converted, shapes, options.parts)
    changes: list[str] = []
    notices: list[str] = []
    has_heads = any(map(dense.prefix_of, shapes))
    if "head" in options.parts:
        adapted, left = _adapt_heads(converted, shapes, options, has_heads=has_heads)
        changes, kept = [*changes, *adapted], kept | left
    if "backbone" in options.parts:
        resized, unknown = resize_tables(converted, shapes, config)
        changes += resized
        notices = [*unknown, *check_windows(converted, config), *check_padding(converted, config)]
        changes += inflate(converted, config)
        drop_unneeded(converted, shapes)
        upcycled, routers = _upcycled(config, converted, shapes, options.upcycle_noise)
        changes, kept = [*changes, *upcycled], kept | routers
    _check(converted, {name: shape for name, shape in shapes.items() if name not in kept})
    if has_heads:
        changes.insert(0, origins(shapes, converted.tensors))
    return changes, notices


def _adapt_heads(
    converted: ConvertedStateDict,
    shapes: Mapping[str, list[int]],
    options: LoadOptions,
    *,
    has_heads: bool,
) -> tuple[list[str], set[str]]:
    """Fit the classifier, or the heads of a dense task. Returns what was done, and the tensors that stay."""
    changes, kept = dense.adapt_heads(converted, shapes, options.head, options.head_option)
    if has_heads:
        adapt_head(converted, shapes, "replace", options.head_option)  # the weights of a classifier lose it
        return changes, kept
    changes = adapt_head(converted, shapes, options.head, options.head_option)
    return changes, kept | set(HEAD if options.head == "replace" else ())


def _upcycled(
    config: ModelConfig, converted: ConvertedStateDict, shapes: Mapping[str, list[int]], noise: float | None
) -> tuple[list[str], set[str]]:
    if noise is None:
        return [], set()
    if config.moe is None:
        raise WeightsError("train.upcycle_noise is for a model with experts: set model.moe")
    return upcycle(converted, shapes, config.moe, noise=noise)


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
