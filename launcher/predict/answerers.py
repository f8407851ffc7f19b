"""What answers to images: the program of a classifier, or the model of any task as it was trained.

    opened = open_answerer("runs/a", asked=Asked(top=1))
    [answered] = opened.answer([opened.example(Path("cat.jpg").read_bytes(), 0)], [0])
    print(answered.said)

Legend: B images of a batch, C channels of the last map.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from data_shards.stream.batch import Batch
from launcher.config.errors import ConfigError
from launcher.deploy.artifact import is_artifact, open_predictor
from launcher.deploy.options import DeviceType
from launcher.deploy.predictor import Predictor
from launcher.evaluation.recorded import recorded_task
from launcher.predict.answerer import Answered, Answerer, Asked, answer_options
from launcher.predict.inputs import Sought
from launcher.tasks.answers import AnswerOptions
from launcher.tasks.registry import task_spec
from launcher.tasks.spec import Predicting, TaskSpec
from parallel.ranks.init import choose_accelerator
from parallel.zero.options import Precision


@dataclass(frozen=True, kw_only=True)
class ClassifierAnswerer:
    """The program of a classifier: an artifact, or a trained model that was frozen."""

    predictor: Predictor
    predicting: Predicting
    options: AnswerOptions
    asked: Asked = field(default_factory=Asked)

    @property
    def columns(self) -> Sequence[str]:
        """See `Answerer`."""
        return self.predicting.columns(self.options)

    def example(self, image: bytes, position: int) -> Tensor:
        """The normalized image: (3, h, w) fp32."""
        return self.predictor.transform(image)

    def answer(self, examples: Sequence[Tensor], positions: Sequence[int]) -> list[Answered]:
        """See `Answerer`."""
        images = torch.stack(list(examples))
        output = self.predictor.run(images)
        batch = Batch(
            tensors={"image": images}, positions=torch.tensor(positions), weights=torch.ones(len(images))
        )
        said = self.predicting.answers(output, batch, self.options)
        if not self.asked.features:
            return [Answered(one) for one in said]
        return [Answered(one, row.clone()) for one, row in zip(said, output.features, strict=True)]


def open_answerer(
    source: str | Path,
    config: str | Path | None = None,
    *,
    ema: bool = False,
    precision: Precision | None = None,
    device: DeviceType | None = None,
    asked: Asked | None = None,
) -> Answerer:
    """A model of any task that has predictions.

    Args:
        source: an artifact, a run, a checkpoint, or weights of any format.
        config: the recipe (its name or a YAML file) of weights that do not know their model.
        ema: take the moving average of the weights.
        precision: to compute in; None is fp32, or what the artifact has.
        device: to compute on; None is the CPU, or what the artifact has.
        asked: what is to be said.

    Raises:
        ConfigError: the task has no predictions, or not what was asked for.
        ArtifactError, ModelError, WeightsError: as `open_predictor`.
        CheckpointError: the checkpoint is damaged.
        TaskError: the task of the run is not here.
    """
    asked = asked or Asked()
    task = recorded_task(source)
    spec = task_spec(task)
    predicting = _predicting(source, task, spec, asked)
    if not (spec.is_classifier or is_artifact(source)):
        if config is not None:
            raise ConfigError(f"--config: {source} has the configuration of its run; leave out --config")
        choose_accelerator()
        from launcher.predict.task_answerer import open_task  # imports DeepSpeed

        return open_task(source, ema=ema, precision=precision or "fp32", device=device or "cpu", asked=asked)
    predictor = open_predictor(source, config, ema=ema, precision=precision, device=device)
    options = answer_options(asked, predictor.model.num_classes, predictor.classes)
    return ClassifierAnswerer(predictor=predictor, predicting=predicting, options=options, asked=asked)


def sought_by(source: str | Path) -> Sought:
    """What a model answers to, of which folders and shards are searched.

    Raises:
        CheckpointError: the checkpoint is damaged.
        TaskError: the task of the run is not here.
    """
    predicting = task_spec(recorded_task(source)).predicting
    return Sought(member=predicting.member, suffixes=predicting.suffixes) if predicting else Sought()


def _predicting(source: str | Path, task: str, spec: TaskSpec, asked: Asked) -> Predicting:
    """How a task answers; ConfigError where it does not, or lacks what was asked for."""
    of = f"{source} was trained with task={task}, which has no"
    if spec.predicting is None:
        raise ConfigError(f"{of} predictions: its TaskSpec lacks `predicting` (docs/extending.md)")
    if asked.pictures and spec.predicting.pictures is None:
        raise ConfigError(f"--pictures: {of} pictures; leave out --pictures")
    if asked.class_map and spec.predicting.class_maps is None:
        raise ConfigError(f"{of} class for each pixel")
    if asked.top is not None and not spec.names_classes:
        raise ConfigError(f"--top: {of} classes; leave out --top")
    if asked.threshold is not None and not spec.predicting.has_scores:
        raise ConfigError(f"--threshold: {of} objects with scores; leave out --threshold")
    return spec.predicting
