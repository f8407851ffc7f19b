"""Parameters, gradients and optimizer states of a rank: hand arithmetic and DeepSpeed's estimators."""

from dataclasses import replace
from typing import Any

import pytest

from launcher.config.load import load_config
from launcher.config.schema import OptimConfig, ParallelConfig
from launcher.plan.memory.estimate import predict_memory
from launcher.plan.memory.rank_params import params_of_fullest_rank
from launcher.plan.memory.states import part_of, states_of
from tests.launcher.plan.memory_models import run_config
from tests.models import small_moe, small_swin

# One stage of one block on maps of 4 x 4 tokens: C = 8, one head, hidden 16.
ONE_BLOCK = small_swin(
    image_size=8,
    patch_size=2,
    depths=(1,),
    num_heads=(1,),
    window_size=2,
    mlp_ratio=2.0,
    drop_path_rate=0.0,
)
# matrices: patches 8 * 3 * 2 * 2, qkv 8 * 24, proj 8 * 8, fc1 8 * 16, fc2 16 * 8, head 8 * 5
DECAY = 96 + 192 + 64 + 128 + 128 + 40
# biases 8 + 24 + 8 + 16 + 8 + 5; norms of patches, block (two) and model, 16 each; table (2 * 2 - 1)^2 * 1
NO_DECAY = 69 + 64 + 9
# with four experts: fc1 4 * 8 * 16 and fc2 4 * 16 * 8 decay, their biases 4 * 16 and 4 * 8 do not; the router
# is 4 * 8
EXPERTS = small_moe(blocks=((0,),))


@pytest.mark.parametrize(
    ("stage", "precision", "parameters", "optimizer"),
    [
        # 648 + 142 = 790 elements; two ranks update 324 + 72 (of 142, rounded up to a multiple of 2 * 2: 144)
        (0, "fp32", 4 * 790, 8 * 790),
        (0, "bf16", 2 * 790, 12 * 790),
        (1, "fp32", 4 * 790, 12 * 396),
        (2, "bf16", 2 * 790, 12 * 396),
    ],
)
def test_states_of_a_small_model(stage: Any, precision: Any, parameters: int, optimizer: int) -> None:
    assert DECAY + NO_DECAY == 790
    options = {"micro_batch_size": 2, "ranks": 2, "train": {"precision": precision}}
    config = run_config(ONE_BLOCK, parallel=ParallelConfig(zero_stage=stage), **options)
    items = dict(predict_memory(config, [2], "cpu").items)
    assert items["dense parameters"] == parameters
    assert items["dense optimizer states"] == optimizer


def test_states_of_stage_3() -> None:
    """Each parameter is cut by itself: half of each, and of the table's 9 and the head's 5 biases 5 and 3."""
    config = run_config(ONE_BLOCK, parallel=ParallelConfig(zero_stage=3))
    dims = config.parallel.dims(2)
    dense = states_of(config, params_of_fullest_rank(config, dims), dims, experts=False)
    part = 648 // 2 + (142 - 9 - 5) // 2 + 5 + 3
    assert (dense.parameters, dense.optimizer) == (4 * part, 12 * part)


@pytest.mark.parametrize("ema_decay", [0.0, 0.99])
@pytest.mark.parametrize(
    ("optimizer", "momentum", "moments"), [("adamw", 0.9, 2), ("sgd", 0.9, 1), ("sgd", 0.0, 0)]
)
def test_what_an_optimizer_keeps(optimizer: Any, momentum: float, moments: int, ema_decay: float) -> None:
    optim, parallel = OptimConfig(optimizer=optimizer, momentum=momentum), ParallelConfig(zero_stage=0)
    config = run_config(ONE_BLOCK, train={"ema_decay": ema_decay}, optim=optim, parallel=parallel)
    kept = moments + (ema_decay > 0)
    assert dict(predict_memory(config, [1], "cpu").items).get("dense optimizer states", 0) == 4 * kept * 790


