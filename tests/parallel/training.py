"""A small Swin-MoE with every source of randomness on, trained on one fixed stream of images by any layout.

A trace names every tensor as the checkpoint does, one name an expert, so that layouts can be compared.
"""

import contextlib
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.experts.placement import ExchangeOptions, Sliced, experts_of, global_name, sliced_of
from parallel.ranks.collectives import gather_objects, sum_over
from parallel.ranks.mesh import Mesh, ParallelDims, build_mesh
from parallel.zero.engine import Engine
from parallel.zero.options import EngineOptions, OptimizerName, Precision, ZeroStage
from swin_moe import ModelConfig, ModelOutput, SwinTransformer
from swin_moe.backbone.model import build_model
from swin_moe.heads.classification import classification_loss
from swin_moe.random.keyed import sample_keys
from tests.models import small_moe, small_swin
from tests.pickling import dumps

BATCH, CLASSES, IMAGE, EXPERTS = 16, 10, 32, 8
CLIP_NORM, LEARNING_RATE, WEIGHT_DECAY, LABEL_SMOOTHING = 1.1, 1e-3, 0.05, 0.1
STEPS, MOMENTUM = 3, 0.9
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def model_config(top_k: int = 2, *, experts: int = EXPERTS, router: str = "linear") -> ModelConfig:
    """Two MoE layers; 32 tokens a routing group, so that capacity 1.25 drops some of them."""
    moe = small_moe(
        blocks=((), (0, 1)),
        num_experts=experts,
        router=router,
        top_k=top_k,
        capacity_factor=1.25,
        batch_prioritized=True,
        gate_noise=1.0,
        expert_dropout=0.1,
    )
    return small_swin(
        image_size=IMAGE,
        num_classes=CLASSES,
        embed_dim=12,
        depths=(1, 2),
        num_heads=(3, 6),
        window_size=2,
        position_bias="log_cpb",
        drop_rate=0.1,
        drop_path_rate=0.2,
        init_std=0.1,  # so that the experts' gradients matter
        moe=moe,
    )


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the same global batch is cut over ranks and micro-batches, and how the state is partitioned."""

    world: int = 1
    ep: int = 1
    stage: ZeroStage = 0
    micro: int = BATCH  # images a rank and forward pass
    precision: Precision = "fp32"
    top_k: int = 2
    slices: int = 1
    experts: int = EXPERTS
    router: str = "linear"
    exchange: ExchangeOptions = ExchangeOptions()
    ranks_per_node: int | None = None
    offload: bool = False
    optimizer: OptimizerName = "adamw"
    always_cut: bool = False  # stage 3: parameters that DeepSpeed would leave whole as they are small too

    @property
    def deepspeed(self) -> dict[str, Any]:
        """Further options of DeepSpeed."""
        return {"zero_optimization": {"stage3_param_persistence_threshold": 0}} if self.always_cut else {}

    @property
    def accum(self) -> int:
        """Micro-batches a step."""
        return BATCH // (self.world * self.micro)

    def __str__(self) -> str:
        exchange = {
            name: value for name, value in vars(self.exchange).items() if value not in (False, "same")
        }
        options = ", ".join(f"{name} {value}" for name, value in exchange.items())
        return (
            f"{self.world} ranks, ep {self.ep}, ZeRO {self.stage}, {self.accum} x {self.micro} images, "
            f"{self.precision}, k={self.top_k}, {self.experts} experts in {self.slices}, {self.optimizer}, "
            f"{options}"
        )


@dataclass(kw_only=True)
class Trace:
    """What a training run did; equal on every rank but for `gradients`, which hold what a rank holds."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    loads: list[list[int]] = field(default_factory=list)  # a step: (layers * E,) choices an expert
    dropped: list[list[int]] = field(default_factory=list)  # a step: (layers,) choices without a slot
    gradients: dict[str, Tensor] = field(default_factory=dict)  # of the first step, by global name


def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels and keys of one step's global batch: a function of the step alone."""
    generator = torch.Generator().manual_seed(1000 + step)
    labels = torch.randint(CLASSES, (BATCH,), generator=generator)
    images = torch.randn(BATCH, 3, IMAGE, IMAGE, generator=generator) + labels.view(-1, 1, 1, 1) / CLASSES
    return images, labels, sample_keys(5, torch.arange(step * BATCH, (step + 1) * BATCH))


