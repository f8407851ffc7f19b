"""Tensors out of files that are not trusted: safetensors, or pickles of tensors and plain data alone.

What a file is, its first bytes say; its name says nothing. Tensors are mapped, not read, where the file
allows it.
"""

import argparse
import json
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.serialization import safe_globals

from swin_moe.weights.errors import WeightsError, some

WRAPPERS = ("model", "state_dict", "module")  # under which trainers keep the weights
PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
MOST_HEADER = 100 * 2**20  # bytes; what the safetensors library allows
SINGLES = ("model.safetensors", "pytorch_model.bin")
DAMAGE = (  # what a damaged pickle or archive makes torch.load raise
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    AssertionError,
    MemoryError,
)


# yacs' CfgNode, a dict, in which official training runs save their options, is read as a dict without yacs.
PLAIN: list[Any] = [(OrderedDict, "yacs.config.CfgNode"), (argparse.Namespace, "argparse.Namespace")]


@dataclass(kw_only=True)
class Content:
    """What was found at a path."""

    tensors: dict[str, Tensor]
    beside: Mapping[str, Any] = field(default_factory=dict)  # what is no weight: optimizer, epoch ...
    config: Mapping[str, Any] | None = None  # ours (with `window_size`, ...) or that of Hugging Face
    notices: list[str] = field(default_factory=list)


def read_file(path: Path) -> Content:
    """The tensors of one file.

    Raises:
        WeightsError: it is damaged, holds no tensors by name, or needs code to be read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path} is a git-lfs pointer, not the file itself; run `git lfs pull`")
    if start[8:9] == b"{":
        return _read_safetensors(path)
    return _unwrap(path, _read_pickle(path))


def read_config(path: Path) -> dict[str, Any] | None:
    """The model that a safetensors file of ours says that it is of; None for every other file."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > MOST_HEADER or not (header := file.read(length)).startswith(b"{"):
                return None
        config = json.loads(header).get("__metadata__", {}).get("config")
        return json.loads(config) if config else None
    except (OSError, ValueError, AttributeError):
        return None


def read_folder(path: Path) -> Content:
    """The tensors of a Hugging Face folder, in one file or in several with an index, and its config.json."""
    config = read_json(path / "config.json") if (path / "config.json").is_file() else None
    for name in INDEXES:
        if (path / name).is_file():
            parts = sorted(set(read_json(path / name).get("weight_map", {}).values()))
            for part in parts:
                if not (path / part).is_file():
                    raise WeightsError(f"{path / part} is missing; {name} names it")
            contents = [read_file(path / part) for part in parts]
            return Content(tensors={k: v for c in contents for k, v in c.tensors.items()}, config=config)
    for name in SINGLES:
        if (path / name).is_file():
            return Content(tensors=read_file(path / name).tensors, config=config)
    raise WeightsError(f"{path} holds no weights: none of {some([*SINGLES, *INDEXES])}, and no checkpoint")


def read_json(path: Path) -> dict[str, Any]:
    """An object in a JSON file."""
    try:
        loaded = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    if not isinstance(loaded, dict):
        raise WeightsError(f"{path} holds no JSON object")
    return loaded


def _read_safetensors(path: Path) -> Content:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
        config = json.loads(metadata["config"]) if "config" in metadata else None
    except (SafetensorError, ValueError, OSError) as error:
        raise WeightsError(f"{path} is damaged or cut short: {error}") from error
    return Content(tensors=tensors, config=config)


def _read_pickle(path: Path) -> Any:
    try:
        with safe_globals(PLAIN), path.open("rb") as file:
            if zipfile.is_zipfile(path) and path.suffix != ".safetensors":  # torch.load believes that name
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if names := _globals_in(str(error)):
            raise WeightsError(
                f"{path} would run code if it were read (it names {names}): refused; ask its author for a "
                "safetensors file"
            ) from None
        raise WeightsError(f"{path} is no checkpoint, or damaged: {_reason(error)}") from None
    except DAMAGE as error:
        raise WeightsError(f"{path} is damaged or cut short: {_reason(error)}") from error


def _globals_in(message: str) -> str:
    """What the restricted unpickler of torch says that it was asked for."""
    return ", ".join(dict.fromkeys(re.findall(r"GLOBAL ([\w.]+)", message)))


def _reason(error: Exception) -> str:
    """The telling line of an error of torch's, without its advice."""
    message = str(error).strip()
    found = re.search(r"error: (.+)", message)
    return (found[1] if found else (message.splitlines() or [type(error).__name__])[0])[:200]


def _unwrap(path: Path, loaded: Any) -> Content:
    """The weights inside whatever a trainer saved around them."""
    if not isinstance(loaded, Mapping):
        raise WeightsError(f"{path} holds a {type(loaded).__name__}, not tensors by name")
    beside: dict[str, Any] = {}
    for key in WRAPPERS:
        if isinstance(loaded.get(key), Mapping):
            beside = {str(name): value for name, value in loaded.items() if name != key}
            loaded = loaded[key]
            break
    strange = [str(name) for name, value in loaded.items() if not isinstance(value, Tensor)]
    if strange or not loaded:
        what = f"entries that are no tensors: {some(strange)}" if strange else "no tensors"
        raise WeightsError(f"{path} holds {what}; its weights may be under a key other than {WRAPPERS}")
    return Content(tensors=_without_prefixes(loaded), beside=beside)


def _without_prefixes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for _ in PREFIXES:
        for prefix in PREFIXES:
            if _all_start(tensors, prefix):
                tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return dict(tensors)


def _all_start(names: Iterable[str], prefix: str) -> bool:
    return all(name.startswith(prefix) for name in names)
