"""SGD, LAMB and Apex's optimizers: each against an independent one, at every stage and layout.

Compared are steps of the small Swin-MoE, whose losses and norms depend on every weight. Measured, worst of
all: loss 2.6e-7, norm 1.5e-7. One trust ratio for all experts of a parameter instead of one each: norm 1.0e-4
(`test_the_comparison_sees_a_trust_ratio_of_many_experts`).
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parallel.checkpoint.load import load_checkpoint, missing_kinds
from parallel.experts.placement import experts_of
from parallel.ranks.mesh import ParallelDims, build_mesh
from parallel.zero.engine import Engine
from parallel.zero.lamb import Lamb
from parallel.zero.master_weights import MasterWeights
from parallel.zero.optimizers import OptimizerError, import_apex
from parallel.zero.options import EngineOptions, OptimizerName, ZeroStage
from parallel.zero.segments import Segments
from tests.distributed import run_on_ranks
from tests.parallel import fake_apex
from tests.parallel.checkpoint.saving import save_checkpoint
from tests.parallel.resuming import SAVED, differing, load_and_go_on, save_and_go_on, state_of
from tests.parallel.training import (
    EXPERTS,
    LEARNING_RATE,
    WEIGHT_DECAY,
    Layout,
    Run,
    Trace,
    deviation,
    param_groups,
    train_plainly,
    whole,
)


class PlainLamb(torch.optim.Optimizer):
    """Algorithm 2 of You et al., in fp64, one whole tensor and one whole expert after the other."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(param_groups(model), {})
        self.tensors: list[tuple[Tensor, Callable[[], Tensor], float, list[Tensor]]] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                for index in range(len(experts_of(parameter) or ())) or (slice(None),):
                    piece = parameter.detach()[index]
                    moments = [torch.zeros(piece.shape, dtype=torch.float64) for _ in range(2)]
                    gradient = lambda p=parameter, i=index: p.grad[i].double()  # noqa: E731
                    self.tensors.append((piece, gradient, group["weight_decay"], moments))
        self.count = 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.count += 1
        for weight, gradient, decay, (m, v) in self.tensors:
            g, w = gradient(), weight.double()
            m.copy_(0.9 * m + 0.1 * g)
            v.copy_(0.999 * v + 0.001 * g * g)
            u = (m / (1 - 0.9**self.count)) / ((v / (1 - 0.999**self.count)).sqrt() + 1e-8) + decay * w
            ratio = w.norm() / u.norm() if decay and w.norm() > 0 else 1.0
            weight.copy_(w - LEARNING_RATE * ratio * u)


def plain_sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(param_groups(model), lr=LEARNING_RATE)


BOUND = 5e-6  # of losses and norms, relative
STEPS = 5
PLAIN = {"sgd": plain_sgd, "lamb": PlainLamb, "adamw": None}
ALONE = [Layout(stage=stage) for stage in (0, 1, 2, 3)]
TWO = [
    Layout(world=2, ep=2, stage=0, micro=8),
    Layout(world=2, ep=1, stage=1, micro=8),
    Layout(world=2, ep=2, slices=2, stage=2, micro=8),
    Layout(world=2, ep=1, stage=3, micro=4, always_cut=True),
    Layout(world=2, ep=2, slices=2, stage=0, micro=8),
]
FOUR = [
    Layout(world=4, ep=4, slices=2, stage=1, micro=4),
    Layout(world=4, ep=2, stage=2, micro=4),
    Layout(world=4, ep=2, stage=3, micro=4),
]
UNEVEN = [Layout(world=2, ep=2, stage=stage, micro=8, experts=5) for stage in (0, 1, 3)]


def train_with(name: OptimizerName, layouts: list[Layout]) -> list[Trace]:
    fake_apex.install()
    return [whole(Run.start(replace(layout, optimizer=name)).train(STEPS)) for layout in layouts]


def train_plain(name: str, experts: int) -> Trace:
    return train_plainly(2, experts, PLAIN[name], STEPS)


