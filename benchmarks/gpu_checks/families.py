"""Small models of every family, router and way to save memory: the device against the CPU.

All have the same weights, which bf16 holds exactly, the same keys and the same images.

Legend: B images, T tokens, k choices.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

import swin_moe
from gpu_checks.cases import as_in_a_run, attempt, distance, not_numbers
from gpu_checks.place import CheckContext, Row, row
from parallel.experts.exchange import ExchangeOptions
from swin_moe.heads.classification import classification_loss
from swin_moe.heads.simmim import SimMIM, build_simmim
from swin_moe.heads.simmim_config import SimMIMConfig
from swin_moe.moe.overrides import RoutingOverrides
from swin_moe.moe.routers import base
from swin_moe.random.keyed import sample_keys
from swin_moe.recipes import load_model_config

SWIN, SWINV2, SWIN_MLP = (
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_patch4_window8_256",
    "swin_mlp_tiny_c6_patch4_window8_256",
)
SWIN_MOE = "swin_moe_small_patch4_window12_192_8expert_32gpu_22k"
SIZE: dict[str, Any] = {"num_classes": 10, "embed_dim": 32, "num_heads": (1, 2, 4, 8), "drop_path_rate": 0.2}
TINY: dict[str, Any] = {"embed_dim": 16, "image_size": 32, "window_size": 4}  # of a rehearsal
EXPERTS: dict[str, Any] = {"routing_group_images": 2, "blocks": ((), (), (1,), (0,))}
PADDED = RoutingOverrides(exchange=ExchangeOptions(padded=True))
CHANCE = {"gate_noise": 0.0, "load_balance_weight": 0.0, "balance_loss": "auto", "batch_prioritized": False}
BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 0.05}
BOUND_OF_ROUTED = 0.1  # in bf16: a token near a border may go to another expert, or lose its slot
BOUND_OF_SIGNS = 0.01  # of SimMIM's gradients: the sign of a pixel's error may change where that is near zero


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A model, and what is changed of it."""

    name: str
    model: str
    changes: dict[str, Any] = field(default_factory=dict)
    moe: dict[str, Any] = field(default_factory=dict)
    call: RoutingOverrides | None = None
    mim: SimMIMConfig | None = None
    side: int = 0  # of the images, if not the configured one


@dataclass
class Result:
    """What one pass gave, on the CPU."""

    output: Tensor
    loss: Tensor
    gradients: dict[str, Tensor]
    evaluated: Tensor
    choices: list[Tensor]  # (T, k) of every MoE layer
    rows: list[Tensor]  # (T, k) of every plan
    integers: list[Tensor]  # load, dropped; SimMIM's mask


def router(name: str, call: RoutingOverrides | None = None, **moe: Any) -> Variant:
    """A Swin-MoE with other options of its layers."""
    return Variant(name=f"Swin-MoE, {name}", model=SWIN_MOE, moe=moe, call=call)


VARIANTS = (
    Variant(name="Swin", model=SWIN),
    Variant(name="SwinV2", model=SWINV2),
    Variant(name="Swin-MLP", model=SWIN_MLP),
    router("linear, capacity 1.25"),
    router("dropless", capacity_factor=0.0, batch_prioritized=False),
    router("padded", PADDED),
    router("top 2", top_k=2, normalize_gates=True),
    router("top 2, padded", PADDED, top_k=2),
    router("cosine", router="cosine"),
    router("sigmoid", router="sigmoid", gate_noise=0.0, balance_loss="gshard"),
    router("expert choice", router="expert_choice", **CHANCE, eval_capacity_factor=1.25),
    router("soft", router="soft", **CHANCE),
    router("hash", router="hash", **CHANCE),
    router("random", router="random", **CHANCE),
    router("z loss, gshard", z_loss_weight=0.01, balance_loss="gshard", gate_noise=0.0),
    router("importance", balance_loss="importance"),
    router("as Tutel's", compat="tutel"),
    router("shared expert", shared_expert=True),
    router("SwiGLU, recomputed", expert_activation="swiglu", recompute_activation=True),
    router("recomputed, dropless", recompute_activation=True, capacity_factor=0.0, batch_prioritized=False),
    router("statistics by image", RoutingOverrides(by_image=True)),
    Variant(name="Swin-MoE, checkpoints", model=SWIN_MOE, changes={"activation_checkpoint_every": 1}),
    Variant(name="SimMIM of Swin", model=SWIN, mim=SimMIMConfig()),
    Variant(name="SimMIM of SwinV2", model=SWINV2, mim=SimMIMConfig(norm_target_window=47)),
    Variant(name="SwinV2, checkpoints", model=SWINV2, changes={"activation_checkpoint_every": 1}),
    Variant(name="SwinV2, some windows at a time", model=SWINV2, changes={"attention_chunk": 5}),
    Variant(name="SwinV2, padded images", model=SWINV2, side=200),
    Variant(name="Swin, padded images", model=SWIN, side=200),
    Variant(name="Swin, main norms", model=SWIN, changes={"extra_norm_period": 2, "qkv_bias": False}),
)


