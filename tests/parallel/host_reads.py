"""Counts, on the CPU, where the host would wait for a GPU: reads of values, and sends that block.

Every tensor counts as one on the device but for those that `Tensor.cpu` returned, those made without a
`device`, and those computed from such tensors alone.
"""

import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).resolve().parents[2]
BY_INDEX = {"index", "index_put", "index_put_", "_index_put_impl_"}
READS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "bincount", "equal"}


class HostWaits:
    """Within it, waits are counted by what waits and by the line of the project that asks for it."""

    def __init__(self, *on_host: Tensor) -> None:
        self.found: Counter[tuple[str, str]] = Counter()
        self._host: dict[int, Tensor] = {}  # by storage; kept, so that no address is used again
        self._modes = _Functions(self), _Operators(self)
        for tensor in on_host:
            self.keep(tensor)

    def __enter__(self) -> "HostWaits":
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)
        self._host.clear()

    @property
    def total(self) -> int:
        """All waits."""
        return sum(self.found.values())

    def note(self, name: str) -> None:
        """A wait."""
        frames = [f for f in traceback.extract_stack() if Path(f.filename).is_relative_to(ROOT)]
        frames = [f for f in frames if "site-packages" not in f.filename]  # of a .venv in the checkout
        ours = [f for f in frames if Path(f.filename).name not in ("host_reads.py", "host.py")][-1]
        self.found[name, f"{Path(ours.filename).relative_to(ROOT)}:{ours.name}"] += 1

    def keep(self, tensor: Tensor) -> Tensor:
        """Take note that a tensor is on the host."""
        self._host[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def are_on_host(self, values: Any) -> bool:
        """Whether there are tensors among the values, and all of them are on the host."""
        tensors = [each for each in tree_leaves(values) if isinstance(each, Tensor)]
        return bool(tensors) and all(t.untyped_storage().data_ptr() in self._host for t in tensors)


class _Functions(TorchFunctionMode):
    """What the dispatcher of the CPU does not see."""

    def __init__(self, waits: HostWaits) -> None:
        super().__init__()
        self._waits = waits

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs, waits = getattr(function, "__name__", ""), kwargs or {}, self._waits
        here = waits.are_on_host(args[:1])
        if name in ("tolist", "numpy") and not here:
            waits.note(name)
        if name in ("tensor", "as_tensor") and kwargs.get("device") is not None:
            waits.note(f"blocking {name}")
        result = function(*args, **kwargs)
        if name == "cpu" and not here:
            waits.note("cpu")
            return waits.keep(result.detach().clone())
        if (
            name == "to"
            and here
            and any(isinstance(a, torch.device | str) for a in [*args, *kwargs.values()])
        ):
            if not kwargs.get("non_blocking"):
                waits.note("blocking to")
            return result.clone()
        is_made = isinstance(result, Tensor) and not any(isinstance(a, Tensor) for a in tree_leaves(args))
        if is_made and kwargs.get("device") is None and not kwargs.get("out"):
            waits.keep(result)
        return result


class _Operators(TorchDispatchMode):
    def __init__(self, waits: HostWaits) -> None:
        super().__init__()
        self._waits = waits

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = function._schema.name.split("::")[1], kwargs or {}
        here = self._waits.are_on_host((args, kwargs))
        if not here and (wait := _wait(function, name, args, kwargs)):
            self._waits.note(wait)
        result = function(*args, **kwargs)
        if here:
            for tensor in tree_leaves(result):
                if isinstance(tensor, Tensor):
                    self._waits.keep(tensor)
        return result


def _wait(function: Any, name: str, args: Any, kwargs: Any) -> str:
    """What the host waits for in an operator on the device; "" for nothing."""
    indices = args[1] if name in BY_INDEX else ()
    if any(index is not None and index.dtype == torch.bool for index in indices):
        return f"{name} by a mask"
    if name == "repeat_interleave" and "Tensor" in function._overloadname:
        return name if kwargs.get("output_size") is None else ""
    return name if name in READS else ""
