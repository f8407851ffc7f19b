"""Tensors out of files that are not trusted: safetensors, or pickles of tensors and plain data alone.

The first bytes of a file decide what it is, not its name. Tensors are memory-mapped where the file allows it.
"""

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.serialization import safe_globals

from swin_moe.weights.errors import WeightsError, some
from swin_moe.weights.foreign import foreign
from swin_moe.weights.names import without_prefixes
from swin_moe.weights.plain import ALLOWED

# where trainers keep weights, and their moving average: DINO and EsViT call these student and teacher
WRAPPERS = ("model", "state_dict", "module", "model_state_dict", "model_state", "student")
AVERAGES = ("model_ema", "state_dict_ema", "ema_state_dict", "ema", "module_ema", "teacher")
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
REASONS = {  # what torch.load says, and what it means
    "Unsupported operand": "a pickle of protocol 4 or later; save it with the protocol of torch.save, 2",
    "Invalid magic number": "a pickle that torch.save did not write",
    "legacy .tar format": "neither a zip archive nor a pickle of torch.save",
}


@dataclass(kw_only=True)
class Content:
    """The tensors at a path, and what else is there."""

    tensors: dict[str, Tensor]
    beside: Mapping[str, Any] = field(default_factory=dict)  # what is no weight: optimizer, epoch ...
    config: Mapping[str, Any] | None = None  # ours (with `window_size`, ...) or that of Hugging Face
    dropped: dict[str, str] = field(default_factory=dict)  # tensors of no Swin, and why each is not used
    notices: list[str] = field(default_factory=list)


def read_file(path: Path, *, ema: bool = False) -> Content:
    """The tensors of one file.

    Args:
        path: of the file.
        ema: take the moving average of the weights, where a trainer saved it beside them.

    Raises:
        WeightsError: it is something else, damaged, holds no tensors by name, or needs code to be read.
    """
    try:
        if _is_safetensors(path):
            return _named(path, _read_safetensors(path), ema=ema)
        what = foreign(path)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    if what:
        raise WeightsError(f"{path} is {what}")
    return _unwrap(path, _read_pickle(path), ema=ema)


def _is_safetensors(path: Path) -> bool:
    """The length of a header in eight bytes, and the header, an object of JSON."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= MOST_HEADER


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata in the header of a safetensors file; empty for every other file."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > MOST_HEADER or not (header := file.read(length)).startswith(b"{"):
                return {}
        return dict(json.loads(header).get("__metadata__", {}))
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def read_config(path: Path) -> dict[str, Any] | None:
    """The model configuration in a safetensors file of ours; None for every other file."""
    config = read_metadata(path).get("config")
    try:
        return json.loads(config) if config else None
    except (ValueError, TypeError):
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
        with warnings.catch_warnings(action="ignore"), safe_globals(ALLOWED), path.open("rb") as file:
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
    """The globals that torch's restricted unpickler refused."""
    return ", ".join(dict.fromkeys(re.findall(r"GLOBAL ([\w.]+)", message)))


def _reason(error: Exception) -> str:
    """The telling line of an error of torch's, without its advice."""
    message = str(error).strip()
    if known := next((reason for mark, reason in REASONS.items() if mark in message), None):
        return known
    match = re.search(r"error: (.+)", message)
    return (match[1] if match else (message.splitlines() or [type(error).__name__])[0])[:200]


def _unwrap(path: Path, loaded: Any, *, ema: bool) -> Content:
    """The weights inside whatever a trainer saved around them."""
    if not isinstance(loaded, Mapping):
        raise WeightsError(f"{path} holds a {type(loaded).__name__}, not tensors by name")
    average, model = _first(loaded, AVERAGES), _first(loaded, WRAPPERS)
    key = average if average and (ema or not model) else model
    if key is None:
        return _named(path, Content(tensors=_tensors(path, loaded)), ema=ema)
    content = Content(
        tensors=_tensors(path, loaded[key]),
        beside={str(name): value for name, value in loaded.items() if name != key},
        notices=[_choice(key, average, model)] if average else [],
    )
    return _named(path, content, ema=ema and key != average)


def _choice(taken: str, average: str, model: str | None) -> str:
    """The notice for a file with a moving average in it."""
    if model is None:
        return f"the weights are the moving average {average}: the file holds no others"
    how = "" if taken == average else "; for the moving average: convert --ema"
    return f"the file holds {model} and {average}: {taken} was taken{how}"


def _first(loaded: Mapping[Any, Any], keys: Sequence[str]) -> str | None:
    """The first of some keys under which a file holds tensors by name."""
    for key in keys:
        value = loaded.get(key)
        if isinstance(value, Mapping) and any(isinstance(each, Tensor) for each in value.values()):
            return key
    return None


def _tensors(path: Path, loaded: Mapping[Any, Any]) -> dict[str, Tensor]:
    strange = [str(name) for name, value in loaded.items() if not isinstance(value, Tensor)]
    if "param_groups" in strange or ("optimizer" in strange and len(strange) == len(loaded)):
        raise WeightsError(
            f"{path} holds an optimizer's state and no weights: its entries are {some(strange)}"
        )
    if strange or not loaded:
        what = f"entries that are no tensors: {some(strange)}" if strange else "no tensors"
        raise WeightsError(f"{path} holds {what}; its weights may be under a key other than {WRAPPERS}")
    return {str(name): tensor for name, tensor in loaded.items()}


def _named(path: Path, content: Content, *, ema: bool) -> Content:
    """A content with the tensors of its Swin alone, by the names that they have without wrappers."""
    try:
        named = without_prefixes(content.tensors, ema=ema)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    notices = [*content.notices, *named.notices]
    return replace(content, tensors=named.tensors, dropped=named.dropped, notices=notices)