def against_cpu(place: CheckContext) -> Iterator[Row]:
    """Logits, loss, gradients and plans in fp32 and bf16; all after memory was filled with NaN."""
    as_in_a_run(place)
    convolutions = torch.backends.cudnn.allow_tf32
    for variant in VARIANTS:
        try:
            model = build(place, variant)
            wanted = passed(place, variant, model, torch.device("cpu"), torch.float32)
        except Exception as error:
            yield row(variant.name, ok=False, raised=f"on the CPU, {type(error).__name__}: {error}"[:300])
            continue
        if place.on_gpu and variant is VARIANTS[0]:
            found = on_device(place, variant, model, torch.float32, wanted, ", TF32 convolutions")
            yield {**found, "ok": None}
        torch.backends.cudnn.allow_tf32 = False
        for dtype in (torch.float32, torch.bfloat16):
            yield on_device(place, variant, model, dtype, wanted)
        torch.backends.cudnn.allow_tf32 = convolutions


def on_device(
    place: CheckContext,
    variant: Variant,
    model: nn.Module,
    dtype: torch.dtype,
    wanted: Result,
    remark: str = "",
) -> Row:
    """The row of one precision; by default cuDNN rounds what the patch embedding reads to TF32."""
    what = f"{variant.name}, {str(dtype).removeprefix('torch.')}{remark}"

    def work() -> Row:
        return compared(what, variant, passed(place, variant, model, place.device, dtype), wanted, dtype)

    return attempt(what, work)


def build(place: CheckContext, variant: Variant) -> nn.Module:
    """The model on the CPU, with weights that leave no branch at zero and are numbers of bf16."""
    size = SIZE | {"depths": (1, 1, 2, 1) if place.rehearsal or variant.moe else (2, 1, 2, 1)}
    changes = {**size, **(TINY if place.rehearsal else {}), **variant.changes}
    if variant.model == SWIN_MOE:
        changes["moe"] = EXPERTS | variant.moe
    else:
        changes["drop_rate"] = 0.1
    config = load_model_config(variant.model, **changes)
    if variant.mim is None:
        model: nn.Module = swin_moe.build_model(config, seed=1)
    else:
        model = build_simmim(config, variant.mim, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * (0.02 if parameter.dim() > 1 else 0.2))
            parameter.copy_(parameter.bfloat16())
    return model


