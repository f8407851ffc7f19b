"""A DeepSpeed engine whose gradients, clip norm and states are right beside our own experts.

What DeepSpeed 0.19.8 needs for that, and where it goes wrong silently (tests/parallel hold both):
- it looks for experts only in instances of its own MoE class, so one parameterless marker of that class
  rides along with the model; the expert parameters carry `allreduce` and `group_name` (parallel/expert.py);
- its named expert groups must exist before `initialize`; they are our mesh's groups under its names;
- at stage 0 it averages rank-local norms (runtime/utils.py: clip_grad_norm_), so we clip there;
- the model's output must be a tuple, list or dict of tensors: its backward hooks hang on them, and without
  them stage 1 in bf16 counts the first micro-batches of a step several times;
- at stage 0 in bf16 it takes a step on zero gradients while it starts, which decays the weights and counts
  (unfused_optimizer.py: initialize_optimizer_states); a learning rate of 0 and a fresh state undo that;
- at stages 1 and 2 it links the Adam states of the first parameter group only;
- its buckets of gradients are full after so many elements, dense and expert ones together: ranks that hold
  uneven experts would reduce dense gradients in different pieces, so there all go into one bucket;
- on the CPU it would compile and attach a shared-memory collective whose segments and build lock two runs on
  one machine fight over; gloo serves instead.
Gradients need no scaling by hand: every stage divides by the size of the whole world.
"""

import logging
from typing import Any, Literal

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.moe.layer import MoE
from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer
from deepspeed.utils import groups as deepspeed_groups
from deepspeed.utils import safe_get_full_grad
from torch import Tensor, nn

from parallel.collectives import gather_objects, sum_over
from parallel.expert import experts_of
from parallel.mesh import Mesh

ZeroStage = Literal[0, 1, 2]
Precision = Literal["fp32", "bf16"]


class _ExpertMarker(MoE):
    """Tells DeepSpeed's engine that the model has experts; holds and does nothing."""

    def __init__(self, group_name: str, num_experts: int, num_local_experts: int, ep_size: int) -> None:
        nn.Module.__init__(self)
        self.expert_group_name, self.ep_size = group_name, ep_size
        self.num_experts, self.num_local_experts = num_experts, num_local_experts

    def set_deepspeed_parallelism(self, use_data_before_expert_parallel_: bool = False) -> None:
        """The groups are there already: `_share_groups` made them."""


