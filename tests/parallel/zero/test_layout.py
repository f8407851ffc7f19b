"""The layout does not change the result: ranks, expert-parallel size, ZeRO stage, micro-batches.

Three optimizer steps of one small Swin-MoE on one stream of global batches, with all on that could make a
layout show: gate noise, dropout, drop path, capacity that drops tokens, batch-prioritised order, weight decay
by group, and a clip norm that some steps exceed. The reference is plain PyTorch on one process: no engine, no
group, torch's own clipping.

Deviations are relative. A gradient's is a tensor's largest absolute difference over its largest element, one
expert at a time, at its worst tensor. Measured, worst of all: fp32 loss 1.6e-7, norm 2.0e-7, gradient 2.2e-6
(what the order of fp32 sums leaves); bf16 against fp32 at stages 1 to 3 loss 6.5e-4, norm 4.8e-3, gradient
0.20 (a router's, whose tokens choose other experts after rounding).
"""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import parallel.zero.engine
from parallel.experts.placement import ExchangeOptions, experts_of
from swin_moe import SwinTransformer
from tests.distributed import run_on_ranks
from tests.parallel.training import (
    BATCH,
    CLIP_NORM,
    Change,
    Deviation,
    Layout,
    Run,
    Trace,
    deviation,
    replaced,
    train_plainly,
    whole,
)

FP32 = 1e-5
BF16 = Deviation(loss=1.5e-3, norm=1e-2, gradient=0.3, tensor="")  # of 8 bits of mantissa: 4e-3 a value
BF16_FLOOR = 1e-2  # a tensor whose gradient is a hundredth of the model's largest is rounding noise


