"""Tutel's own layer and model against ours under `compat: tutel`, and Tutel as a backend against native.

Tutel draws its gate noise from the global generator; here `torch.randn_like` hands it ours. Deviations are a
tensor's largest absolute difference over its largest element. What needs Tutel is marked `tutel`.

Legend: B images, L tokens an image, C channels, H hidden, E experts.
"""

import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallel.experts.placement import ExpertParallel
from parallel.ranks.mesh import ParallelDims, build_mesh
from swin_moe import MoEConfig, SwinTransformer, build_model
from swin_moe.errors import ModelError
from swin_moe.moe.backends.tutel import INSTALL
from swin_moe.moe.layer import MoELayer, MoEStats
from swin_moe.moe.overrides import RoutingOverrides
from swin_moe.random.keyed import fold_in, normal, sample_keys
from tests.distributed import run_on_ranks
from tests.models import images_of, moe_layer, randn, small_moe, small_swin

IMAGES, LENGTH, DIM, HIDDEN, EXPERTS = 4, 36, 32, 48, 6
TOLERANCE = 1e-5

Gradients = dict[str, Tensor]


@pytest.fixture
def installed() -> None:
    pytest.importorskip("tutel", reason=f"needs Tutel from its repository: {INSTALL}")


def needs_tutel(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.tutel(pytest.mark.usefixtures("installed")(test))


def make_layer(placement: ExpertParallel | None = None, **options: Any) -> MoELayer:
    """Swin-MoE's options, all images in one routing group; weights that route decisively and unevenly."""
    common = {"num_experts": EXPERTS, "routing_group_images": IMAGES, "expert_dropout": 0.0}
    config = MoEConfig(blocks=(), **(common | {"eval_capacity_factor": 1.25} | options))
    layer = moe_layer(config, dim=DIM, hidden=HIDDEN, placement=placement)
    generator = torch.Generator().manual_seed(5)
    experts = list(layer.placement.local_experts)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            shape = parameter.shape
            if name.startswith("experts."):
                shape = torch.Size([config.num_experts, *shape[1:]])
            drawn = 0.3 * torch.randn(shape, generator=generator)
            parameter.copy_(drawn[experts] if name.startswith("experts.") else drawn)
    return layer


def make_images(seed: int = 7, images: int = IMAGES) -> Tensor:
    return randn(images, LENGTH, DIM, seed=seed).requires_grad_()


def keys_of(images: int = IMAGES) -> Tensor:
    return sample_keys(1, torch.arange(images))


class Genuine(nn.Module):
    """Tutel's own layer with a copy of the weights of one of ours, in whose place it can stand.

    Load, dropped tokens and entropy are ours; output, loss and their gradients are Tutel's.
    """

    def __init__(self, layer: MoELayer) -> None:
        super().__init__()
        from tutel.moe import moe_layer

        config, experts = layer.config, layer.experts
        self.ours = [layer]  # hidden from parameters()
        self.moe = moe_layer(
            gate_type={
                "type": {"linear": "top", "cosine": "cosine_top"}[config.router],
                "k": config.top_k,
                "fp32_gate": True,
                "gate_noise": config.gate_noise,
                "capacity_factor": config.capacity_factor,
            },
            model_dim=experts.fc1_weight.shape[1],
            experts={
                "type": "ffn",
                "num_experts_per_device": config.num_experts,
                "hidden_size_per_expert": experts.fc1_weight.shape[2],
                "activation_fn": F.gelu,
                "has_fc2_bias": experts.fc2_bias is not None,
            },
            batch_prioritized_routing=config.batch_prioritized,
            normalize_gate=config.normalize_gates,
            is_gshard_loss=config.balance == "gshard",
        )
        with torch.no_grad():
            for name, own in layer.named_parameters():
                theirs, transposed = self.counterpart(name)
                theirs.copy_(own.mT if transposed else own)

    def counterpart(self, name: str) -> tuple[nn.Parameter, bool]:
        """Tutel's parameter of our name, and whether its last dims are exchanged."""
        of, _, leaf = name.partition(".")
        if of == "router":
            gate = self.moe.gates[0]
            return (gate.wg if leaf == "weight" else gate).get_parameter(leaf), False
        layer, kind = leaf.split("_")
        short = {"weight": "w", "bias": "bias"}[kind]
        return getattr(self.moe.experts, f"batched_{layer}_{short}"), leaf == "fc1_weight"

    def forward(
        self, x: Tensor, keys: Tensor, call: RoutingOverrides | None = None
    ) -> tuple[Tensor, MoEStats]:
        """The interface of MoELayer."""
        (layer,) = self.ours
        token_keys = fold_in(keys[:, None], torch.arange(x.shape[1])).view(-1)
        noise = normal(fold_in(token_keys, layer.router.site), layer.config.num_experts)
        with mock.patch.object(torch, "randn_like", return_value=noise):
            y = self.moe(x)
        with torch.no_grad():
            stats = layer.train(self.training)(x, keys)[1]
        return y, stats._replace(loss=layer.config.load_balance_weight * y.l_aux)

    def gradients(self) -> Gradients:
        """By our names and in our shapes."""
        found = {}
        for name, _ in self.ours[0].named_parameters():
            parameter, transposed = self.counterpart(name)
            assert parameter.grad is not None, name
            found[name] = parameter.grad.mT if transposed else parameter.grad
        return found


def deviation(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max().clamp_min(1e-30)).item()


def assert_close(ours: Gradients, theirs: Gradients, tolerance: float = TOLERANCE) -> None:
    assert ours.keys() == theirs.keys()
    deviations = {name: deviation(tensor, theirs[name]) for name, tensor in ours.items()}
    assert max(deviations.values()) <= tolerance, deviations


def run(
    layer: nn.Module, x: Tensor, keys: Tensor, call: RoutingOverrides | None = None
) -> tuple[Gradients, MoEStats]:
    """Output, loss and gradients of a random weighting of the output plus 30 times the loss, by name."""
    layer.zero_grad()
    x.grad = None
    y, stats = layer(x, keys, call)
    cotangent = randn(*y.shape, seed=3)
    ((y * cotangent).sum() + 30.0 * stats.loss).backward()
    own = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
    gradients = layer.gradients() if isinstance(layer, Genuine) else own
    assert x.grad is not None
    found = {"y": y.detach(), "loss": stats.loss.detach(), "x": x.grad, **gradients}
    return {name: tensor.clone() for name, tensor in found.items()}, stats


# Tutel's own layer.

GENUINE: dict[str, dict[str, Any]] = {
    "swin-moe": {},
    "position": {"batch_prioritized": False},
    "gshard": {"balance_loss": "gshard"},
    "cosine": {"router": "cosine"},
    "k=2": {"top_k": 2, "capacity_factor": 1.0},
    "k=2 normalised": {"top_k": 2, "capacity_factor": 1.0, "normalize_gates": True},
    "k=1 normalised": {"normalize_gates": True},  # by Tutel only where there is more than one
    "k=3 cosine gshard": {
        "top_k": 3,
        "capacity_factor": 1.0,
        "router": "cosine",
        "normalize_gates": True,
        "balance_loss": "gshard",
    },
    "dropless": {"batch_prioritized": False, "capacity_factor": 0.0},
    "at most": {"batch_prioritized": False, "capacity_factor": -1.0},
}


@needs_tutel
@pytest.mark.parametrize("name", GENUINE)
def test_layer_equals_tutels(name: str) -> None:
    layer = make_layer(compat="tutel", gate_noise=1.0, **GENUINE[name])
    x, keys = make_images(), keys_of()
    ours, stats = run(layer, x, keys)
    theirs, _ = run(Genuine(layer), x, keys)
    assert_close(ours, theirs)
    assert (stats.dropped > 0) == (name != "dropless")
    assert theirs["router.temperature" if "cosine" in name else "router.weight"].abs().max() > 1e-3


@needs_tutel
def test_without_compat_the_losses_differ() -> None:
    """So the comparison above can fail: V-MoE's form and Tutel's are two losses."""
    layer, x, keys = make_layer(), make_images(), keys_of()
    ours, _ = run(layer, x, keys)
    theirs, _ = run(Genuine(layer), x, keys)
    assert deviation(ours["y"], theirs["y"]) <= TOLERANCE
    assert deviation(ours["loss"], theirs["loss"]) > 0.1


@needs_tutel
def test_evaluation_equals_tutels() -> None:
    """At the released models' capacity, 1.25 in evaluation too; no noise."""
    layer = make_layer(compat="tutel", eval_capacity_factor=1.25).eval()
    x, keys = make_images(), keys_of()
    y, stats = layer(x, keys)
    assert deviation(y, Genuine(layer).eval()(x, keys)[0]) <= TOLERANCE
    assert stats.dropped > 0


# The whole model.


def swin_moe(**options: Any) -> SwinTransformer:
    """Two stages with an MoE each, drop path and dropout on, and weights large enough to matter."""
    moe: dict[str, Any] = {"blocks": ((1,), (1,)), "routing_group_images": IMAGES, "expert_dropout": 0.0}
    config = small_swin(
        num_classes=7,
        embed_dim=16,
        position_bias="log_cpb",
        mlp_fc2_bias=False,
        drop_path_rate=0.2,
        drop_rate=0.1,
        init_std=0.2,
        moe=small_moe(**moe, compat="tutel", **options),
    )
    return build_model(config, seed=3)


def model_step(model: SwinTransformer) -> Gradients:
    """Logits, loss and every gradient by our names."""
    images = images_of(model.config, IMAGES)
    output = model.train()(images, keys_of())
    loss = F.cross_entropy(output.logits, torch.arange(IMAGES)) + sum(s.loss for s in output.moe.values())
    assert any(stats.dropped > 0 for stats in output.moe.values())
    loss.backward()
    found = {"logits": output.logits.detach(), "loss": loss.detach()}
    genuine = {name: module for name, module in model.named_modules() if isinstance(module, Genuine)}
    for name, parameter in model.named_parameters():
        if not any(name.startswith(f"{prefix}.") for prefix in genuine) and parameter.grad is not None:
            found[name] = parameter.grad
    for prefix, module in genuine.items():
        found |= {f"{prefix}.{name}": gradient for name, gradient in module.gradients().items()}
    return found


@needs_tutel
@pytest.mark.parametrize(
    "options", [{}, {"router": "cosine", "top_k": 2, "capacity_factor": 0.75}], ids=["swin-moe", "cosine k=2"]
)
def test_model_equals_one_of_tutels_layers(options: dict[str, Any]) -> None:
    model, theirs = swin_moe(**options), swin_moe(**options)
    replaced = 0
    for block in list(theirs.modules()):
        if isinstance(getattr(block, "mlp", None), MoELayer):
            block.mlp = Genuine(block.mlp)  # type: ignore[arg-type]
            replaced += 1
    assert replaced == 2
    assert_close(model_step(model), model_step(theirs))


# Tutel as a backend.

BACKEND: dict[str, dict[str, Any]] = {
    "swin-moe": {},
    "k=2 position": {"top_k": 2, "batch_prioritized": False},
    "k=2 normalised": {"top_k": 2, "normalize_gates": True},
    "k=1 normalised": {
        "normalize_gates": True,
        "load_balance_weight": 1.0,
    },  # the router has no other gradient
    "tight": {"top_k": 3, "capacity_factor": 0.5},
    "dropless": {"batch_prioritized": False, "capacity_factor": 0.0, "top_k": 2},
    "at most": {"batch_prioritized": False, "capacity_factor": -1.0},
    "cosine swiglu": {"router": "cosine", "expert_activation": "swiglu", "shared_expert": True},
}


@needs_tutel
@pytest.mark.parametrize("name", BACKEND)
def test_backend_equals_native(name: str) -> None:
    """In two routing groups, dropout included."""
    options = {"expert_dropout": 0.3, "routing_group_images": IMAGES // 2, "z_loss_weight": 0.01}
    options |= BACKEND[name]
    x, keys = make_images(), keys_of()
    native, stats = run(make_layer(**options), x, keys)
    tutel, tutel_stats = run(make_layer(**options, backend="tutel"), x, keys)
    assert_close(tutel, native)
    assert torch.equal(tutel_stats.load, stats.load)
    assert tutel_stats.dropped == stats.dropped
    assert (stats.dropped > 0) == (name != "dropless")
    assert tutel_stats.entropy == stats.entropy


@needs_tutel
def test_backend_takes_a_calls_capacity_and_top_k() -> None:
    x, keys, call = make_images(), keys_of(), RoutingOverrides(top_k=3, capacity_factor=0.7)
    native, stats = run(make_layer(), x, keys, call)
    tutel, tutel_stats = run(make_layer(backend="tutel"), x, keys, call)
    assert_close(tutel, native)
    assert torch.equal(tutel_stats.load, stats.load)
    assert stats.load.sum() == 3 * IMAGES * LENGTH


@needs_tutel
def test_backend_in_bf16() -> None:
    """Rows travel and are computed in bf16; both round the same products, so a few units of 2^-8."""
    x, keys = make_images().detach().bfloat16(), keys_of()
    native = make_layer().bfloat16()(x, keys)[0]
    tutel = make_layer(backend="tutel").bfloat16()(x, keys)[0]
    assert tutel.dtype == native.dtype == torch.bfloat16
    assert deviation(tutel.float(), native.float()) < 2e-2


def rank_deviations(cases: list[dict[str, Any]]) -> list[float]:
    """Tutel against native over two ranks with images of their own; the worst tensor of each case."""
    mesh = build_mesh(ParallelDims(world_size=2, ep_size=2))
    placement = ExpertParallel.over(mesh, EXPERTS)
    keys = sample_keys(1, torch.arange(IMAGES) + IMAGES * mesh.rank)
    worst = []
    for options in cases:
        x = make_images(seed=mesh.rank)
        native, stats = run(make_layer(placement, **options), x, keys)
        tutel, tutel_stats = run(make_layer(placement, **options, backend="tutel"), x, keys)
        assert torch.equal(tutel_stats.load, stats.load)
        assert tutel_stats.dropped == stats.dropped
        worst.append(max(deviation(tutel[name], native[name]) for name in native))
    return worst


@needs_tutel
def test_backend_equals_native_on_two_ranks() -> None:
    cases = [BACKEND[name] | {"expert_dropout": 0.3} for name in ("swin-moe", "dropless", "at most", "tight")]
    for worst in run_on_ranks(rank_deviations, 2, cases):
        assert max(worst) <= TOLERANCE, worst


def alone_among_two() -> bool:
    """A dropless pass of the first rank only, whose experts are all its own."""
    mesh = build_mesh(ParallelDims(world_size=2, ep_size=1))
    if mesh.is_first:
        layer = make_layer(
            ExpertParallel.over(mesh, EXPERTS), **BACKEND["dropless"], backend="tutel", routing_group_images=2
        )
        layer(make_images(), keys_of())
    return mesh.is_first


@needs_tutel
def test_without_an_expert_group_no_rank_waits_for_another() -> None:
    assert run_on_ranks(alone_among_two, 2, timeout_s=60) == [True, False]


# What does not need Tutel.


def test_missing_tutel_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tutel", None)
    with pytest.raises(ModelError) as error:
        make_layer(backend="tutel")(make_images(), keys_of())
    assert str(error.value).endswith(
        "pip install --no-build-isolation "
        "git+https://github.com/microsoft/tutel@ac0e51b943bb7084d4a6a7243e44a4afe04b9911"
    )


@pytest.mark.parametrize("factor", [0.0, -1.0])
def test_prioritised_without_capacity_is_refused_per_call(factor: float) -> None:
    with pytest.raises(ModelError, match=rf"capacity factor \({factor}\) <= 0 would drop tokens silently"):
        make_layer(backend="tutel")(make_images(), keys_of(), RoutingOverrides(capacity_factor=factor))


def test_no_slot_is_refused() -> None:
    """E = 6, 144 tokens: int(.04 * 24) = 0."""
    with pytest.raises(ModelError, match=r"capacity factor of 0\.04 leaves an expert no slot"):
        make_layer(backend="tutel")(make_images(), keys_of(), RoutingOverrides(capacity_factor=0.04))


def test_uneven_experts_are_refused() -> None:
    placement = ExpertParallel(num_experts=5, local_experts=range(2), ep_size=2)
    layer = make_layer(placement, num_experts=5, backend="tutel")
    with pytest.raises(
        ModelError, match=r"parallel\.ep_size \(2\) must divide model\.moe\.num_experts \(5\)"
    ):
        layer(make_images(), keys_of())
