"""The label spaces of an evaluation: what is known of them, and refused, before a checkpoint is loaded."""

from argparse import Namespace
from dataclasses import dataclass, replace

from data_shards.format.classes import label_map, numbered
from data_shards.format.index import Manifest
from data_shards.storage.manifest import checked_manifest
from launcher.config.load import ConfigError
from launcher.config.schema import RunConfig
from launcher.evaluation.labels import LabelSpace, read_labels
from launcher.evaluation.loop import support_split, validation_split
from launcher.rundir.directory import RunDirectory
from launcher.tasks.dense_rules import class_difference
from launcher.tasks.registry import task_spec
from launcher.validation.label_spaces import Classes, LabelFit, fit, of_data
from launcher.validation.resume_policy import newest_manifest, recorded_classes

MOST_CLASSES = 4096  # of a confusion matrix: a table that can still be opened
OTHER_DATA = (
    "a model knows no classes but those that it was trained on: leave the images of the others out, or say "
    "with --labels FILE what they are"
)


@dataclass(frozen=True, kw_only=True)
class Judging:
    """How the images of data.val are judged.

    `classes` are the names of the stream's labels. `model` says how the labels become those of the model,
    `support` how they become those of data.train for few-shot and k-NN. `labels` is what `--labels` says.
    """

    classes: tuple[str, ...] = ()
    model: LabelFit = LabelFit()
    support: LabelFit = LabelFit()
    labels: LabelSpace | None = None

    @property
    def names(self) -> list[str]:
        """The names of the classes between which an image is judged, those of `--labels` if it says so."""
        if self.labels is None:
            return list(self.classes)
        count = self.labels.num_classes
        more = (f"class {label}" for label in range(len(self.classes), count))
        return [*self.classes, *more][:count]

    @property
    def notes(self) -> list[str]:
        """What a person must know."""
        return [note for note in dict.fromkeys((self.model.note, self.support.note)) if note]


def judging(args: Namespace, config: RunConfig, run: RunDirectory, *, by_model: bool) -> Judging:
    """Compare the classes of data.val with those of the run and, for few-shot and k-NN, of data.train.

    Args:
        args: of `eval`.
        config: of the run, with the overrides of the evaluation.
        run: whose checkpoints name the classes that the model was trained on.
        by_model: whether anything is asked for in which the classifier judges images.

    Raises:
        ConfigError: label spaces or classes that differ, a wrong file of labels, a table of too many classes.
        DataError: a manifest that cannot be read.
    """
    val = checked_manifest(validation_split(config.data))
    judged = Judging(classes=val.classes)
    if args.few_shot or args.knn:
        judged = replace(judged, support=_support(config, val))
    if by_model and task_spec(config.task).has_classes:
        judged = _by_model(args, config, run, val, judged)
    if by_model and task_spec(config.task).has_parts:
        _check_parts(config, run, val)
    if args.confusion:
        _check_table(judged)
    return judged


def _check_parts(config: RunConfig, run: RunDirectory, val: Manifest) -> None:
    """Refuse data whose classes of pixels or objects are not those of the run: no answer would be right."""
    errors = task_spec(config.task).check_data(config, {"data.val": val})
    if errors:
        raise ConfigError(errors[0])
    newest = newest_manifest(run.checkpoints)
    trained = recorded_classes(newest[1]) if newest else None
    if not trained or not val.classes:
        return
    if difference := class_difference(val.classes, trained, f"the run {run.path}"):
        raise ConfigError(f"data.val ({config.data.val}): {difference}")


def _check_table(found: Judging) -> None:
    """Refuse a confusion matrix that is too large, or that lacks classes of the images."""
    classes, count = len(found.classes), len(found.names)
    if count > MOST_CLASSES:
        raise ConfigError(f"--confusion is for at most {MOST_CLASSES} classes, not {count}")
    if count < classes:
        raise ConfigError(
            f"--confusion has no row for the last of the {classes} classes of data.val: model_classes of "
            f"--labels speaks of {count} classes"
        )


def classes_of_run(run: RunDirectory, num_classes: int) -> Classes:
    """The classes that a run's newest checkpoint says the model was trained on."""
    newest = newest_manifest(run.checkpoints)
    names = recorded_classes(newest[1]) if newest else None
    if names is None:
        unnamed = "its checkpoints do not record them, as those of older versions"
        return Classes(of=f"the run {run.path}", names=numbered(num_classes), unnamed=unnamed)
    return Classes(of=f"the run {run.path}", names=names)


def _support(config: RunConfig, val: Manifest) -> LabelFit:
    """The images of data.val in the label space of data.train; the classifier has no say."""
    data, train = config.data, support_split(config.data)
    wanted = of_data("data.train", train, checked_manifest(train))
    otherwise = "few-shot and k-NN need images of every class in data.train"
    return fit(
        of_data("data.val", validation_split(data), val),
        wanted,
        match=data.match_classes,
        otherwise=otherwise,
    )


def _by_model(
    args: Namespace, config: RunConfig, run: RunDirectory, val: Manifest, judged: Judging
) -> Judging:
    labels = read_labels(args.labels, config.model.num_classes, len(val.classes)) if args.labels else None
    if labels is not None:
        labels.check(val)
    if labels is not None and labels.model_classes is not None:  # the file says which class is which
        if config.data.match_classes:
            raise ConfigError(
                f"--labels {args.labels}: model_classes already says which class is which: leave out "
                "--match-classes (data.match_classes)"
            )
        return replace(judged, labels=labels)
    wanted = classes_of_run(run, config.model.num_classes)
    matched = fit(
        of_data("data.val", validation_split(config.data), val),
        wanted,
        match=config.data.match_classes,
        otherwise=OTHER_DATA,
    )
    if matched.mapped_to is None:
        return replace(judged, model=matched, labels=labels)
    if labels is not None:
        labels = labels.mapped(label_map(val.classes, wanted.names).tolist(), len(wanted.names))
    return replace(judged, classes=wanted.names, model=matched, labels=labels)
