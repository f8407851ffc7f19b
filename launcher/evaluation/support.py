"""Whether data.train has the images that few-shot and k-NN need, from the indices alone.

Legend: K classes, N images.
"""

from argparse import Namespace
from collections.abc import Sequence

import numpy as np

from data_shards.format.classes import listed, quoted
from data_shards.stream.eval import EvalStream
from data_shards.stream.options import EvalSampling, StreamOptions
from launcher.config.load import ConfigError
from launcher.config.schema import RunConfig
from launcher.evaluation.loop import read_options, support_split, validation_split
from launcher.tasks.registry import task_spec


def check_support(args: Namespace, config: RunConfig, mapped_to: Sequence[str] | None) -> None:
    """Refuse what data.train has too few images for, with the counts and the option to change.

    Args:
        args: of `eval`, with few_shot, knn and bank.
        config: of the run.
        mapped_to: the class names to which labels of data.val are mapped; None where they stay.

    Raises:
        ConfigError: too few images of a class or in all.
    """
    train, val = support_split(config.data), validation_split(config.data)
    classes, support = _counts(config, train)
    _, query = _counts(config, val, mapped_to)
    if args.few_shot:
        check_shots(args.few_shot, train, classes, support, query)
    if args.knn:
        check_bank(args.knn, args.bank, train, int(support.sum()))
        check_neighbours(train, val, classes, support, query)


def _counts(
    config: RunConfig, place: str, classes: Sequence[str] | None = None
) -> tuple[Sequence[str], np.ndarray]:
    """The class names of a split and the images of each: K, and (K,) int64."""
    options = StreamOptions(read=read_options(config.data))
    transform = task_spec(config.task).eval_data(config).transform
    with EvalStream(place, EvalSampling(batch_size=1), transform, options, classes=classes) as stream:
        return stream.classes, np.bincount(stream.labels(), minlength=stream.num_classes)


def check_shots(
    shots: int, place: str, classes: Sequence[str], support: np.ndarray, query: np.ndarray
) -> None:
    """Refuse --few-shot where a class that has images has too few to draw from.

    Args:
        shots: images a class.
        place: data.train.
        classes: K names.
        support: (K,) images of data.train.
        query: (K,) images of data.val.

    Raises:
        ConfigError: with the classes and their counts.
    """
    short = np.flatnonzero((support < shots) & (support + query > 0)).tolist()
    if not short:
        return
    least = int(support[short].min())
    fix = f"--few-shot {least} would do" if least else "add images of it, or take other data.train"
    has = listed((f"{quoted(classes[label])} has {support[label]}" for label in short), len(short))
    raise ConfigError(
        f"--few-shot ({shots}) needs {shots} images of every class in data.train ({place}), but {has}; {fix}"
    )


def check_bank(neighbours: int, bank: int | None, place: str, images: int) -> None:
    """Refuse --knn and --bank that ask for more images than there are.

    Raises:
        ConfigError: with the counts.
    """
    if bank is not None and bank > images:
        raise ConfigError(
            f"--bank ({bank}) must be at most the {images} images of data.train ({place}); without --bank "
            "all of them are taken"
        )
    if neighbours > (available := bank or images):
        of = f"--bank ({bank})" if bank else f"the {available} images of data.train ({place})"
        raise ConfigError(f"--knn ({neighbours}) must be at most {of}; --knn {available} would do")


def check_neighbours(
    train: str, val: str, classes: Sequence[str], support: np.ndarray, query: np.ndarray
) -> None:
    """Refuse --knn where no neighbour can have the class of an image.

    Args:
        train: data.train.
        val: data.val.
        classes: K names.
        support: (K,) images of data.train.
        query: (K,) images of data.val.

    Raises:
        ConfigError: with the classes and the counts.
    """
    lost = np.flatnonzero((support == 0) & (query > 0)).tolist()
    if lost:
        has = listed((f"{quoted(classes[label])} has {query[label]}" for label in lost), len(lost))
        raise ConfigError(
            f"--knn needs images in data.train ({train}) of every class that has images in data.val ({val}), "
            f"but there are none for {len(lost)}: {has}; add some, or take other data.train"
        )