class Engine:
    """One model under ZeRO: forward, backward and step of micro-batches, and access to what is partitioned.

    Args:
        model: on its device; its expert parameters are marked.
        param_groups: of the optimizer, each with a `name` and its hyper-parameters; `step` gives the
            learning rate.
        mesh: the layout.
        zero_stage: 0 to 2.
        precision: `bf16` computes in bf16 with fp32 masters; gradients accumulate in fp32 at stages 1 and 2.
        clip_norm: bound of the global gradient norm, every expert counted once; 0 for none.
        micro_batch_size: images a rank and forward pass.
        grad_accum_steps: micro-batches an optimizer step.
    """

    def __init__(
        self,
        model: nn.Module,
        param_groups: list[dict[str, Any]],
        mesh: Mesh,
        *,
        zero_stage: ZeroStage,
        precision: Precision,
        clip_norm: float,
        micro_batch_size: int,
        grad_accum_steps: int,
    ) -> None:
        self.mesh, self.clip_norm = mesh, clip_norm
        self._clips_here = zero_stage == 0
        self._parameters = list(model.parameters())
        self._norm = torch.zeros(())
        start_deepspeed()
        if any(experts_of(p) for p in model.parameters()):
            _attach_marker(model, mesh)
            param_groups = split_params_into_different_moe_groups_for_optimizer(param_groups)
            param_groups = [group for group in param_groups if group["params"]]
        config: dict[str, Any] = {
            "train_batch_size": micro_batch_size * grad_accum_steps * mesh.dims.world_size,
            "train_micro_batch_size_per_gpu": micro_batch_size,
            "gradient_accumulation_steps": grad_accum_steps,
            "gradient_clipping": 0.0 if self._clips_here else clip_norm,
            "steps_per_print": None,
            "zero_optimization": {
                "stage": zero_stage,
                "reduce_scatter": True,  # the only path DeepSpeed tests beside experts
                "contiguous_gradients": True,  # required beside experts at stage 2
                "overlap_comm": torch.cuda.is_available(),
            },
            "bf16": {"enabled": precision == "bf16"},
        }
        if len(sizes := set(gather_objects(sum(p.numel() for p in self._parameters)))) > 1:
            config["zero_optimization"]["reduce_bucket_size"] = max(sizes)
        if precision == "bf16" and zero_stage:  # DeepSpeed refuses fp32 accumulation at stage 0
            config["data_types"] = {"grad_accum_dtype": "fp32"}
        optimizer = torch.optim.AdamW([{**group, "lr": 0.0} for group in param_groups], fused=True)
        self.deepspeed, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=config, dist_init_required=False
        )
        optimizer.state.clear()  # of the empty step that stage 0 takes in bf16

    def __call__(self, *args: Any) -> Any:
        """Run the model's forward."""
        return self.deepspeed(*args)

    @property
    def module(self) -> nn.Module:
        """The model itself."""
        return self.deepspeed.module

    def train(self, mode: bool = True) -> None:
        """Switch between training and evaluation."""
        self.deepspeed.train(mode)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of a micro-batch's mean loss: scalar; the last of a step reduces it."""
        self.deepspeed.backward(loss)

    def step(self, lr: float) -> None:
        """Close a micro-batch; after the last of a step, clip and update the weights."""
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = lr
        if self._clips_here and self.deepspeed.is_gradient_accumulation_boundary():
            self._norm = _clip(self._parameters, self.clip_norm, self.mesh)
        self.deepspeed.step()

    @property
    def grad_norm(self) -> float:
        """L2 norm of the last step's global gradient before clipping; inf where it was not finite."""
        norm = self._norm if self._clips_here else self.deepspeed.get_global_grad_norm()
        return float(norm)

    def gradient(self, parameter: nn.Parameter) -> Tensor:
        """This rank's whole gradient of a parameter, between the last backward of a step and its step.

        Every rank that holds the parameter calls it together.
        """
        return safe_get_full_grad(parameter)


@torch.no_grad()
def _clip(parameters: list[nn.Parameter], clip_norm: float, mesh: Mesh) -> Tensor:
    """Clip reduced gradients in place by their global norm, and return it: scalar."""
    gradients = [(experts_of(p) is not None, p.grad) for p in parameters if p.grad is not None]
    squares = torch.zeros(2, device=parameters[0].device)  # of dense parameters, of this rank's experts
    for is_expert, gradient in gradients:
        squares[int(is_expert)] += gradient.float().square().sum()
    sum_over(squares[1:], mesh.ep_group)
    norm = squares.sum().sqrt()
    if clip_norm > 0:
        scale = (clip_norm / (norm + 1e-6)).clamp(max=1.0)
        for _, gradient in gradients:
            gradient.mul_(scale)
    return norm


def start_deepspeed() -> None:
    """Attach DeepSpeed to the process group that is there, without its shared-memory operator."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)


def _attach_marker(model: nn.Module, mesh: Mesh) -> None:
    """Give DeepSpeed the mesh's groups under its name for this expert-parallel size, and the marker."""
    name = f"ep_size_{mesh.dims.ep_size}"
    deepspeed_groups._EXPERT_PARALLEL_GROUP[name] = mesh.ep_group
    deepspeed_groups._EXPERT_PARALLEL_GROUP_RANKS[name] = mesh.dims.ep_ranks(mesh.rank)
    deepspeed_groups._EXPERT_DATA_PARALLEL_GROUP[name] = mesh.expert_dp_group
    deepspeed_groups._EXPERT_DATA_PARALLEL_GROUP_RANKS[name] = mesh.dims.expert_dp_ranks(mesh.rank)
    local = next(e for e in map(experts_of, model.parameters()) if e is not None)
    blocks = mesh.dims.ep_size // mesh.dims.expert_slices  # DeepSpeed counts experts for its own files alone
    marker = _ExpertMarker(name, len(local) * blocks, len(local), mesh.dims.ep_size)
    model.add_module("deepspeed_expert_marker", marker)
