"""What `launcher/plan` says of memory, against hand arithmetic, the real model and DeepSpeed's estimators."""

import gc
import time
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from launcher.config.load import load_config
from launcher.config.schema import DataConfig, OptimConfig, ParallelConfig, RunConfig, TrainConfig
from launcher.plan.base.capacity import slots_by_layer, way_of
from launcher.plan.memory.activations import activations_of
from launcher.plan.memory.estimate import Memory, predict_memory
from launcher.plan.memory.gradient_buckets import Now, Sizes, flow_of
from launcher.plan.memory.rank_params import dims_of, held_by_fullest
from launcher.plan.memory.states import part_of, states_of
from launcher.plan.memory.zero3_prefetch import Gathered
from launcher.tasks.base import normalize_images
from parallel.experts.placement import ExchangeOptions, ExpertParallel, ExpertSlice
from swin_moe import ModelConfig, MoEConfig
from swin_moe.backbone.model import build_model
from swin_moe.heads.classification import classification_loss
from swin_moe.heads.simmim import build_simmim
from swin_moe.heads.simmim_config import SimMIMConfig
from swin_moe.moe.layer import MoELayer
from swin_moe.random.keyed import sample_keys

IMAGES = 4
# One stage of one block on maps of 4 x 4 tokens: C = 8, one head, hidden 16.
ONE_BLOCK = ModelConfig(
    image_size=8,
    patch_size=2,
    num_classes=5,
    embed_dim=8,
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
EXPERTS = MoEConfig(blocks=((0,),), num_experts=4, routing_group_images=2)

SMALL = ModelConfig(
    image_size=32,
    num_classes=5,
    embed_dim=8,
    depths=(3, 2),
    num_heads=(2, 4),
    window_size=3,
    drop_rate=0.1,
    drop_path_rate=0.3,
)
V2 = replace(SMALL, attention="cosine", position_bias="log_cpb", norm="post", extra_norm_period=2)
MOE = MoEConfig(blocks=((1,), (0,)), num_experts=4, top_k=2, capacity_factor=0.0, routing_group_images=2)
MODELS = {
    "v1": SMALL,
    "v2": V2,
    "mlp": replace(SMALL, attention="mlp"),
    "windows": replace(V2, attention_chunk=2),
    "checkpoint-1": replace(SMALL, activation_checkpoint_every=1),
    "checkpoint-2": replace(V2, activation_checkpoint_every=2),
    "dropless": replace(SMALL, moe=MOE),
    "full": replace(SMALL, moe=replace(MOE, capacity_factor=0.25)),  # every expert has more tokens than slots
    "soft": replace(SMALL, moe=replace(MOE, router="soft", top_k=1)),
    "wide": replace(SMALL, image_size=(24, 40), moe=MOE),  # maps of 6 x 10 and 3 x 5
    "tall": replace(V2, image_size=(40, 8), attention_chunk=3),  # 10 x 2 and 5 x 1: windows 3 x 2 and 3 x 1
    "cosine": replace(V2, moe=replace(MOE, router="cosine")),
    "sigmoid": replace(SMALL, moe=replace(MOE, router="sigmoid", shared_expert=True)),
    "recompute": replace(SMALL, moe=replace(MOE, recompute_activation=True, expert_activation="swiglu")),
    "moe-checkpoint": replace(V2, moe=MOE, activation_checkpoint_every=1),
}

# bytes that only the hooks of the test keep: a token's highest score, whose graph is dropped, is saved by the
# node that made it, and the hook closes a cycle
LEAKED = {"sigmoid": 4 * IMAGES * (8 * 8 + 4 * 4)}


def run_config(model: ModelConfig, **options: Any) -> RunConfig:
    """A run of one step of four images a rank."""
    train = options.pop("train", TrainConfig(micro_batch_size=IMAGES, global_batch_size=IMAGES))
    return RunConfig(run_dir="x", model=model, data=DataConfig(train="a", val="b"), train=train, **options)


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
    train = TrainConfig(micro_batch_size=2, global_batch_size=4, precision=precision)
    config = run_config(ONE_BLOCK, train=train, parallel=ParallelConfig(zero_stage=stage))
    items = dict(predict_memory(config, [2], "cpu").items)
    assert items["dense parameters"] == parameters
    assert items["dense optimizer states"] == optimizer


def test_states_of_stage_3() -> None:
    """Each parameter is cut by itself: half of each, and of the table's 9 and the head's 5 biases 5 and 3."""
    config = run_config(ONE_BLOCK, parallel=ParallelConfig(zero_stage=3))
    dims = dims_of(config, [2])
    dense = states_of(config, held_by_fullest(config, dims), dims, experts=False)
    part = 648 // 2 + (142 - 9 - 5) // 2 + 5 + 3
    assert (dense.parameters, dense.optimizer) == (4 * part, 12 * part)


@pytest.mark.parametrize("ema_decay", [0.0, 0.99])
@pytest.mark.parametrize(
    ("optimizer", "momentum", "moments"), [("adamw", 0.9, 2), ("sgd", 0.9, 1), ("sgd", 0.0, 0)]
)
def test_what_an_optimizer_keeps(optimizer: Any, momentum: float, moments: int, ema_decay: float) -> None:
    train = TrainConfig(micro_batch_size=IMAGES, global_batch_size=IMAGES, ema_decay=ema_decay)
    optim = OptimConfig(optimizer=optimizer, momentum=momentum)
    config = run_config(ONE_BLOCK, train=train, optim=optim, parallel=ParallelConfig(zero_stage=0))
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
    found = held_by_fullest(config, dims_of(config, [ep_size * 2]))
    assert found.elements(experts=True) == held
    assert found.elements(experts=False) == 790 - 280 + num_experts * 8
    expert = states_of(config, found, dims_of(config, [ep_size * 2]), experts=True)
    assert expert.parameters == 4 * held
    assert expert.optimizer == 12 * sum(part_of(group, 2, 1) for group in found.groups if group.experts)


def test_frozen_parameters_have_neither_gradients_nor_states() -> None:
    config = run_config(ONE_BLOCK, optim=OptimConfig(freeze=("backbone",)))
    held = held_by_fullest(config, dims_of(config, [1]))
    assert [group.elements for group in held.groups] == [40, 5]
    dense = states_of(config, held, dims_of(config, [1]), experts=False)
    assert (dense.parameters, dense.optimizer) == (4 * 790, 12 * (40 + 6))  # 5 rounded up to 6


class _Kept:
    """What autograd holds of one saved tensor, for as long as it holds it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def kept_for_backward(config: RunConfig) -> int:
    """Bytes of distinct storages that are alive between a real forward and backward pass, on the CPU."""
    model = real_model(config)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved: weakref.WeakSet[_Kept] = weakref.WeakSet()

    def pack(tensor: Tensor) -> _Kept:
        kept = _Kept(tensor)
        saved.add(kept)
        return kept

    raw = torch.randint(0, 255, (IMAGES, 3, *config.model.image_sides), dtype=torch.uint8)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        loss, output = loss_of(model, config, raw)
    gc.collect()
    alive = [kept.tensor for kept in saved] + [
        x for x in tree_leaves((loss, tuple(output))) if isinstance(x, Tensor)
    ]
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in alive}
    return sum(size for pointer, size in storages.items() if pointer not in own)


def real_model(config: RunConfig) -> nn.Module:
    """The model that a run trains, on one rank."""
    if config.task == "simmim":
        return build_simmim(config.model, config.simmim).train()
    return build_model(config.model, exchange=config.parallel.expert_exchange).train()


def loss_of(model: nn.Module, config: RunConfig, raw: Tensor) -> tuple[Tensor, Any]:
    """The loss of a micro-batch as launcher/tasks/classification/task.py has it."""
    images = normalize_images(raw, config.data, torch.device("cpu"))
    output = model(images, sample_keys(0, torch.arange(IMAGES)))
    if config.task == "simmim":
        return output.loss + output.aux_loss, output
    loss = classification_loss(output.logits, torch.arange(IMAGES), config.optim.label_smoothing)
    return loss + output.aux_loss, output


@pytest.mark.parametrize("kind", MODELS)
def test_activations_are_what_autograd_saves(kind: str) -> None:
    config = run_config(MODELS[kind])
    predicted = activations_of(config, dims_of(config, [1]), "cpu")
    assert predicted.total + LEAKED.get(kind, 0) == kept_for_backward(config)
    assert [name for name, _ in predicted.saved][2:4] == ["stage 0", "stage 1"]


@pytest.mark.parametrize("image_size", [32, (24, 40)])
def test_activations_of_simmim(image_size: int | tuple[int, int]) -> None:
    model = replace(V2, image_size=image_size)
    config = run_config(model, task="simmim", simmim=SimMIMConfig(mask_patch_size=8))
    assert activations_of(config, dims_of(config, [1]), "cpu").total == kept_for_backward(config)


@pytest.mark.parametrize("kind", ["v1", "v2", "dropless", "checkpoint-2", "wide"])
def test_peak_of_activations(kind: str) -> None:
    """Against the memory events of torch's allocator, over both passes, with gradients taken away."""
    config = run_config(MODELS[kind])
    predicted = activations_of(config, dims_of(config, [1]), "cpu")
    model = real_model(config)
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    raw = torch.randint(0, 255, (IMAGES, 3, *config.model.image_sides), dtype=torch.uint8)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        loss, output = loss_of(model, config, raw)
        loss.backward()
    assert profile.profiler is not None
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    in_use = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        in_use += event.nbytes()
        peak = max(peak, in_use)
    found = max(moment.peak for moment in (*predicted.forward, *predicted.backward))
    assert found == pytest.approx(peak, rel=0.02)  # what operators allocate inside is not predicted


@pytest.mark.parametrize("factor", [0.0, 1.25, -1.25, 0.5])
@pytest.mark.parametrize("padded", [False, True])
def test_slots_are_those_of_the_layers(factor: float, padded: bool) -> None:
    model = replace(SMALL, image_size=(24, 40), moe=replace(MOE, capacity_factor=factor))
    config = run_config(model, parallel=ParallelConfig(expert_exchange=ExchangeOptions(padded=padded)))
    real = real_model(config)
    asked: dict[str, Any] = {}
    for name, layer in real.named_modules():
        if isinstance(layer, MoELayer):

            def note(_: Any, args: Any, name: str = name.removesuffix(".mlp")) -> None:
                asked[name] = (len(args[0]), args[2])

            layer.router.register_forward_pre_hook(note)
            assert isinstance(layer.placement, ExpertParallel)
            object.__setattr__(layer.placement, "options", config.parallel.expert_exchange)
    output = real(torch.randn(IMAGES, 3, 24, 40), sample_keys(0, torch.arange(IMAGES)))
    slots = slots_by_layer(model, IMAGES, padded=padded)
    assert slots.keys() == asked.keys() == output.moe.keys()
    for name, (tokens, call) in asked.items():
        assert (slots[name].tokens, slots[name].groups, slots[name].capacity) == (
            tokens,
            call.groups,
            call.slots,
        )
        received = int(output.moe[name].received)
        assert received <= slots[name].most(4)
        if padded and factor not in (0.0,):
            assert received == slots[name].rows
        if factor == 0.0:
            assert received == slots[name].rows == 2 * tokens


def test_ways_of_experts_and_rows() -> None:
    """Four ranks, two slices: 8 experts in 2 blocks; each rank holds half of 4 experts."""
    placement = ExpertParallel(num_experts=8, local_experts=range(4, 8), part=ExpertSlice(1, 2, 2), ep_size=4)
    rows = way_of(placement, 1)  # each of 4 ranks sends the rows of 4 experts here: half of its 80
    assert (rows.local, rows.sources, rows.copies, rows.received(80, 8)) == (4, 4, 2, 160)
    half = way_of(placement, 2)  # two slices joined: rows of 2 ranks
    assert (half.local, half.sources, half.copies, half.received(80, 8)) == (4, 2, 1, 80)
    weights = way_of(placement, 4)  # everything here
    assert (weights.local, weights.sources, weights.part.of, weights.received(80, 8)) == (8, 1, 1, 80)


def sizes(**options: Any) -> Sizes:
    """100 dense elements in halves over two ranks, a bucket of 60."""
    given: dict[str, Any] = {
        "width": 4,
        "kept": 4,
        "whole": (100, 0),
        "part": (50, 0),
        "touched": (60, 0),
        "ranks": (2, 1),
        "largest": 40,
        "group_parts": (50,),
        "bucket": 60,
        "passes": 1,
        "overlaps": False,
        "reserved": False,
        "offload": False,
    }
    return Sizes(**{**given, **options})


def flow(stage: int, given: Sizes) -> list[int]:
    """The most bytes in a backward pass of gradients of 40, 40 and 20, its end, and the update."""
    flow = flow_of(stage, given)

    def most(moments: list[Now]) -> int:
        return max(sum(now.gradients) + now.buckets + now.copies for now in moments)

    backward = [now for elements in (40, 40, 20) for now in flow.take(elements, 0)]
    return [most(backward), most(list(flow.reduction())), most(list(flow.update()))]


def test_gradients_by_stage() -> None:
    """In bytes of 4, the gradient that just comes apart: see flows.py."""
    assert flow(0, sizes()) == [4 * 80, 4 * 200, 4 * (100 + 40)]
    # the bucket holds 60 beside 40 and a copy of 60; then the part beside it
    assert flow(1, sizes()) == [4 * 80, 4 * (40 + 60 + 60), 4 * (60 + 50)]
    # 40 are in the bucket when 40 more come: a copy of 40, then 60 for the part; at the end 60 more
    assert flow(2, sizes()) == [4 * (60 + 40), 4 * (60 + 60 + 60), 4 * (60 + 50)]
    # bf16 at stage 1: fp32 gradients for good, bf16 ones of the pass, the copy in fp32 and in bf16
    flat = sizes(width=2, kept=4)
    assert flow(1, flat) == [4 * 100 + 2 * 80, 400 + 200 + 400 + 200, 400 + 200 + 200]
    assert flow(3, sizes()) == [4 * (50 + 60 + 40), 4 * (50 + 60 + 60), 4 * (50 + 50)]


def test_gathered_parameters() -> None:
    """Of 100: those within 2 * 30 elements of the turn stay, and 20 are fetched ahead."""
    gathered = Gathered(whole=100, small=5, largest=10, prefetch=20, reuse=60, live=1000)
    assert gathered.forward(last=False) == (50, 20)
    assert gathered.forward(last=True) == (30, 0)
    assert gathered.backward(0) == (50, 20)
    assert gathered.backward(25) == (25, 20)
    assert gathered.backward(98) == (5, 2)


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
        dims = dims_of(config, [8] * (ranks // 8))
        held = held_by_fullest(config, dims)
        dense = states_of(config, held, dims, experts=False)
        found[stage] = dense.parameters + dense.optimizer + dense.gradients
    total = held.elements(experts=False)
    _, theirs = zero2(total, 8, ranks // 8, cpu_offload=False)
    assert found[2] + 2 * total / ranks == pytest.approx(theirs, rel=1e-4)
    _, theirs, largest = zero3(total, 10**6, 8, ranks // 8, cpu_offload=False, cpu_offload_params=False)
    assert found[3] == pytest.approx(theirs - largest, rel=1e-4)


def test_the_giant_in_seconds() -> None:
    """SwinV2-G at a micro-batch of 8, with checkpointing: nothing is allocated."""
    path = "swinv2_g_patch4_window12_192_22k"
    config = load_config(path, ["train.micro_batch_size=8"])
    began_s = time.process_time()
    found = predict_memory(config, [8] * 4, "cuda")
    assert time.process_time() - began_s < 10
    assert dict(found.items)["dense parameters"] == 2 * 3087326257
    assert found.peak_bytes > 18 * 2**30


def test_checkpointing_and_experts_show() -> None:
    """The items say what changes: activations by stage, experts by rank."""

    def found(activation_checkpoint_every: int, ep_size: int) -> Memory:
        model = replace(SMALL, moe=MOE, activation_checkpoint_every=activation_checkpoint_every)
        return predict_memory(run_config(model, parallel=ParallelConfig(ep_size=ep_size)), [4], "cuda")

    plain, saving = dict(found(0, 1).activations), dict(found(1, 1).activations)
    assert saving["stage 0"] < plain["stage 0"] / 10
    one, two = (dict(found(0, ep_size).items)["expert parameters"] for ep_size in (1, 2))
    assert one == 2 * two
