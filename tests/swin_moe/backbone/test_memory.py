"""What saves memory changes nothing else: checkpointing, windows at a time, meta construction; the giants."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from parallel.experts.placement import ExpertParallel
from swin_moe import ModelConfig, SwinTransformer, build_model
from swin_moe.backbone.initialize import initialize
from swin_moe.random.keyed import sample_keys
from tests.models import V2, add_noise, images_of, randn, small_moe, small_swin

# Dropout, drop path, gate noise and capacity on; maps of 8 and 4 tokens, windows of 3.
SMALL = small_swin(depths=(3, 2), window_size=3, drop_rate=0.1, drop_path_rate=0.3, init_std=0.3)
SMALL_V2 = replace(SMALL, **V2, extra_norm_period=2)
EXPERTS = small_moe(top_k=2, capacity_factor=1.0)
KINDS = {
    "swin": SMALL,
    "v2": SMALL_V2,
    "mlp": replace(SMALL, attention="mlp"),
    "moe": replace(SMALL, position_bias="log_cpb", moe=EXPERTS),
    "v2-moe": replace(SMALL_V2, moe=EXPERTS),
}
GIANT = ModelConfig(
    image_size=192,
    embed_dim=512,
    depths=(2, 2, 42, 4),
    num_heads=(16, 32, 64, 128),
    window_size=12,
    extra_norm_period=6,
    **V2,
)


def train_once(config: ModelConfig) -> tuple[Tensor, list[Tensor]]:
    """Logits and gradients of one step in double, from weights of the configuration without the savings."""
    model = add_noise(build_model(config).double(), 0.1)
    output = model(images_of(config, dtype=torch.float64), sample_keys(0, torch.arange(2)))
    loss = output.logits.square().sum() + 10 * output.aux_loss
    return output.logits, list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.fixture(scope="module")
def plain_steps() -> dict[str, tuple[Tensor, list[Tensor]]]:
    """What each kind does without the savings, by name, once it was asked for."""
    return {}


@pytest.mark.usefixtures("cosine_in_double")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "saving",
    [{"activation_checkpoint_every": n} for n in (1, 2, 3)]
    + [{"attention_chunk": n} for n in (1, 2, 5, 1000)]
    + [{"activation_checkpoint_every": 2, "attention_chunk": 4}],
    ids=lambda saving: "-".join(f"{name}={value}" for name, value in saving.items()),
)
def test_saving_memory_changes_no_number(
    kind: str, saving: dict[str, int], plain_steps: dict[str, tuple[Tensor, list[Tensor]]]
) -> None:
    if kind not in plain_steps:
        plain_steps[kind] = train_once(KINDS[kind])
    logits, gradients = plain_steps[kind]
    saved_logits, saved_gradients = train_once(replace(KINDS[kind], **saving))
    torch.testing.assert_close(saved_logits, logits, rtol=1e-12, atol=1e-12)
    for saved, plain in zip(saved_gradients, gradients, strict=True):
        torch.testing.assert_close(saved, plain, rtol=1e-12, atol=1e-12 * plain.abs().max().item())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_meta_construction_equals_direct_construction(kind: str, dtype: torch.dtype) -> None:
    """Parameters and constant buffers, bit for bit."""
    config = KINDS[kind]
    direct = build_model(config, seed=3)
    with torch.device("meta"):
        model = SwinTransformer(config, ExpertParallel.on_one_rank(4) if config.moe else None)
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(7)  # whatever empty memory holds
    initialize(model, seed=3, std=config.init_std, zero_branch_norms=config.norm == "post")
    direct.to(dtype), model.to(dtype)
    for got, expected in (
        (dict(model.named_parameters()), dict(direct.named_parameters())),
        (dict(model.named_buffers()), dict(direct.named_buffers())),
    ):
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_the_giant_instantiates_on_meta() -> None:
    """SwinV2-G: 2997.8M parameters and a 1K head of 4096 * 1000 + 1000."""
    with torch.device("meta"):
        model = SwinTransformer(GIANT)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert round(count / 1e6, 2) == 3001.94
    assert round((count - 4096 * 1000 - 1000) / 1e6, 1) == 2997.8
    norms = [sum(block.main_norm is not None for block in stage.blocks) for stage in model.layers]
    assert norms == [0, 0, 7, 0]


@pytest.mark.long
def test_a_narrow_giant_learns_in_bf16_with_checkpointing() -> None:
    """All 50 blocks at width 8, parameters and activations bf16: three steps of AdamW on one batch."""
    config = replace(
        GIANT,
        image_size=64,
        embed_dim=8,
        num_heads=(1, 2, 4, 8),
        window_size=4,
        num_classes=4,
        drop_path_rate=0.0,
        activation_checkpoint_every=1,
    )
    model = build_model(config).to(torch.bfloat16)
    images = randn(4, 3, 64, 64)
    labels, keys = torch.arange(4), sample_keys(0, torch.arange(4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(4):
        logits = model(images, keys).logits
        assert logits.dtype == torch.bfloat16
        loss = torch.nn.functional.cross_entropy(logits.float(), labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]


def activation_bytes(config: ModelConfig) -> int:
    """Bytes of distinct storages that one image leaves for the backward pass, the model's own not counted."""
    model = build_model(config)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}  # alive, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    images = torch.randn(1, 3, config.image_size, config.image_size)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(images, torch.zeros(1).long())
    return sum(storage.nbytes() for storage in kept.values())


def peak_bytes(config: ModelConfig) -> int:
    """The most bytes of CPU memory in use at once over a training step, above what the model holds."""
    model = build_model(config)
    images = torch.randn(1, 3, config.image_size, config.image_size)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        model(images).logits.sum().backward()
    in_use = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            in_use += event.nbytes()
            peak = max(peak, in_use)
    return peak


DEEP = replace(GIANT, image_size=128, embed_dim=16, num_heads=(1, 2, 4, 8), window_size=8, num_classes=4)
# Two stages with large maps of 4 x 4 and 2 x 2 windows of 256 tokens.
WIDE = replace(
    DEEP, image_size=256, depths=(4, 4), num_heads=(2, 4), window_size=16, extra_norm_period=0, embed_dim=16
)


def test_saved_activations() -> None:
    """What stays for the backward pass: of a whole block its input alone, of a window its input alone."""
    deep, wide = activation_bytes(DEEP), activation_bytes(WIDE)
    every = {n: activation_bytes(replace(DEEP, activation_checkpoint_every=n)) / deep for n in (1, 2)}
    windows = activation_bytes(replace(WIDE, attention_chunk=1)) / wide
    print(
        f"saved, activation_checkpoint_every 1: {every[1]:.3f}, 2: {every[2]:.3f}; "
        f"attention_chunk 1: {windows:.3f}"
    )
    assert every[2] < every[1] < 0.25
    assert windows < 0.7


@pytest.mark.long
def test_peak_memory() -> None:
    """A block that is recomputed still holds all its windows, unless a few at a time are attended to
    (Liu et al. 2022, section 3.4)."""
    baseline = peak_bytes(WIDE)
    savings = {
        "activation_checkpoint_every": {"activation_checkpoint_every": 1},
        "attention_chunk": {"attention_chunk": 1},
        "both": {"activation_checkpoint_every": 1, "attention_chunk": 1},
    }
    ratios = {name: peak_bytes(replace(WIDE, **saving)) / baseline for name, saving in savings.items()}
    print(f"peak: { {name: round(ratio, 3) for name, ratio in ratios.items()} }")
    assert ratios["both"] < ratios["activation_checkpoint_every"] < 0.5
    assert ratios["both"] < ratios["attention_chunk"] < 0.8