def passed(
    place: CheckContext, variant: Variant, model: nn.Module, device: torch.device, dtype: torch.dtype
) -> Result:
    """One training pass with its gradients, then one of evaluation; moves the model, whose weights stay."""
    model.zero_grad(set_to_none=True)
    model.to(device, dtype)
    images_count = 2 if place.rehearsal else 4
    config = model.encoder.config if isinstance(model, SimMIM) else model.config
    side = variant.side // (8 if place.rehearsal else 1) or config.image_size
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(images_count, 3, side, side, generator=generator).bfloat16().float().to(device)
    keys = sample_keys(7, torch.arange(images_count)).to(device)
    labels = (torch.arange(images_count) % 10).to(device)
    if device.type == "cuda":
        place.poison(1.0)
    choices: list[Tensor] = []
    rows: list[Tensor] = []
    with recorded(choices, rows):
        output = model.train()(images, keys, variant.call)
    if isinstance(model, SimMIM):
        loss, answer = output.loss, output.prediction
    else:
        loss, answer = classification_loss(output.logits, labels, 0.1), output.logits
    loss = loss + output.aux_loss
    loss.backward()
    all_stats = output.moe.values()
    integers = [x for stats in all_stats for x in (stats.load, stats.dropped, stats.choices, stats.lost)]
    integers += [output.mask] if isinstance(model, SimMIM) else []
    gradients = {
        name: torch.zeros_like(x) if x.grad is None else x.grad for name, x in model.named_parameters()
    }
    with torch.no_grad():
        evaluated = model.eval()(images, keys, variant.call)
    return Result(
        output=answer.detach().cpu(),
        loss=loss.detach().cpu(),
        gradients={name: gradient.cpu() for name, gradient in gradients.items()},
        evaluated=(evaluated.prediction if isinstance(model, SimMIM) else evaluated.logits).cpu(),
        choices=[x.cpu() for x in choices],
        rows=[x.cpu() for x in rows],
        integers=[x.cpu() for x in integers if x is not None],
    )


@contextmanager
def recorded(choices: list[Tensor], rows: list[Tensor]) -> Iterator[None]:
    """Keep what each router chose, and where its plan sends that."""
    make_plan: Callable[..., Any] = base.make_plan

    def record(gates: Tensor, expert_index: Tensor, queue: Tensor, **options: Any) -> Any:
        plan = make_plan(gates, expert_index, queue, **options)
        choices.append(expert_index.detach())
        rows.append(plan.row.detach())
        return plan

    with patch.object(base, "make_plan", record):
        yield


def compared(what: str, variant: Variant, got: Result, wanted: Result, dtype: torch.dtype) -> Row:
    """One row: relative errors, the worst parameter, and how many integers differ."""
    flat = [torch.cat([x.double().flatten() for x in found.gradients.values()]) for found in (got, wanted)]
    worst_error, worst = worst_gradient(got, wanted)
    errors = {
        "output": distance(got.output, wanted.output),
        "loss": distance(got.loss, wanted.loss),
        "gradient": distance(*flat),
        "evaluated": distance(got.evaluated, wanted.evaluated),
    }
    bad = not_numbers([got.output, got.loss, got.evaluated, flat[0]])
    differ = {
        "choices_differ": differences(got.choices, wanted.choices),
        "rows_differ": differences(got.rows, wanted.rows),
        "statistics_differ": differences(got.integers, wanted.integers),
    }
    bound = BOUND_OF_ROUTED if variant.model == SWIN_MOE and dtype == torch.bfloat16 else BOUNDS[dtype]
    of_gradient = max(bound, BOUND_OF_SIGNS) if variant.mim else bound
    right = all(x <= (of_gradient if name == "gradient" else bound) for name, x in errors.items())
    same = dtype == torch.bfloat16 or not any(differ.values())
    return row(
        what,
        ok=right and bad == 0 and same,
        **errors,
        bound=bound,
        worst_gradient=worst_error,
        worst_parameter=worst,
        not_numbers=bad,
        **differ,
        choices=sum(x.numel() for x in wanted.choices),
    )


def worst_gradient(got: Result, wanted: Result) -> tuple[float, str]:
    """The largest relative error of a parameter's gradient; a norm counts as 1e-3 of the largest at least."""
    least = max(float(x.double().norm()) for x in wanted.gradients.values()) * 1e-3
    errors = []
    for name, exact in wanted.gradients.items():
        exact = exact.double()
        error = float((got.gradients[name].double() - exact).norm() / exact.norm().clamp(min=least))
        errors.append((error, name))
    return max(errors)


def differences(got: list[Tensor], wanted: list[Tensor]) -> int:
    """How many integers differ; a tensor of another shape differs as a whole."""
    pairs = list(zip(got, wanted, strict=True))
    return sum(int((a != b).sum()) if a.shape == b.shape else b.numel() for a, b in pairs)
