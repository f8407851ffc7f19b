"""What parallel/ leans on inside DeepSpeed: an upgrade that moves a name fails here, and says which.

The behaviour behind the names is held by test_layout.py and test_checkpoint.py; read zero.py's docstring, and
run both, before changing a version here.
"""

import inspect
from dataclasses import fields
from typing import Any

import deepspeed
import pytest
import torch
from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator
from deepspeed.moe.layer import MoE
from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer
from deepspeed.ops.op_builder.all_ops import ALL_OPS
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.zero import partition_parameters
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from deepspeed.utils import (
    groups,
    safe_get_full_fp32_param,
    safe_get_full_grad,
    safe_get_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
    set_z3_leaf_module,
)
from deepspeed.utils.tensor_fragment import fragment_address, tensor_fragment

from parallel.zero.norm import norm_of_tensors, norm_with_experts
from tests.distributed import run_on_ranks
from tests.parallel.training import Layout, Run


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_the_version_is_the_one_that_all_of_this_was_tried_with() -> None:
    assert deepspeed.__version__ == "0.19.8"


@pytest.mark.parametrize(
    "name",
    [
        "_EXPERT_PARALLEL_GROUP",
        "_EXPERT_PARALLEL_GROUP_RANKS",
        "_EXPERT_DATA_PARALLEL_GROUP",
        "_EXPERT_DATA_PARALLEL_GROUP_RANKS",
    ],
)
def test_the_named_expert_groups_are_dictionaries_of_the_module(name: str) -> None:
    assert isinstance(getattr(groups, name), dict)


def test_the_getters_read_those_dictionaries(monkeypatch: pytest.MonkeyPatch) -> None:
    group = object()
    monkeypatch.setitem(groups._EXPERT_PARALLEL_GROUP, "ep_size_7", group)
    monkeypatch.setitem(groups._EXPERT_DATA_PARALLEL_GROUP, "ep_size_7", group)
    assert groups._get_expert_parallel_group("ep_size_7") is group
    assert groups._get_expert_data_parallel_group("ep_size_7") is group


def test_the_shared_memory_operator_is_switched_off_by_its_name() -> None:
    key = "deepspeed_shm_comm"
    assert key in deepspeed.ops.__compatible_ops__
    assert key == ALL_OPS[key].NAME


def test_signatures_of_public_functions() -> None:
    accepted = set(parameters(deepspeed.initialize))
    assert {"model", "optimizer", "config", "dist_init_required"} <= accepted
    accepted = set(parameters(deepspeed.init_distributed))
    assert {"dist_backend", "auto_mpi_discovery", "verbose"} <= accepted
    assert parameters(split_params_into_different_moe_groups_for_optimizer)[0] == "param_groups"
    assert parameters(safe_get_full_grad) == ["param"]
    assert parameters(safe_get_full_fp32_param) == ["param"]
    assert parameters(safe_get_full_optimizer_state) == ["param", "optim_state_key"]
    assert parameters(safe_set_local_fp32_param) == ["param", "value"]
    assert parameters(safe_set_local_optimizer_state) == ["param", "value", "optim_state_key"]


def test_the_engine_finds_experts_by_deepspeeds_class() -> None:
    source = inspect.getsource(DeepSpeedEngine)
    assert "isinstance(module, MoE)" in source
    assert "has_moe_layers" in source
    assert "set_deepspeed_parallelism" in source
    assert parameters(MoE.set_deepspeed_parallelism) == ["self", "use_data_before_expert_parallel_"]


@pytest.mark.parametrize("optimizer", [DeepSpeedZeroOptimizer, BF16_Optimizer])
def test_the_partitioned_optimizers_link_adams_states_lazily(optimizer: type) -> None:
    assert parameters(optimizer._lazy_init_hp_params_optimizer_state) == ["self"]
    assert "_hp_optimizer_states_linked" in inspect.getsource(optimizer)


@pytest.mark.parametrize(
    "optimizer",
    [DeepSpeedZeroOptimizer, BF16_Optimizer, DeepSpeedZeroOptimizer_Stage3, FP16_UnfusedOptimizer],
)
def test_the_gate_is_asked_by_every_optimizer_once_the_norm_is_known(optimizer: type) -> None:
    source = inspect.getsource(optimizer)
    assert "optimizer.step()" in source
    call = "self._optimizer_step(" if "def _optimizer_step(" in source else "self.optimizer.step()"
    before, found, _ = source.partition("def step(self, closure=None):")[2].partition(call)
    assert found
    assert "self._global_grad_norm = " in before
    assert "is_invalid_grad_norm(" in before


def test_on_a_gpu_too_the_offloaded_optimizer_is_built_for_the_cpu() -> None:
    """`prepare_extensions` builds it with DS_ACCELERATOR=cpu: the GPU's accelerator must take the same."""
    source = inspect.getsource(CUDA_Accelerator._lazy_init_class_dict)
    own = source.partition('import_module("{}.cpu".format(op_builder_dir))')[2]
    assert '"CPUAdamBuilder"' in own
    assert "self.class_dict[member_name] = getattr(cpu_op_builder_module, member_name)" in own


def test_norms_are_names_of_the_bf16_optimizers_module() -> None:
    source = inspect.getsource(BF16_Optimizer.step)
    for ours in (norm_of_tensors, norm_with_experts):
        theirs = {
            norm_of_tensors: "get_global_norm_of_tensors",
            norm_with_experts: "get_norm_with_moe_layers",
        }
        assert f"_norm = {theirs[ours]}(" in source
        assert parameters(ours) == parameters(getattr(deepspeed.runtime.utils, theirs[ours]))


