"""Rules about places and devices: directories to write into, weights to start from, the processor."""

import os
import tempfile
from pathlib import Path

from launcher.config.load import ConfigError
from launcher.config.schema import RunConfig
from launcher.rundir.directory import RunDirectory
from launcher.tasks.pretrained import plan_pretrained
from launcher.tasks.registry import start_on_meta, task_spec
from parallel.checkpoint.commit import committed
from parallel.zero.options import check_precision


def check_output_file(option: str, file: Path) -> None:
    """Refuse a file that a command could not write at its end.

    Raises:
        ConfigError: there is no such directory, or a directory has the name.
    """
    if not file.parent.is_dir():
        raise ConfigError(f"{option} ({file}): there is no directory {file.parent}; make it first")
    if file.is_dir():
        raise ConfigError(f"{option} ({file}) is a directory; name a file")


def place_errors(config: RunConfig) -> list[str]:
    """What is wrong with the places that all nodes of a run share: its run directory and its weights."""
    errors = []
    if not config.run_dir.strip():
        errors.append(f"run_dir ({config.run_dir!r}) must name a directory")
    elif reason := _unwritable(RunDirectory(config.run_dir).checkpoints):
        errors.append(f"run_dir ({config.run_dir}) cannot be written: {reason}; choose another run_dir")
    return [*errors, *_weights_errors(config), *task_spec(config.task).check_files(config)]


def machine_errors(config: RunConfig) -> list[str]:
    """What this machine cannot do for a run whose ranks are on it."""
    errors = []
    try:
        check_precision(config.train.precision)
    except ValueError as error:
        errors.append(str(error))
    return errors + _cache_errors(config)


def _unwritable(directory: Path) -> str | None:
    """Why a directory cannot be made and written, in the words of the system; nothing is left behind."""
    try:
        with tempfile.TemporaryFile(dir=_nearest(directory.absolute())):
            return None
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)


def _nearest(path: Path) -> Path:
    """The path, or what of it is there."""
    for place in (path, *path.parents):
        try:
            os.stat(place)
        except (FileNotFoundError, NotADirectoryError):
            continue
        return place
    return path


def _weights_errors(config: RunConfig) -> list[str]:
    """Whether the weights to start from are there and fit; a run that goes on does not read them."""
    train = config.train
    if train.pretrained is None and train.pretrained_require != "nothing" and not has_begun(config):
        return [
            f"train.pretrained_require ({train.pretrained_require}): this run starts from pretrained "
            "weights, and train.pretrained names none; add --pretrained FILE, or set "
            "train.pretrained_require=nothing to start from random weights"
        ]
    if train.pretrained is None or has_begun(config):
        return []
    try:
        plan_pretrained(train, start_on_meta(config))
    except ConfigError as error:
        return [str(error)]
    return []


def has_begun(config: RunConfig) -> bool:
    """Whether the run has a checkpoint to go on from."""
    try:
        return bool(committed(RunDirectory(config.run_dir).checkpoints))
    except (OSError, ValueError):  # a run directory that cannot be, of which there is another line
        return False


def _cache_errors(config: RunConfig) -> list[str]:
    cache = config.data.cache
    if cache is None:
        return []
    place = os.path.expandvars(cache)
    if "$" in place:
        return [f"data.cache ({cache}): a variable in it is not set; set it or name a directory"]
    if reason := _unwritable(Path(place)):
        return [f"data.cache ({cache}) cannot be written: {reason}; name a directory on a node-local disk"]
    return []
