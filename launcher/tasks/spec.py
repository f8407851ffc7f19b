"""What a task is: everything that one kind of training adds, behind one interface.

The `__init__.py` of a folder in launcher/tasks holds a `TaskSpec` as SPEC, and nothing else names the task.
The functions of a spec import what they need when they are called, so that reading a configuration imports no
torch: neither does this module.

Legend: B samples of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from data_shards.format.fields import IMAGE_AND_LABEL, Field
from data_shards.format.image_names import IMAGE_SUFFIXES
from launcher.tasks.answers import Answer, AnswerOptions
from launcher.tasks.parameter_rules import ParameterRules
from parallel.experts.options import ExchangeOptions

if TYPE_CHECKING:  # they import torch
    import torch
    from torch import Tensor, nn

    from data_shards.format.index import Manifest
    from data_shards.stream.batch import Batch
    from data_shards.stream.transform import Transform
    from launcher.config.schema import RunConfig
    from launcher.metrics.metric import Metric
    from parallel.experts.placement import ExpertParallel
    from parallel.ranks.mesh import Mesh
    from parallel.zero.engine import Engine
    from parallel.zero.master_weights import MasterWeights
    from swin_moe.backbone.backbone import Backbone
    from swin_moe.backbone.flops import Cost
    from swin_moe.moe.layer import MoEStats
    from swin_moe.moe.overrides import RoutingOverrides
    from swin_moe.sizes import Size

Kind = Literal["fixed", "training", "free"]  # of an option, when a run goes on: see resume_policy.py


class StepOutput(NamedTuple):
    """What a task computed for a micro-batch: scalars, and the statistics of MoE layers by name."""

    loss: Tensor  # of the task: the mean over the micro-batch, without the experts' auxiliary losses
    # logged by name, each a mean over the micro-batch; the same names at every step, none of a column of
    # metrics.jsonl
    terms: dict[str, Tensor]
    moe: dict[str, MoEStats]

    @property
    def aux_loss(self) -> Tensor:
        """The weighted auxiliary losses of all MoE layers, summed: scalar."""
        from swin_moe.backbone.backbone import total_loss

        return total_loss(self.moe, self.loss.device)


class Prediction(Protocol):
    """What a model says of a batch in evaluation: a tuple that the metric of its task reads."""

    @property
    def moe(self) -> dict[str, MoEStats]:
        """The statistics of MoE layers, by image."""


class Stateful(Protocol):
    """Something of a task that a checkpoint keeps."""

    def state_dict(self) -> dict[str, Any]:
        """What is kept."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what was kept."""


@dataclass(frozen=True, kw_only=True)
class TaskContext:
    """Where a task runs."""

    mesh: Mesh
    device: torch.device
    sharded: bool = False  # ZeRO stage 3 partitions the model while it is built
    total_steps: int = 0  # optimizer steps of the run; 0 where nothing is trained
    exchange: ExchangeOptions = field(default_factory=ExchangeOptions)
    classes: Sequence[str] | None = None  # the names of the model's classes, if they are known


@dataclass(frozen=True, kw_only=True)
class DataPart:
    """A further split that a task trains on, beside data.train, in every micro-batch."""

    option: str  # that names the split, such as "mine.unlabelled", for messages
    split: str  # a directory or URL with a manifest
    transform: Transform
    share: int = 1  # of the samples of a micro-batch, beside those of the other parts


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """How the samples of a split become batches, and which further splits are trained on beside it.

    With `beside`, the tensors of a batch are called PART.NAME (`data_shards/stream/mixed.py`), and `share` of
    the samples of a micro-batch are those of data.train, which is the part called `part`.
    """

    transform: Transform  # in the decode threads; it says which members it reads, and how they are batched
    members: tuple[Field, ...] = IMAGE_AND_LABEL  # of tars without a manifest, which have no list of them
    part: str = "train"
    share: int = 1
    beside: Mapping[str, DataPart] = field(default_factory=dict)  # by the name of the part

    @property
    def shares(self) -> dict[str, int]:
        """The share of each part by name, that of data.train first."""
        return {self.part: self.share, **{name: part.share for name, part in self.beside.items()}}