def by_global_name(name: str, parameter: Tensor, value: Tensor) -> dict[str, Tensor]:
    """A value of a parameter, or of each of its experts, under the names that no layout changes.

    The slices of an expert are brought together by every rank of its block.
    """
    experts, sliced = experts_of(parameter), sliced_of(parameter)
    if sliced is not None and sliced.part.of > 1:
        value = _joined(value.detach().float(), sliced)
    if experts is None:
        return {name: value.detach().float().clone()}
    pieces = zip(experts, value.detach().float().clone().unbind(0), strict=True)
    return {global_name(name, expert): piece for expert, piece in pieces}


def _joined(value: Tensor, sliced: Sliced) -> Tensor:
    """Whole experts: every rank of the world tells its piece, and a block takes those of its own."""
    told = gather_tensors(value)
    rank = dist.get_rank()
    first = rank - rank % sliced.part.of
    return torch.cat(told[first : first + sliced.part.of], dim=sliced.dim)


def gather_tensors(value: Any) -> list[Any]:
    """`gather_objects` of what holds many tensors."""
    return [pickle.loads(data) for data in gather_objects(dumps(value))]


def param_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Weights decay; biases and norms, the experts' biases too, do not."""
    named = list(model.named_parameters())
    plain = [name.endswith("bias") or p.dim() == 1 for name, p in named]
    groups = {
        "decay": [p for (_, p), is_plain in zip(named, plain, strict=True) if not is_plain],
        "plain": [p for (_, p), is_plain in zip(named, plain, strict=True) if is_plain],
    }
    decay = {"decay": WEIGHT_DECAY, "plain": 0.0}
    sgd = {"momentum": MOMENTUM, "nesterov": True}
    return [
        {"name": n, "params": groups[n], "weight_decay": decay[n], "lr": LEARNING_RATE, **sgd} for n in groups
    ]


Change = Callable[[SwinTransformer, Layout], nn.Module | None]


@dataclass(kw_only=True)
class Run:
    """One layout's engine on its mesh, and the stream of images it trains on."""

    layout: Layout
    mesh: Mesh
    engine: Engine
    next_step: int = 0

    @staticmethod
    def start(
        layout: Layout,
        change: Change | None = None,
        accept: Callable[[float], bool] | None = None,
        *,
        sharded: bool = False,
    ) -> "Run":
        """Build mesh, model and engine; `change` may tamper with the model, or wrap it."""
        dims = ParallelDims(
            world_size=layout.world, ep_size=layout.ep, expert_tensor_parallel_size=layout.slices
        )
        mesh = build_mesh(dims, ranks_per_node=layout.ranks_per_node)
        config = model_config(layout.top_k, experts=layout.experts, router=layout.router)
        model: nn.Module = build_model(config, seed=3, mesh=mesh, exchange=layout.exchange, sharded=sharded)
        model = (change and change(model, layout)) or model
        options = EngineOptions(
            zero_stage=layout.stage,
            precision=layout.precision,
            offload_optimizer=layout.offload,
            max_grad_norm=CLIP_NORM,
            micro_batch_size=layout.micro,
            grad_accum_steps=layout.accum,
            deepspeed=layout.deepspeed,
            optimizer=layout.optimizer,
        )
        engine = Engine(model, param_groups(model), mesh, options, accept)
        return Run(layout=layout, mesh=mesh, engine=engine)

    def train(self, steps: int = STEPS) -> Trace:
        """Take some optimizer steps."""
        trace = Trace()
        for step in range(self.next_step, self.next_step + steps):
            self._step(step, trace)
        self.next_step += steps
        return trace

    def _step(self, step: int, trace: Trace) -> None:
        images, labels, keys = batch(step)
        mine = BATCH // self.layout.world
        loss_sum, outputs = torch.zeros((), dtype=torch.float64), []
        for first in range(self.mesh.rank * mine, (self.mesh.rank + 1) * mine, self.layout.micro):
            rows = slice(first, first + self.layout.micro)
            images_in = images[rows].to(DTYPES[self.layout.precision])
            output = self.engine(images_in, keys[rows])
            loss = classification_loss(output.logits, labels[rows], LABEL_SMOOTHING) + output.aux_loss
            self.engine.backward(loss)
            loss_sum += loss.detach() / (self.layout.accum * self.layout.world)
            outputs.append(output)
            if len(outputs) == self.layout.accum and not step:
                trace.gradients = self._gradients()
            self.engine.step(LEARNING_RATE)
        trace.losses.append(float(sum_over(loss_sum)))
        trace.norms.append(self.engine.grad_norm)
        record_routing(trace, outputs)

    def _gradients(self) -> dict[str, Tensor]:
        named = self.engine.module.named_parameters()
        found = [by_global_name(name, p, self.engine.gradient(p)) for name, p in named]
        return {name: value for part in found for name, value in part.items()}


