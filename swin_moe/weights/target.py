"""The model that weights are of: a backbone alone, with a classifier, or in the model of a dense task."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from parallel.experts.names import own_slice_of_expert, parameter_shapes, persistent_buffers
from parallel.experts.placement import experts_of, global_name
from parallel.zero.init import gathered
from swin_moe.backbone.backbone import Backbone
from swin_moe.config import ModelConfig
from swin_moe.weights import dense, native
from swin_moe.weights.errors import WeightsError, some
from swin_moe.weights.parts import HEAD


class Target:
    """A model by the names that weights have here: those of its backbone without a prefix, heads as they are.

    Args:
        model: a `Backbone`, or a model with one in it, such as a `Segmenter`.

    Raises:
        WeightsError: the model has no backbone.
    """

    def __init__(self, model: nn.Module) -> None:
        found = [(name, module) for name, module in model.named_modules() if isinstance(module, Backbone)]
        if not found:
            raise WeightsError(f"a {type(model).__name__} has no backbone that weights could be of")
        self.model = model
        name, self.backbone = found[0]
        self._prefix = f"{name}." if name else ""

    @property
    def config(self) -> ModelConfig:
        """Of the backbone."""
        return self.backbone.config

    def shapes(self) -> dict[str, list[int]]:
        """Shape of every tensor by global name, whichever experts this rank holds."""
        moe = self.config.moe
        buffers = {name: list(buffer.shape) for name, buffer in persistent_buffers(self.model).items()}
        shapes = parameter_shapes(self.model, moe.num_experts if moe else 0) | buffers
        return {self._own(name): shape for name, shape in shapes.items()}

    @property
    def has_heads(self) -> bool:
        """Whether there are heads of a dense task around the backbone."""
        return any(map(dense.prefix_of, dict(self.model.named_parameters())))

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by global name, one an expert.

        Raises:
            WeightsError: some experts are on other ranks.
        """
        moe = self.config.moe
        tensors = native.tensors_of(self.model, moe.num_experts if moe else 0)
        return {self._own(name): tensor for name, tensor in tensors.items()}

    @torch.no_grad()
    def write(self, tensors: Mapping[str, Tensor]) -> int:
        """Write tensors by global name into the model; others stay. Returns how many were written.

        Of a partitioned model, every rank calls it together.
        """
        self._refuse_meta()
        loaded = 0
        for own, parameter in self.model.named_parameters():
            name, experts = self._own(own), experts_of(parameter)
            names = [name] if experts is None else [global_name(name, expert) for expert in experts]
            if names[0] not in tensors:  # of a part or a router that is to stay
                continue
            with gathered(parameter):
                pieces = [parameter] if experts is None else parameter.unbind(0)
                for name, piece in zip(names, pieces, strict=True):
                    whole = tensors[name]
                    piece.copy_(whole if experts is None else own_slice_of_expert(parameter, whole))
            loaded += len(names)
        for own, buffer in persistent_buffers(self.model).items():
            if self._own(own) in tensors:  # else a fresh router's
                buffer.copy_(tensors[self._own(own)])
                loaded += 1
        self.model.train(self.model.training)  # a position bias that was kept is of the old weights
        return loaded

    def _own(self, name: str) -> str:
        return name.removeprefix(self._prefix)

    def _refuse_meta(self) -> None:
        meta: list[Any] = [name for name, parameter in self.model.named_parameters() if parameter.is_meta]
        if meta:
            raise WeightsError(
                f"the model is on the meta device ({some(meta)}); give it memory first: to_empty"
            )


def part_label(name: str) -> str:
    """What a person calls the part of a model that a tensor of ours belongs to."""
    if name in HEAD:
        return "classifier"
    prefix = dense.prefix_of(name)
    return dense.WHAT[prefix] if prefix else "backbone"


def initial_parts(shapes: Mapping[str, list[int]], tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """By part of a model, how many of its tensors are in no weights and keep their values."""
    left: dict[str, int] = {}
    for name in shapes:
        if name not in tensors:
            left[part_label(name)] = left.get(part_label(name), 0) + 1
    return left


def origins(shapes: Mapping[str, list[int]], tensors: Mapping[str, Tensor]) -> str:
    """A line: of each part of a model, how many of its tensors come from the weights."""
    totals: dict[str, int] = {}
    for name in shapes:
        totals[part_label(name)] = totals.get(part_label(name), 0) + 1
    left = initial_parts(shapes, tensors)
    parts = [f"{part} {total - left.get(part, 0)} of {total}" for part, total in totals.items()]
    rest = f"; the other {sum(left.values())} tensors keep their initial values" if left else ""
    return f"taken from the weights: {', '.join(parts)} tensors{rest}"