def test_offloaded_states_are_on_the_host() -> None:
    parallel = ParallelConfig(zero_stage=1, offload_optimizer=True)
    config = run_config(ONE_BLOCK, parallel=parallel)
    found = predict_memory(config, [1], "cuda")
    assert "dense optimizer states" not in dict(found.items)
    # masters, moments and fp32 gradients of 648 + 142, the parameters' buffer, and one of the largest (192)
    assert found.host_bytes == 4 * (4 * 790 + 790 + 192)


@pytest.mark.parametrize(
    ("ep_size", "slices", "num_experts", "held"),
    [
        # of one expert 8 * 16 + 16 + 16 * 8 + 8 = 280
        (1, 1, 4, 4 * 280),
        (2, 1, 4, 2 * 280),
        (2, 1, 5, 3 * 280),  # uneven: 2 and 3
        (2, 2, 4, 4 * 140),
        (3, 3, 4, 4 * (8 * 6 + 6 + 6 * 8 + 3)),  # the largest slice of 16 columns is 6, of 8 outputs 3
        (4, 2, 4, 2 * 140),
    ],
)
def test_experts_of_the_fullest_rank(ep_size: int, slices: int, num_experts: int, held: int) -> None:
    model = replace(ONE_BLOCK, moe=replace(EXPERTS, num_experts=num_experts))
    config = run_config(model, parallel=ParallelConfig(ep_size=ep_size, expert_tensor_parallel_size=slices))
    found = params_of_fullest_rank(config, config.parallel.dims(ep_size * 2))
    assert found.elements(experts=True) == held
    assert found.elements(experts=False) == 790 - 280 + num_experts * 8
    expert = states_of(config, found, config.parallel.dims(ep_size * 2), experts=True)
    assert expert.parameters == 4 * held
    assert expert.optimizer == 12 * sum(part_of(group, 2, 1) for group in found.groups if group.experts)


def test_frozen_parameters_have_neither_gradients_nor_states() -> None:
    config = run_config(ONE_BLOCK, optim=OptimConfig(freeze=("backbone",)))
    held = params_of_fullest_rank(config, config.parallel.dims(1))
    assert [group.elements for group in held.groups] == [40, 5]
    dense = states_of(config, held, config.parallel.dims(1), experts=False)
    assert (dense.parameters, dense.optimizer) == (4 * 790, 12 * (40 + 6))  # 5 rounded up to 6


def estimators() -> tuple[Any, Any]:
    """DeepSpeed's own."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    return estimate_zero2_model_states_mem_needs, estimate_zero3_model_states_mem_needs


@pytest.mark.parametrize("ranks", [8, 64])
def test_states_beside_deepspeeds_estimates(ranks: int) -> None:
    """In bf16. Stage 2: they count 2 + 18 / ranks bytes an element, half-precision gradients of the part too;
    here those are in a bucket, and fp32 ones stay: 2 + 16 / ranks. Stage 3: 18 / ranks both, and they
    add 4 bytes of the largest layer for what is gathered."""
    zero2, zero3 = estimators()
    found = {}
    for stage in (2, 3):
        overrides = [f"parallel.zero_stage={stage}", "train.precision=bf16"]
        config = load_config("swin_base_patch4_window7_224", overrides)
        dims = config.parallel.dims(ranks)
        held = params_of_fullest_rank(config, dims)
        dense = states_of(config, held, dims, experts=False)
        found[stage] = dense.parameters + dense.optimizer + dense.gradients
    total = held.elements(experts=False)
    _, theirs = zero2(total, 8, ranks // 8, cpu_offload=False)
    assert found[2] + 2 * total / ranks == pytest.approx(theirs, rel=1e-4)
    _, theirs, largest = zero3(total, 10**6, 8, ranks // 8, cpu_offload=False, cpu_offload_params=False)
    assert found[3] == pytest.approx(theirs - largest, rel=1e-4)