def record_routing(trace: Trace, outputs: list[ModelOutput]) -> None:
    """Add up over micro-batches and ranks what the routers wanted and what found no slot."""
    load = torch.stack([torch.cat([s.load for s in output.moe.values()]) for output in outputs]).sum(0)
    dropped = torch.stack([torch.stack([s.dropped for s in o.moe.values()]) for o in outputs]).sum(0)
    trace.loads.append(sum_over(load).tolist())
    trace.dropped.append(sum_over(dropped).tolist())


def train_plainly(
    top_k: int,
    experts: int = EXPERTS,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
    steps: int = STEPS,
) -> Trace:
    """The reference: one process, one batch, torch's own AdamW and clipping; no engine and no group."""
    trace, model = Trace(), build_model(model_config(top_k, experts=experts), seed=3)
    stepper = optimizer(model) if optimizer else torch.optim.AdamW(param_groups(model))
    for step in range(steps):
        images, labels, keys = batch(step)
        output = model(images, keys)
        loss = classification_loss(output.logits, labels, LABEL_SMOOTHING) + output.aux_loss
        stepper.zero_grad()
        loss.backward()
        if step == 0:
            found = [by_global_name(name, p, p.grad) for name, p in model.named_parameters()]
            trace.gradients = {name: value for part in found for name, value in part.items()}
        trace.norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)))
        stepper.step()
        trace.losses.append(loss.item())
        record_routing(trace, [output])
    return trace


def whole(trace: Trace) -> Trace:
    """The trace with the gradients of all ranks; ranks that hold the same tensor must agree bit by bit."""
    gradients: dict[str, Tensor] = {}
    for part in gather_tensors(trace.gradients):
        for name, value in part.items():
            torch.testing.assert_close(value, gradients.setdefault(name, value), rtol=0, atol=0, msg=name)
    return replace(trace, gradients=gradients)


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """The worst relative deviations of a trace from another."""

    loss: float  # of a step
    norm: float  # of a step
    gradient: (
        float  # of the first step: a tensor's largest difference / its largest element, the worst tensor
    )
    tensor: str  # the one with that gradient

    def __str__(self) -> str:
        return f"loss {self.loss:.1e}, norm {self.norm:.1e}, gradient {self.gradient:.1e} ({self.tensor})"


def deviation(trace: Trace, reference: Trace, *, floor: float = 0.0) -> Deviation:
    """How far apart two runs are; both must hold gradients of the same tensors.

    Args:
        trace: compared.
        reference: compared with.
        floor: least scale of a gradient's deviation, as a share of the largest element of all gradients.
    """
    assert trace.gradients.keys() == reference.gradients.keys()
    least = max(1e-30, floor * max(float(value.abs().max()) for value in reference.gradients.values()))
    gradients = {
        name: float((trace.gradients[name] - value).abs().max() / value.abs().max().clamp_min(least))
        for name, value in reference.gradients.items()
    }
    worst = max(gradients, key=lambda name: gradients[name])
    return Deviation(
        loss=_relative(trace.losses, reference.losses),
        norm=_relative(trace.norms, reference.norms),
        gradient=gradients[worst],
        tensor=worst,
    )


def _relative(found: list[float], expected: list[float]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))


@contextlib.contextmanager
def replaced(target: Any, name: str, value: Any) -> Iterator[None]:
    """Monkeypatching inside a rank."""
    before = getattr(target, name)
    setattr(target, name, value)
    try:
        yield
    finally:
        setattr(target, name, before)
