"""A folder of transformers as a teacher: what its small files say, and its weights.

    config.json  preprocessor_config.json  model.safetensors (or several, with an index)

Nothing is downloaded, no code of the folder runs, and weights are read from safetensors alone. Needs the
extra `teachers`.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from math import isclose
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from swin_moe.sizes import Size, sides
from swin_moe.teachers.folder_kinds import KINDS, FolderKind
from swin_moe.teachers.source import TeacherSourceError, TeacherSpec, Wanted

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
Colours = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class FolderSource:
    """A folder of transformers on this disk.

    `image_size`, `mean` and `std` take the place of what the folder says; None keeps that.
    """

    path: Path
    wanted: Wanted
    image_size: Size | None = None
    mean: Colours | None = None
    std: Colours | None = None

    def __post_init__(self) -> None:
        _check_files(self.path)
        _ = self.kind, self.spec

    @cached_property
    def kind(self) -> FolderKind:
        """What model it is, by `model_type`."""
        name = str(_read(self.path / CONFIG).get("model_type"))
        if name not in KINDS:
            raise TeacherSourceError(
                f"{self.path / CONFIG}: no teacher of model_type {name!r} is known here; there are "
                f"{', '.join(KINDS)}"
            )
        return KINDS[name]

    @cached_property
    def config(self) -> Any:
        """The configuration of its model, with the defaults of transformers."""
        make = _transformers(self.kind.config).from_pretrained
        with _usable(self.path / CONFIG):
            loaded = make(str(self.path), local_files_only=True)
            return getattr(loaded, "vision_config", loaded) if self.kind.is_part else loaded

    @cached_property
    def spec(self) -> TeacherSpec:
        """By config.json and preprocessor_config.json."""
        mean, std = self._colours()
        with _usable(self.path / CONFIG):
            own = sides(self.image_size or self.config.image_size)
            return TeacherSpec(
                sides=own,
                grid=self.kind.grid(self.config, own),
                width=self.config.hidden_size,
                classes=self.config.num_labels if self.wanted == "logits" else 0,
                class_names=_class_names(getattr(self.config, "id2label", None) or {}),
                mean=mean,
                std=std,
            )

    def check(self) -> None:
        """Load what the headers of the files tell: every tensor in its shape, without its values."""
        shapes: dict[str, Tensor] = {}
        for file in _weight_files(self.path):
            try:
                with safe_open(file, framework="np") as opened:
                    shapes |= {name: _without_memory(opened.get_slice(name)) for name in opened.keys()}  # noqa: SIM118
            except (SafetensorError, OSError) as error:
                raise TeacherSourceError(f"{file} is damaged, cut short or missing: {error}") from error
        self.kind.load(self.path, self.config, self.wanted, self.spec, shapes)

    def on_meta(self) -> nn.Module:
        """Of shapes alone."""
        return self.kind.on_meta(self.config, self.wanted, self.spec)

    def load(self) -> nn.Module:
        """With its weights."""
        return self.kind.load(self.path, self.config, self.wanted, self.spec)

    def _colours(self) -> tuple[Colours, Colours]:
        if self.mean is not None and self.std is not None:
            return self.mean, self.std
        mean, std = _normalization(self.path)
        return self.mean or mean, self.std or std


def is_folder(path: Path) -> bool:
    """Whether a path is a folder as transformers writes it."""
    return (path / CONFIG).is_file() and "model_type" in _read(path / CONFIG)


@contextmanager
def _usable(file: Path) -> Iterator[None]:
    """Whatever transformers raises for a configuration that it cannot use becomes one line."""
    try:
        yield
    except TeacherSourceError:
        raise
    except Exception as error:  # numbers of other types, or below zero: errors of any kind
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise TeacherSourceError(
            f"{file} describes no model that transformers can make ({reason}); download the folder again"
        ) from error


def _without_memory(header: Any) -> Tensor:
    """Zeros of the shape of a stored tensor: one number in memory."""
    return torch.zeros(()).expand(header.get_shape())


def _check_files(path: Path) -> None:
    """The weights must be safetensors; nothing else is opened."""
    if any((path / name).is_file() for name in WEIGHTS):
        return
    pickles = [name for name in PICKLES if (path / name).is_file()]
    if pickles:
        raise TeacherSourceError(
            f"{path} has its weights in {pickles[0]}, a pickle, which is not read; write them as safetensors "
            "with save_pretrained of transformers"
        )
    raise TeacherSourceError(f"{path} holds no weights: there is no {' and no '.join(WEIGHTS)}")


def _weight_files(path: Path) -> list[Path]:
    """The one file, or those that the index names."""
    if (path / WEIGHTS[0]).is_file():
        return [path / WEIGHTS[0]]
    named = _read(path / WEIGHTS[1]).get("weight_map", {})
    return [path / name for name in sorted(set(named.values()))]


def _transformers(name: str) -> Any:
    try:
        return getattr(import_module("transformers"), name)
    except ImportError as error:
        raise TeacherSourceError(
            f"a teacher from a folder of transformers needs it: pip install 'swin-moe[teachers]' ({error})"
        ) from error


def _read(path: Path) -> Mapping[str, Any]:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TeacherSourceError(f"{path} cannot be read: {error}") from error
    if not isinstance(loaded, dict):
        raise TeacherSourceError(f"{path} holds no JSON object")
    return loaded


def _normalization(path: Path) -> tuple[Colours, Colours]:
    """The mean and the deviation of values in 0 to 1, by preprocessor_config.json."""
    fix = "set teacher.mean and teacher.std"
    if not (path / PROCESSOR).is_file():
        raise TeacherSourceError(f"{path} has no {PROCESSOR}, which says how images are normalised: {fix}")
    found = _read(path / PROCESSOR)
    factor = found.get("rescale_factor", 1 / 255)
    if not found.get("do_rescale", True) or not isclose(factor, 1 / 255, rel_tol=1e-4):
        raise TeacherSourceError(f"{path / PROCESSOR} does not scale pixels to 0 ... 1: {fix}")
    if not found.get("do_normalize", True):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    try:
        mean, std = (_three(found[name]) for name in ("image_mean", "image_std"))
    except (KeyError, TypeError, ValueError) as error:
        raise TeacherSourceError(
            f"{path / PROCESSOR} has no image_mean and image_std of three numbers: {fix}"
        ) from error
    if min(std) <= 0:
        raise TeacherSourceError(f"{path / PROCESSOR}: image_std {list(std)} must be above 0: {fix}")
    return mean, std


def _three(values: Any) -> Colours:
    red, green, blue = map(float, values)
    return red, green, blue


def _class_names(labels: Mapping[Any, str]) -> tuple[str, ...] | None:
    """The names of classes in order; None for the numbers that transformers makes up."""
    names = tuple(labels[number] for number in sorted(labels, key=int))
    return None if all(name == f"LABEL_{number}" for number, name in enumerate(names)) else names
