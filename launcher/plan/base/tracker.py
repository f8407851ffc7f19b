"""Live bytes of tensors while a model runs, whether their memory is there or not (meta and fake tensors).

Every storage counts from the operator that returns it until the last tensor on it is gone, autograd's saved
ones among them. What an operator allocates and frees inside is not seen.
"""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Within it, counts what operators return: `live` now, `peak` at most since it was last reset."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and take note of the storages that are new."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.count(leaf)
        return result

    def count(self, tensor: torch.Tensor) -> None:
        """Count the storage of a tensor, unless it is known."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.live += self._sizes[key]
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, key)

    def ignore(self, tensor: torch.Tensor) -> None:
        """Leave out the storage of a tensor."""
        key = tensor.untyped_storage()._cdata
        self.live -= self._sizes.get(key, 0)
        self._sizes[key] = 0

    def reset_peak(self) -> int:
        """The peak since the last reset; from here on it is what is live."""
        peak, self.peak = self.peak, self.live
        return peak

    def _gone(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)