class Task(Protocol):
    """One kind of training on one rank. All ranks call the same methods in the same order."""

    @property
    def model(self) -> nn.Module:
        """What the engine trains, on the device of the context, with its initial weights."""

    def inputs(self, batch: Batch) -> Any:
        """What `step` takes of a micro-batch, on the device; it depends on the samples alone."""

    def step(self, engine: Any, inputs: Any, keys: Tensor) -> StepOutput:
        """The forward pass of a micro-batch through the engine, called as its model; keys (B,) draw."""

    def attach(self, engine: Engine, masters: MasterWeights) -> None:
        """Get the engine and its master weights, before a checkpoint is loaded: a teacher is made here."""

    def after_step(self, step: int, skipped: bool) -> None:
        """Act once after each optimizer step, when the weights are updated or the update was skipped.

        Args:
            step: optimizer steps taken, with this one.
            skipped: whether its update was left out, on all ranks alike.
        """

    def state(self) -> Mapping[str, Stateful]:
        """What a checkpoint keeps of the task, JSON-able and the same on all ranks, by name: teachers."""

    def tensors(self) -> Mapping[str, Tensor]:
        """The tensors that a checkpoint keeps of the task, as `PersistentState` holds them."""

    def eval_inputs(self, batch: Batch) -> Any:
        """What `predict` takes of a batch, on the device."""

    def predict(self, model: nn.Module, inputs: Any, keys: Tensor, call: RoutingOverrides) -> Prediction:
        """The model's prediction; `call` says what the MoE layers do otherwise than configured."""

    def metric(self) -> Metric:
        """A new metric, for one pass over a split."""

    @property
    def pictured_batches(self) -> int:
        """The first batches of an evaluation, on rank 0, of which `visualize` may make an image."""

    def visualize(self, model: nn.Module, inputs: Any, prediction: Any) -> Tensor | None:
        """An image of what the model does to inputs of `predict`: (3, height, width) in 0 to 1, if any."""


class HeadPart(NamedTuple):
    """A part of a model after its backbone, for the planner."""

    name: str
    module: nn.Module  # with the parameters of the part
    run: Callable[[list[Tensor]], Tensor]  # on the map of each stage (B, H, W, C), without values


class PlannedTeacher(NamedTuple):
    """A teacher of a task, for the planner: a model that is not trained.

    It has the backbone of the student and costs what that does, or it is another model, which the planner
    calls with images of the configured size: its experts are all on each rank.
    """

    model_on_meta: Callable[[RunConfig, ExpertParallel | None], nn.Module]
    views: int = 1  # of a sample, that pass through it
    is_average: bool = True  # of the master weights; otherwise its weights are frozen
    is_student: bool = True  # whether it has the student's backbone


@dataclass(frozen=True, kw_only=True)
class Planning:
    """What the planner asks of a task: one micro-batch on tensors without values.

    `members` makes the tensors of a batch of so many samples, as they lie on the host; `inputs` makes of them
    what `Task.inputs` does, and `step` is `Task.step`. They call torch alone, on the default device.
    `heads` are the parts after the backbone; None stands for the classifier of a `SwinTransformer`. `views`
    of each sample pass through the backbone, each of the configured image size. `decoding` says what decoding
    and cropping a sample cost, in pictures of `Hardware.img_s_core`; None is one.
    """

    members: Callable[[RunConfig, int], dict[str, Tensor]]
    inputs: Callable[[RunConfig, dict[str, Tensor]], Any]
    step: Callable[[RunConfig, nn.Module, Any, Tensor], StepOutput]
    heads: Callable[[RunConfig, Backbone], Sequence[HeadPart]] | None = None
    views: int = 1
    teacher: PlannedTeacher | None = None
    decoding: Callable[[RunConfig], float] | None = None

    @property
    def teacher_views(self) -> int:
        """The views of a sample that pass through a teacher with the student's backbone."""
        return self.teacher.views if self.teacher and self.teacher.is_student else 0


@dataclass(frozen=True, kw_only=True)
class Predicting:
    """How a task answers to images alone, or to samples of one member that is another one.

    `data` has a transform that reads `member` and no other. `answers` gets what `Task.predict`
    returns for a batch, and the batch; for each image it returns an answer, or the reason why there is none.
    `columns` are those of a row. `pictures` gets the task, its model, the inputs and the prediction of one
    image, and the options; it returns images by name: (3, height, width) or (height, width), uint8, or floats
    in 0 to 1. `has_scores` says that an answer leaves out what has a score below `AnswerOptions.threshold`.
    """

    data: Callable[[RunConfig], DataSpec]
    columns: Callable[[AnswerOptions], Sequence[str]]
    answers: Callable[[Any, Batch, AnswerOptions], Sequence[Answer | str]]
    # without it `--pictures` is refused
    pictures: Callable[[Task, nn.Module, Any, Any, AnswerOptions], Mapping[str, Tensor]] | None = None
    # of what `Task.predict` returns for B images of one size, the index of the class of each pixel:
    # (B, height, width) uint8; without it `serve` has no /v1/segment
    class_maps: Callable[[Any], Tensor] | None = None
    one_by_one: bool = False  # a call of the model gets one image, as where images have their own sizes
    has_scores: bool = False
    member: str = "image"  # of shards, and what a file holds
    suffixes: tuple[str, ...] = IMAGE_SUFFIXES  # of the files of a folder that hold one, in lower case