@pytest.mark.parametrize(
    ("name", "layouts"),
    [
        ("sgd", TWO[3:4]),
        ("lamb", TWO[1:4]),
        pytest.param("sgd", TWO, marks=pytest.mark.slow),
        pytest.param("lamb", TWO, marks=pytest.mark.slow),
        pytest.param("lamb", UNEVEN, marks=pytest.mark.slow),
        *(
            pytest.param(name, group, marks=pytest.mark.slow)
            for name in ("sgd", "lamb")
            for group in (ALONE, FOUR)
        ),
        pytest.param("sgd", UNEVEN, marks=pytest.mark.slow),
    ],
)
def test_every_stage_and_layout_takes_the_steps_of_an_independent_optimizer(
    name: OptimizerName, layouts: list[Layout]
) -> None:
    reference = run_on_ranks(train_plain, 1, name, layouts[0].experts)[0]
    for layout, trace in zip(
        layouts, run_on_ranks(train_with, layouts[0].world, name, layouts)[0], strict=True
    ):
        found = deviation(trace, reference)
        assert max(found.loss, found.norm) < BOUND, (layout, found)


def train_carelessly() -> Trace:
    """LAMB that takes the experts of a parameter for one tensor."""
    run = Run.start(Layout(optimizer="lamb"))
    run.engine.deepspeed.basic_optimizer.segments = {}
    return run.train(STEPS)


def test_the_comparison_sees_a_trust_ratio_of_many_experts() -> None:
    reference = run_on_ranks(train_plain, 1, "lamb", EXPERTS)[0]
    found = deviation(run_on_ranks(train_carelessly, 1)[0], reference)
    assert max(found.loss, found.norm) > 4 * BOUND, found


def test_a_step_of_lamb_by_hand() -> None:
    """w = (3, 4), g = r = (1, -1): u = r + 0.5 w = (2.5, 1), and the ratio 5 / 2.6926."""
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    weight.grad = torch.tensor([1.0, -1.0])
    Lamb([weight], lr=0.1, eps=0.0, weight_decay=0.5).step()
    torch.testing.assert_close(weight.detach(), torch.tensor([2.535760, 3.814304]))
    zero = nn.Parameter(torch.zeros(2))
    zero.grad = torch.tensor([1.0, -1.0])
    Lamb([zero], lr=0.1, eps=0.0, weight_decay=0.5).step()
    assert zero.tolist() == pytest.approx([-0.1, 0.1])  # a norm of zero: a ratio of 1


def test_norms_of_pieces_are_of_their_tensors() -> None:
    """Two experts (3, 4) and (0, 2), a padding of 9: norms 5 and 2, and nothing counts the padding."""
    segments = Segments([2, 2, 1], [0, 1, 2], 2)
    found = segments.norms(torch.tensor([3.0, 4.0, 0.0, 2.0, 9.0]))
    assert found.tolist() == [[5.0, 2.0, 9.0]]
    assert segments.spread(torch.tensor([1.0, 2.0, 3.0])).tolist() == [1, 1, 2, 2, 3]


# --- Apex


@pytest.mark.parametrize("stages", [(0, 3), pytest.param((1, 2), marks=pytest.mark.slow)])
def test_fused_adam_is_adamw_at_every_stage(stages: tuple[ZeroStage, ...]) -> None:
    layouts = [Layout(world=2, ep=2, stage=stage, micro=8) for stage in stages]
    reference = run_on_ranks(train_plain, 1, "adamw", EXPERTS)[0]
    for layout, trace in zip(layouts, run_on_ranks(train_with, 2, "fused_adam", layouts)[0], strict=True):
        found = deviation(trace, reference)
        assert max(found.loss, found.norm) < BOUND, (layout, found)


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, values: Tensor) -> tuple[Tensor]:
        return (self.second(self.first(values).tanh()),)