def layouts(world: int) -> list[Layout]:
    """All of one world size in fp32: one micro-batch a step, and as many as routing groups allow."""
    sizes = [ep for ep in (1, 2, 4) if ep <= world and (world, ep) != (4, 1)]
    cases = [
        *itertools.product(sizes, (0, 1, 2), (BATCH // world, 2)),
        *itertools.product(sizes, (3,), (2,)),
    ]
    found = [Layout(world=world, ep=ep, stage=stage, micro=micro) for ep, stage, micro in cases]
    return [*found, Layout(world=world, ep=world, stage=1, micro=2, top_k=1)]


def bf16_layouts(world: int) -> list[Layout]:
    """Accumulation everywhere; with four ranks both axes of the mesh are longer than one."""
    ep = min(2, world)
    return [Layout(world=world, ep=ep, stage=stage, micro=2, precision="bf16") for stage in (0, 1, 2, 3)]


def exchanges() -> list[Layout]:
    """Ways for rows and experts to come together: sliced and uneven experts, gathered weights, two stages."""
    sliced = Layout(world=4, ep=4, slices=2, stage=1, micro=2, ranks_per_node=2)
    uneven = Layout(world=4, ep=4, experts=UNEVEN, stage=2, micro=4, ranks_per_node=2)
    return [
        sliced,
        replace(sliced, stage=0, exchange=ExchangeOptions(overlap=2, hierarchical=True)),
        replace(sliced, stage=2, exchange=ExchangeOptions(strategy=2, overlap=2)),
        replace(sliced, world=2, ep=2, stage=2, exchange=ExchangeOptions(strategy="auto", padded=True)),
        replace(sliced, slices=4, exchange=ExchangeOptions(strategy="dp")),
        replace(sliced, stage=3, always_cut=True, exchange=ExchangeOptions(strategy=2, overlap=2)),
        uneven,
        replace(uneven, stage=3),
        replace(uneven, slices=2, exchange=ExchangeOptions(padded=True, overlap=4, hierarchical=True)),
    ]


UNEVEN = 5  # experts: over 4 ranks 1, 1, 1 and 2; over 2 blocks 2 and 3
WORLDS = (1, 2, 4)
LAYOUTS = [layout for world in WORLDS for layout in layouts(world)] + exchanges()
BF16_LAYOUTS = bf16_layouts(1) + bf16_layouts(4)


def some_are_slow(of: list[Layout]) -> list[Any]:
    """By default one of each kind: with accumulation; the rest are nearly the same, and slow."""
    whole_batch = {layout for layout in of if layout.accum == 1 and layout.experts != UNEVEN}
    alike = {layout for layout in of if layout.ep == 4 and layout.slices == 1 and layout.stage}
    alone = {layout for layout in of if layout.world == 1 and layout.stage in (1, 3)}
    alone |= {layout for layout in of if (layout.world, layout.ep) == (2, 1) and layout.stage in (1, 2)}
    fp32 = {layout for layout in of if layout.precision == "fp32"}
    grid = {layout for layout in fp32 if (layout.world, layout.ep) == (4, 2) and layout.stage in (0, 1)}
    bf16 = {layout for layout in of if layout not in fp32 and layout.stage != 1}
    kept = set(exchanges()[1:9:2])  # hierarchical and overlapped, padded, always cut, uneven at stage 3
    others = {layout for layout in exchanges() if layout not in kept and layout.experts != UNEVEN}
    slow = whole_batch | alike | alone | grid | bf16 | others
    slow -= {layout for layout in of if layout.experts == UNEVEN} | kept
    # each has a neighbour at twice the ranks, with one choice, in stages or padded
    whole = {layout for layout in fp32 - kept if layout.slices == 1 and layout.top_k == 2}
    neighbours = ((2, 1, 0), (2, 1, 3), (2, 2, 1), (4, 4, 0), (4, 4, 2))
    slow |= {layout for layout in whole if (layout.world, layout.ep, layout.stage) in neighbours}
    return [pytest.param(layout, marks=[pytest.mark.slow] if layout in slow else []) for layout in of]


def train_all(wanted: list[Layout]) -> list[Trace]:
    """Train one layout after another in the same processes."""
    return [whole(Run.start(layout).train()) for layout in wanted]


@pytest.fixture(scope="module")
def references() -> dict[int, Trace]:
    """What plain PyTorch on one process does, by top_k."""
    return {top_k: run_on_ranks(train_plainly, 1, top_k)[0] for top_k in (1, 2)}


@pytest.fixture(scope="module")
def uneven_reference() -> Trace:
    """The same with the number of experts that no layout here divides."""
    return run_on_ranks(train_plainly, 1, 2, UNEVEN)[0]


@pytest.fixture(scope="module")
def traces(request: pytest.FixtureRequest) -> dict[Layout, Trace]:
    """The trace of every layout that a selected test is about, as rank 0 saw it: one start for each world."""
    here = (item for item in request.session.items if item.path == request.path)
    asked = {item.callspec.params.get("layout") for item in here if hasattr(item, "callspec")}
    found: dict[Layout, Trace] = {}
    for world in WORLDS:
        wanted = [layout for layout in LAYOUTS + BF16_LAYOUTS if layout.world == world and layout in asked]
        found |= zip(wanted, run_on_ranks(train_all, world, wanted, timeout_s=300)[0], strict=True)
    return found


def buckets() -> tuple[int, int]:
    """Parameters of this rank, and what a bucket of gradients holds, where ranks hold uneven experts."""
    layout = next(layout for layout in exchanges() if layout.experts == UNEVEN)
    engine = Run.start(layout).engine
    return sum(p.numel() for p in engine.module.parameters()), engine.deepspeed.zero_reduce_bucket_size()


@pytest.mark.long
def test_uneven_ranks_reduce_all_gradients_at_once() -> None:
    found = run_on_ranks(buckets, 4)
    numbers = [number for number, _ in found]
    assert min(numbers) < max(numbers)
    assert all(bucket == max(numbers) for _, bucket in found)


def first_steps(trace: Trace, steps: int) -> Trace:
    return replace(
        trace,
        losses=trace.losses[:steps],
        norms=trace.norms[:steps],
        loads=trace.loads[:steps],
        dropped=trace.dropped[:steps],
    )


def test_the_reference_clips_and_drops_so_that_a_layout_could_show(references: dict[int, Trace]) -> None:
    for reference in references.values():
        assert all(min(step) > 0 for step in reference.dropped)
        assert any(norm > CLIP_NORM for norm in reference.norms)
        assert any(norm < CLIP_NORM for norm in reference.norms)


@pytest.mark.parametrize("layout", some_are_slow(LAYOUTS), ids=str)
def test_every_layout_trains_as_one_process_does(
    layout: Layout,
    traces: dict[Layout, Trace],
    references: dict[int, Trace],
    uneven_reference: Trace,
) -> None:
    trace, reference = traces[layout], references[layout.top_k]
    if layout.experts == UNEVEN:
        reference = uneven_reference
    assert trace.loads == reference.loads
    assert trace.dropped == reference.dropped
    found = deviation(trace, reference)
    print(layout, found)
    assert max(found.loss, found.norm, found.gradient) < FP32, found


@pytest.mark.parametrize("layout", some_are_slow(BF16_LAYOUTS), ids=str)
def test_bf16_follows_fp32_within_its_rounding(
    layout: Layout,
    traces: dict[Layout, Trace],
    references: dict[int, Trace],
) -> None:
    found = deviation(traces[layout], references[2], floor=BF16_FLOOR)
    assert found.loss < BF16.loss, found
    assert found.norm < BF16.norm, found
    assert found.gradient < BF16.gradient, found


def test_bf16_gradients_of_the_first_step_are_right_at_stage_0_too(
    traces: dict[Layout, Trace], references: dict[int, Trace]
) -> None:
    for layout in (layout for layout in BF16_LAYOUTS if layout.stage == 0 and layout in traces):
        trace, reference = first_steps(traces[layout], 1), first_steps(references[2], 1)
        found = deviation(trace, reference, floor=BF16_FLOOR)
        assert found.loss < BF16.loss, found
        assert found.norm < BF16.norm, found
        assert found.gradient < BF16.gradient, found


def identical(a: Trace, b: Trace) -> bool:
    """Equal to the last bit."""
    return (a.losses, a.norms, a.loads, a.dropped) == (b.losses, b.norms, b.loads, b.dropped) and all(
        torch.equal(value, b.gradients[name]) for name, value in a.gradients.items()
    )


def test_an_engine_leaves_nothing_behind_for_the_next_one(traces: dict[Layout, Trace]) -> None:
    """The last of a long row of engines of other layouts against the only one of fresh processes."""
    last = exchanges()[-2]
    (alone,) = run_on_ranks(train_all, 4, [last])[0]
    assert identical(alone, traces[last])


# --- mutations: the comparison above sees each of these mistakes

ACCUMULATING = Layout(world=2, ep=2, stage=1, micro=4)


def scale_expert_gradients(model: SwinTransformer, layout: Layout) -> None:
    """As if experts were averaged over dp_size ranks only, and not over the world."""
    for parameter in model.parameters():
        if experts_of(parameter) is not None:
            parameter.register_hook(lambda gradient: gradient * layout.ep)


class Opaque(nn.Module):
    """A model whose output is not a tuple, as one would write it without knowing DeepSpeed's hooks."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, keys: Tensor) -> Any:
        """As the model, less the tuple."""
        return SimpleNamespace(**(output := self.model(images, keys))._asdict(), aux_loss=output.aux_loss)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Under the names of the model."""
        return self.model.named_parameters(*args, **kwargs)


def hide_the_output(model: SwinTransformer, layout: Layout) -> nn.Module:
    return Opaque(model)


def keep(model: SwinTransformer, layout: Layout) -> None:
    """No change: the control."""


STAGES = [replace(ACCUMULATING, stage=stage) for stage in (0, 1, 2)]
BF16_ACCUMULATING = replace(ACCUMULATING, micro=2, precision="bf16")


def train_mutants() -> dict[str, list[Trace]]:
    def train(layout: Layout, change: Change) -> Trace:
        return whole(Run.start(layout, change).train(2))

    found = {
        "none": [train(ACCUMULATING, keep)],
        "none, bf16": [train(BF16_ACCUMULATING, keep)],
        "scale": [train(layout, scale_expert_gradients) for layout in STAGES],
        "opaque": [train(BF16_ACCUMULATING, hide_the_output)],
    }
    # as if the clip norm were of this rank's gradients alone
    with replaced(parallel.zero.engine, "sum_over", lambda values, group=None: values):
        return found | {"local norm": [train(STAGES[0], keep)]}


@pytest.fixture(scope="module")
def mutants() -> dict[str, list[Trace]]:
    return run_on_ranks(train_mutants, 2)[0]


@pytest.fixture(scope="module")
def two_steps(references: dict[int, Trace]) -> Trace:
    return first_steps(references[2], 2)


def test_without_a_mutation_all_is_well(mutants: dict[str, list[Trace]], two_steps: Trace) -> None:
    (fp32,), (bf16,) = mutants["none"], mutants["none, bf16"]
    found = deviation(fp32, two_steps)
    assert max(found.loss, found.norm, found.gradient) < FP32, found
    assert deviation(bf16, two_steps, floor=BF16_FLOOR).gradient < BF16.gradient


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_wrong_scale_of_expert_gradients_is_seen(
    stage: int, mutants: dict[str, list[Trace]], two_steps: Trace
) -> None:
    found = deviation(mutants["scale"][stage], two_steps)
    assert found.gradient == pytest.approx(1.0, rel=1e-3)  # 2 g instead of g
    assert ".experts." in found.tensor
    assert found.norm > 100 * FP32


def test_a_rank_local_clip_norm_is_seen(mutants: dict[str, list[Trace]], two_steps: Trace) -> None:
    assert deviation(mutants["local norm"][0], two_steps).norm > 100 * FP32


def test_an_output_that_deepspeed_cannot_look_into_is_seen(
    mutants: dict[str, list[Trace]], two_steps: Trace
) -> None:
    assert deviation(mutants["opaque"][0], two_steps, floor=BF16_FLOOR).gradient > 3 * BF16.gradient