class CountedModel(NamedTuple):
    """What the model of a recipe costs, for `swin-moe models`."""

    image_size: Size  # of the image whose FLOPs are counted
    cost: Cost
    # parameters and FLOPs as they were printed, such as 28M and 4.5G; ~945G also counts elementwise work; ""
    # where nothing was
    published: tuple[str, str]


def no_errors(config: RunConfig) -> Sequence[str]:
    """The rules of a task without any."""
    return ()


def no_file_errors(config: RunConfig) -> Sequence[str]:
    """The rules of a task that reads no files beside its data."""
    return ()


def no_layout_errors(config: RunConfig, world_size: int) -> Sequence[str]:
    """The rules of a task without any that depend on the number of ranks."""
    return ()


def no_data_errors(config: RunConfig, manifests: Mapping[str, Manifest]) -> Sequence[str]:
    """The rules of a task without any that depend on the data."""
    return ()


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskSpec:
    """One kind of training."""

    name: str  # in `task:`, and of the section of its options
    build: Callable[[RunConfig, TaskContext], Task]
    model_on_meta: Callable[[RunConfig, ExpertParallel | None], nn.Module]  # on meta; None: all experts
    backbone: Callable[[nn.Module], Backbone]  # of a model
    train_data: Callable[[RunConfig], DataSpec]
    eval_data: Callable[[RunConfig], DataSpec]
    options: type | None = None  # a frozen dataclass of its options, which checks each by itself
    check: Callable[[RunConfig], Sequence[str]] = no_errors  # its rules across options, a line an error
    # its rules for files that it reads beside its data, such as the weights of a teacher
    check_files: Callable[[RunConfig], Sequence[str]] = no_file_errors
    paths: Sequence[str] = ()  # its options that name such files, which jobs elsewhere need absolute
    # its rules for a number of ranks, where that is known
    check_layout: Callable[[RunConfig, int], Sequence[str]] = no_layout_errors
    # its rules for data, by the manifests of the sets of data.train and data.val, by option, that can be read
    check_data: Callable[[RunConfig, Mapping[str, Manifest]], Sequence[str]] = no_data_errors
    on_change: Mapping[str, Kind] = field(default_factory=dict)  # by option; others are "fixed"
    parameters: ParameterRules = field(default_factory=ParameterRules)
    planning: Planning | None = None  # without it the planner refuses the task
    # of a recipe by its name, where the model is another one than the classifier of its `model:` section
    counted: Callable[[str, RunConfig], CountedModel] | None = None
    has_classes: bool = False  # output i of the model stands for class i of the data: the label of an image
    # likewise, of pixels or objects: checkpoints record the names of the classes, and answers show them
    has_parts: bool = False
    sees: Literal["images", "clips"] = "images"  # clips: it needs `model.frames` above 0, others refuse it
    takes_lr_net: bool = False  # its model may have an LR-Net for a backbone (model.lr_net)
    is_classifier: bool = False  # its model is a SwinTransformer, which `deploy` can run
    predicting: Predicting | None = None  # without it `predict` refuses the task
    # of a model: what pretrained weights are loaded into, a module with the backbone in it and heads whose
    # names swin_moe/weights/dense.py knows; None: the backbone alone
    pretrained: Callable[[nn.Module], nn.Module] | None = None

    @property
    def names_classes(self) -> bool:
        """Whether the outputs of the model stand for classes of the data, of whatever."""
        return self.has_classes or self.has_parts

    def start_of(self, model: nn.Module) -> nn.Module:
        """The part of a model that pretrained weights are loaded into."""
        return (self.pretrained or self.backbone)(model)


class TaskBase:
    """The answers of a task that has nothing to say: a task may derive from it."""

    @property
    def pictured_batches(self) -> int:
        """The first one."""
        return 1

    def attach(self, engine: Engine, masters: MasterWeights) -> None:
        """Nothing to make."""

    def after_step(self, step: int, skipped: bool) -> None:
        """Nothing to do."""

    def state(self) -> Mapping[str, Stateful]:
        """Nothing to keep."""
        return {}

    def tensors(self) -> Mapping[str, Tensor]:
        """Nothing to keep."""
        return {}

    def visualize(self, model: nn.Module, inputs: Any, prediction: Any) -> Tensor | None:
        """No image."""
        return None