def train_dense(names: list[OptimizerName], precision: str) -> list[list[Tensor]]:
    """The weights after some steps with gradients far beyond 1, where Apex's FusedLAMB would clip."""
    fake_apex.install()
    found = []
    for name in names:
        model = Dense().to(torch.bfloat16 if precision == "bf16" else torch.float32)
        options = EngineOptions(
            zero_stage=0,
            precision=precision,  # type: ignore[arg-type]
            max_grad_norm=0.0,
            micro_batch_size=4,
            grad_accum_steps=1,
            optimizer=name,
        )
        groups = [
            {
                "name": "decay",
                "params": [model.first.weight, model.second.weight],
                "weight_decay": WEIGHT_DECAY,
            },
            {"name": "plain", "params": [model.first.bias, model.second.bias], "weight_decay": 0.0},
        ]
        groups = [{**group, "betas": (0.9, 0.999), "eps": 1e-8} for group in groups]
        engine = Engine(model, groups, build_mesh(ParallelDims(world_size=1)), options)
        masters = MasterWeights(engine.deepspeed)
        for step in range(4):
            values = torch.randn(4, 6, generator=torch.Generator().manual_seed(step)).to(model.first.weight)
            engine.backward(100 * engine(values)[0].float().square().sum())
            engine.step(0.1)
        found.append([masters.read(p)["master"].clone() for p in model.parameters()])
        assert masters.adam_steps == 4
    return found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fused_lamb_is_our_lamb(precision: str) -> None:
    ours, theirs = run_on_ranks(train_dense, 1, ["lamb", "fused_lamb"], precision)[0]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_without_apex_the_message_installs_it_from_its_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "apex", None)
    with pytest.raises(
        OptimizerError, match=r"optim.optimizer=fused_lamb: .*git\+https://github.com/NVIDIA/apex"
    ):
        import_apex("fused_lamb")


# --- checkpoints

THEN = 2


def save_apex_too(directory: Path, layouts: list[Layout], then: int) -> Any:
    fake_apex.install()
    return save_and_go_on(directory, layouts, then)


def load_apex_too(path: Path, layouts: list[Layout], then: int) -> Any:
    fake_apex.install()
    return load_and_go_on(path, layouts, then)


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    ["sgd", pytest.param("lamb", marks=pytest.mark.slow), pytest.param("fused_adam", marks=pytest.mark.slow)],
)
def test_each_resumes_bit_for_bit_and_loads_on_other_layouts(tmp_path: Path, name: OptimizerName) -> None:
    layout = Layout(world=2, ep=2, stage=1, micro=8, optimizer=name)
    (saved,) = run_on_ranks(save_apex_too, 2, tmp_path, [layout], THEN)[0]
    kinds = {key.partition("/")[0] for key in saved.state}
    assert kinds == {"master"} | ({"momentum_buffer"} if name == "sgd" else {"exp_avg", "exp_avg_sq"})
    path = tmp_path / "0" / f"step-{SAVED:08d}"
    others = [replace(layout, ep=1, stage=3), replace(layout, slices=2, stage=2), replace(layout, stage=0)]
    same, *loaded = run_on_ranks(load_apex_too, 2, path, [layout, *others], THEN)[0]
    assert differing(same, saved) == []
    assert (same.trace.losses, same.trace.norms) == (saved.trace.losses, saved.trace.norms)
    for other in loaded:
        assert differing(other, saved) == []
        assert other.trace.losses == pytest.approx(saved.trace.losses, rel=5e-6)


def change_optimizer(
    directory: Path, before: OptimizerName, after: OptimizerName
) -> tuple[list[str], int, bool]:
    """What another optimizer does not find, what it counts from, and whether its own states are zero."""
    layout = Layout(stage=1, optimizer=before)
    run = Run.start(layout)
    masters = MasterWeights(run.engine.deepspeed)
    run.train(2)
    path = save_checkpoint(directory, 2, masters, run.mesh, {})
    other = MasterWeights(Run.start(replace(layout, optimizer=after)).engine.deepspeed)
    manifest = load_checkpoint(path, other, EXPERTS)
    old, new = state_of(masters), state_of(other)
    assert all(torch.equal(value, old[name]) for name, value in new.items() if name in old)
    fresh = [value for name, value in new.items() if name not in old]
    return missing_kinds(other, manifest), other.adam_steps, not any(map(torch.any, fresh))


@pytest.mark.parametrize(
    ("before", "after", "missing", "steps"),
    [
        ("adamw", "sgd", ["momentum_buffer"], 0),
        ("sgd", "adamw", ["exp_avg", "exp_avg_sq"], 0),
        ("adamw", "lamb", [], 2),
    ],
)
def test_another_optimizer_starts_what_it_lacks_fresh(
    tmp_path: Path, before: OptimizerName, after: OptimizerName, missing: list[str], steps: int
) -> None:
    found = run_on_ranks(change_optimizer, 1, tmp_path, before, after)[0]
    assert found == (missing, steps, True)