@pytest.mark.parametrize("values", [[3.0], [0.1, 2.0, 5.0], [1e-18, 1e18]])
def test_the_norm_of_tensors_is_deepspeeds(values: list[float]) -> None:
    """To the last bit."""
    tensors = [torch.full((3, 2), value, dtype=torch.bfloat16) for value in values]
    expected = deepspeed.runtime.utils.get_global_norm_of_tensors(tensors)
    assert norm_of_tensors(tensors).equal(expected)


@pytest.mark.parametrize("experts", [[3.0], [2.0, 5.0], [float("inf")], [float("nan"), 1.0], [1e38, 1e38]])
def test_the_norm_beside_experts_is_deepspeeds(monkeypatch: pytest.MonkeyPatch, experts: list[float]) -> None:
    """Of 1 dense tensor and groups of experts, one tensor each, to the last bit."""
    tensors = {f"ep_size_{i}": [torch.full((3, 2), value)] for i, value in enumerate(experts)}
    for name in tensors:
        monkeypatch.setitem(groups._EXPERT_PARALLEL_GROUP, name, None)
    dense = torch.tensor(0.1).sqrt()
    found = norm_with_experts(dense, None, tensors)
    assert found == deepspeed.runtime.utils.get_norm_with_moe_layers(dense, None, tensors)
    assert isinstance(found, float)


def test_pieces_of_masters_are_found_by_these_names() -> None:
    source = inspect.getsource(DeepSpeedZeroOptimizer_Stage3)
    for name in ("self.fp16_groups", "self.fp32_partitioned_groups_flat", "partition_numel"):
        assert name in source
    assert "self.bf16_groups" in inspect.getsource(BF16_Optimizer)
    assert "self.bit16_groups" in inspect.getsource(DeepSpeedZeroOptimizer)
    assert [field.name for field in fields(fragment_address)] == ["numel", "start"]
    assert {"lp_fragment_address", "hp_fragment_address"} <= {field.name for field in fields(tensor_fragment)}


def test_stage_3_asks_parameters_where_they_live() -> None:
    source = inspect.getsource(partition_parameters)
    assert 'getattr(param, "ds_zero_partition_process_group", self.ds_process_group)' in source
    source = inspect.getsource(DeepSpeedZeroOptimizer_Stage3)
    for name in ("ds_zero_placement_family", "ds_zero_partition_group_name", '"autoep_expert"'):
        assert name in source
    assert parameters(set_z3_leaf_module) == ["model", "flag"]


def names_of_engines() -> list[dict[str, Any]]:
    """What masters.py and zero.py read from engines of every kind of optimizer."""
    return [names_of(Run.start(Layout(stage=s, precision=p))) for s, p in KINDS_OF_ENGINES]


KINDS_OF_ENGINES = [(0, "fp32"), (1, "fp32"), (2, "fp32"), (0, "bf16"), (1, "bf16"), (2, "bf16"), (3, "fp32")]


CUT = ["ds_shape", "ds_tensor", "ds_status", "ds_id", "ds_zero_partition_rank"]  # of a parameter at stage 3


def names_of(run: Run) -> dict[str, Any]:
    engine = run.engine.deepspeed
    parameter = next(run.engine.module.parameters())
    optimizer = engine.optimizer
    return {
        "optimizer": type(optimizer).__name__,
        "basic": type(engine.basic_optimizer).__name__,
        "partitioned": bool(engine.zero_optimization()),
        "experts": engine.has_moe_layers,
        "groups": {group["name"] for group in optimizer.param_groups},
        "expert groups": {group["name"] for group in optimizer.param_groups if group.get("moe")},
        "linked": getattr(optimizer, "_hp_optimizer_states_linked", None),
        "set": parameters(parameter.set_full_hp_param) if hasattr(parameter, "set_full_hp_param") else None,
        "fragment": hasattr(parameter, "_hp_mapping"),
        "flat": hasattr(optimizer, "fp32_partitioned_groups_flat"),
        "cut": [name for name in CUT if hasattr(parameter, name)],
        "whole": hasattr(optimizer, "fp32_groups") and hasattr(optimizer, "fp16_groups"),
        "shm": deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"],
        "threads": torch.get_num_threads(),
    }


def test_engines_are_made_of_the_parts_that_we_reach_into() -> None:
    (found,) = run_on_ranks(names_of_engines, 1)
    kinds = [
        "AdamW",
        "DeepSpeedZeroOptimizer",
        "DeepSpeedZeroOptimizer",
        "FP16_UnfusedOptimizer",
        "BF16_Optimizer",
        "DeepSpeedZeroOptimizer",
        "DeepSpeedZeroOptimizer_Stage3",
    ]
    assert [names["optimizer"] for names in found] == kinds
    for (stage, precision), names in zip(KINDS_OF_ENGINES, found, strict=True):
        assert names["basic"] == "AdamW"
        assert names["partitioned"] == (stage > 0)
        assert names["experts"] == (stage < 3)
        assert names["expert groups"] == {"ep_size_1"}
        assert names["groups"] == {"decay", "plain", "ep_size_1"}
        assert names["shm"] is False
        assert names["whole"] == ((stage, precision) == (0, "bf16"))
        assert names["flat"] == (stage == 3)
        assert names["cut"] == (CUT if stage == 3 else [])
        if stage in (1, 2):
            assert names["linked"] is False
            assert names["fragment"]
            assert names["set"] == ["value", "optim_state_key"]
