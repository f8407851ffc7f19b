"""Declares to DeepSpeed 0.19.8 experts that are not its own.

Its groups of experts have names and must exist before `initialize`: they are our mesh's, under its names. Up
to stage 2 it looks for experts only in instances of its own MoE class, so a parameterless marker of that
class rides along with the model. Stage 3 asks each expert parameter instead, by attributes that its own
AutoEP sets; and a layer that uses its experts' weights outside their module's forward must be gathered as one
*leaf*.
"""

from deepspeed.moe.layer import MoE
from deepspeed.utils import groups, set_z3_leaf_module
from torch import nn

from parallel.experts.placement import experts_of
from parallel.ranks.mesh import Mesh


class _ExpertMarker(MoE):
    """Makes DeepSpeed's engine see that the model has experts; has no parameters and does nothing."""

    def __init__(self, group_name: str, num_experts: int, num_local_experts: int, ep_size: int) -> None:
        nn.Module.__init__(self)
        self.expert_group_name, self.ep_size = group_name, ep_size
        self.num_experts, self.num_local_experts = num_experts, num_local_experts

    def set_deepspeed_parallelism(self, use_data_before_expert_parallel_: bool = False) -> None:
        """The groups are there already: `declare_experts` gave them."""


def declare_experts(model: nn.Module, mesh: Mesh, zero_stage: int) -> bool:
    """Declare the model's experts to DeepSpeed; returns whether the optimizer has some."""
    experts = [parameter for parameter in model.parameters() if experts_of(parameter) is not None]
    if not experts:
        return False
    name = f"ep_size_{mesh.dims.ep_size}"
    groups._EXPERT_PARALLEL_GROUP[name] = mesh.ep_group
    groups._EXPERT_PARALLEL_GROUP_RANKS[name] = mesh.dims.ep_ranks(mesh.rank)
    groups._EXPERT_DATA_PARALLEL_GROUP[name] = mesh.expert_dp_group
    groups._EXPERT_DATA_PARALLEL_GROUP_RANKS[name] = mesh.dims.expert_dp_ranks(mesh.rank)
    if zero_stage == 3:
        _place(model, experts, name, mesh)
        return True
    if not any(parameter.requires_grad for parameter in experts):
        return False  # it insists that the optimizer has some
    _attach_marker(model, experts[0], name, mesh)
    return True


def _place(model: nn.Module, experts: list[nn.Parameter], name: str, mesh: Mesh) -> None:
    for parameter in experts:
        parameter.ds_zero_placement_family = "autoep_expert"  # type: ignore[attr-defined]
        parameter.ds_zero_partition_group_name = name  # type: ignore[attr-defined]
    for layer in model.modules():
        held = (p for child in layer.children() for p in child.parameters(recurse=False))
        if any(experts_of(parameter) is not None for parameter in held):
            set_z3_leaf_module(layer, True)


def _attach_marker(model: nn.Module, expert: nn.Parameter, name: str, mesh: Mesh) -> None:
    local = experts_of(expert)
    assert local is not None
    blocks = (
        mesh.dims.ep_size // mesh.dims.expert_tensor_parallel_size
    )  # DeepSpeed counts experts for its own files alone
    marker = _ExpertMarker(name, len(local) * blocks, len(local), mesh.dims.ep_size)
    model.add_module("deepspeed_expert_marker", marker)
