"""What the MoE layers did, from the layers to the records: sums, the picture, and the routers' bias."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist

from launcher.config.load import ConfigError, load_config
from launcher.metrics.accumulator import LayerTotals, MetricAccumulator, Totals
from launcher.metrics.heat_map import CELL, heat_map
from launcher.validation.rules import check
from swin_moe.moe.layer import MoEStats
from tests.distributed import RankError, run_on_ranks
from tests.launcher.running import CONFIG, Outcome, command, only, overrides, steps

LAYER = "layers.1.blocks.1"


def stats(load: list[int], *, dropped: int = 0, entropy: float = 0.0, received: int = 0) -> MoEStats:
    return MoEStats(
        loss=torch.zeros(()),
        load=torch.tensor(load),
        dropped=torch.tensor(dropped),
        entropy=torch.tensor(entropy),
        received=torch.tensor(received),
    )


def sums(*values: float) -> dict[str, torch.Tensor]:
    return {f"sum{i}": torch.tensor(value) for i, value in enumerate(values)}


# --- sums --------------------------------------------------------------------------------------------


def test_two_passes_by_hand() -> None:
    tally = MetricAccumulator(rank=0, world_size=1)
    first = stats([3, 1, 0, 0], dropped=1, entropy=0.5, received=3)
    tally.add(sums(1.0, 2.0), {"a": first, "b": stats([0, 0, 2, 2], received=4)})
    second = stats([1, 1, 1, 1], entropy=1.0, received=4)
    tally.add(sums(10.0, 20.0), {"a": second, "b": stats([0, 0, 0, 0], dropped=0)})
    totals = tally.reduce()
    assert (totals.passes, totals.sums) == (2, {"sum0": 11.0, "sum1": 22.0})
    assert totals.layers == {
        "a": LayerTotals(tokens=[4, 2, 1, 1], dropped=1, entropy=0.75, received=[7]),
        "b": LayerTotals(tokens=[0, 0, 2, 2], dropped=0, entropy=0.0, received=[4]),
    }
    assert totals.dropped_fraction == 1 / 12
    assert {name: load.tolist() for name, load in totals.loads.items()} == {
        "a": [4, 2, 1, 1],
        "b": [0, 0, 2, 2],
    }


def test_figures_of_a_layer_by_hand() -> None:
    layer = LayerTotals(tokens=[4, 2, 1, 1], dropped=2, entropy=0.75, received=[9, 0, 3])
    assert layer.scalars() == {
        "dropped_fraction": 0.25,
        "entropy": 0.75,
        "load_cv": pytest.approx(1.5**0.5 / 2),  # deviations 2, 0, -1, -1 of a mean of 2
        "load_max_over_mean": 2.0,
        "received_max_over_mean": 2.25,  # 9 of a mean of 4
    }
    assert layer.shares == [0.5, 0.25, 0.125, 0.125]


def test_a_layer_that_saw_nothing_has_figures() -> None:
    layer = LayerTotals(tokens=[0, 0], dropped=0, entropy=0.0, received=[0])
    assert set(layer.scalars().values()) == {0.0}
    assert layer.shares == [0.0, 0.0]


def test_a_dense_model() -> None:
    tally = MetricAccumulator(rank=0, world_size=1)
    tally.add(sums(1.0), {})
    assert tally.reduce() == Totals(
        passes=1, counts={}, sums={"sum0": 1.0}, layers={}, loads={}, raised={"nonfinite": []}
    )
    assert tally.reduce().dropped_fraction == 0


@pytest.mark.parametrize(("watched", "ranks"), [(None, [0]), (1, []), (2, [0])])
def test_only_watched_sums_must_be_finite(watched: int | None, ranks: list[int]) -> None:
    tally = MetricAccumulator(rank=0, world_size=1, watched=watched)
    tally.add(sums(1.0, float("nan"), 2.0), {})
    assert tally.reduce().raised == {"nonfinite": ranks}


def test_every_pass_has_the_same_sums() -> None:
    tally = MetricAccumulator(rank=0, world_size=1)
    tally.add(sums(1.0), {})
    with pytest.raises(ValueError, match=r"the values of a pass \(sum0, sum1\) must be sum0"):
        tally.add(sums(1.0, 2.0), {})


def test_counts_are_exact_beyond_single_precision() -> None:
    tally = MetricAccumulator(rank=0, world_size=1)
    tally.add(sums(0.0), {"a": stats([2**24, 2**24 + 1])})
    tally.add(sums(0.0), {"a": stats([1, 0])})
    assert tally.reduce().layers["a"].tokens == [2**24 + 1, 2**24 + 1]


def test_adding_reads_nothing_from_the_device() -> None:
    tally = MetricAccumulator(rank=1, world_size=2)
    given = (value for value in stats([1, 2]) if value is not None)
    layer = MoEStats(*(value.to("meta") for value in given))  # meta: reading a value raises
    tally.add({"loss": torch.zeros((), device="meta")}, {"a": layer})
    with pytest.raises(NotImplementedError):
        tally.reduce()


def tally_on_ranks() -> tuple[int, int, Totals]:
    """Rank r adds r + 1 passes with r tokens for expert 0, one for expert 1, and 2 r rows received."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    tally = MetricAccumulator(rank=rank, world_size=world_size)
    with mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as reductions:
        for _ in range(rank + 1):
            layer = stats([rank, 1, 0], dropped=rank, entropy=float(rank), received=2 * rank)
            tally.add(sums(float(rank)), {"a": layer})
        before = reductions.call_count
        totals = tally.reduce()
        return before, reductions.call_count, totals


def test_three_ranks_by_hand_in_one_all_reduce() -> None:
    for before, after, totals in run_on_ranks(tally_on_ranks, 3):
        assert (before, after) == (0, 1)
        assert (totals.passes, totals.sums) == (6, {"sum0": 8.0})  # passes 1 + 2 + 3; 0 + 2 x 1 + 3 x 2
        assert totals.layers == {
            "a": LayerTotals(tokens=[8, 6, 0], dropped=8, entropy=8 / 6, received=[0, 4, 12])
        }
        assert totals.loads["a"].equal(torch.tensor([8, 6, 0]))  # int64
        assert totals.dropped_fraction == 8 / 14


def test_an_interval_of_nothing_is_refused(shards: Path, tmp_path: Path) -> None:
    config = load_config(CONFIG, overrides(shards, tmp_path, "train.moe_load_every=0 steps"))
    with pytest.raises(ConfigError, match=r"train\.moe_load_every \(0 steps\) must be more than nothing"):
        check(config)


# --- the picture -------------------------------------------------------------------------------------


def test_colours_of_a_heat_map_by_hand() -> None:
    picture = heat_map([[0, 2, 2, 4], [0, 0, 0, 0]])
    assert picture.shape == (3, 2 * CELL, 4 * CELL)
    assert picture.dtype == np.uint8
    colours = picture[:, ::CELL, ::CELL].transpose(1, 2, 0).tolist()
    violet, even = [68, 1, 84], [33, 145, 140]
    twice = [74, 182, 112]  # at 2 / 3: two thirds of the way from the third colour to [94, 201, 98]
    assert colours == [[violet, even, even, twice], [violet] * 4]
    assert (picture[:, 0, : CELL - 1] == picture[:, :1, 0]).all()  # a cell has one colour
    assert (picture[:, CELL - 1 :: CELL] == 0).all()
    assert (picture[:, :, CELL - 1 :: CELL] == 0).all()


def test_the_brightest_cell_holds_everything() -> None:
    picture = heat_map([[10**9] + [0] * 999])
    assert picture[:, 0, 0] == pytest.approx([253, 231, 37], abs=1)


# --- the sigmoid router's bias -----------------------------------------------------------------------

SIGMOID = (
    "model.moe.router=sigmoid",
    "model.moe.bias_update_rate=0.05",
    "train.duration=10 steps",
    "train.eval_every=null",
    "train.moe_load_every=1 steps",
)
RECORDED = ("step", "loss", "aux_loss", "grad_norm", "moe", "tokens_per_expert", "received_rows")


def train_line(shards: Path, run_dir: Path, *more: str) -> list[str]:
    line = ["train", str(CONFIG), "--resume", "auto"]
    return [*line, *overrides(shards, run_dir, *SIGMOID, "checkpoint.every=null", *more)]


def train(*line: str) -> tuple[Outcome, Mapping[str, list[int]]]:
    """Run a command on this rank; and the biases that its model ends with."""
    ends: list[dict[str, list[int]]] = []

    def hook(event: str, trainer: Any) -> None:
        if event == "end":
            buffers = trainer.task.model.named_buffers()
            ends.append({name: value.tolist() for name, value in buffers if name.endswith("bias_steps")})

    return command(*line, hook=hook), ends[0]


def balanced(run: Path) -> list[int]:
    """What the recorded loads move a bias by: up at a step where the expert had less than the mean."""
    bias = [0] * 8
    for record in steps(run):
        load = record["tokens_per_expert"][LAYER]
        for expert, tokens in enumerate(load):
            bias[expert] += (8 * tokens < sum(load)) - (8 * tokens > sum(load))
    return bias


@pytest.fixture(scope="module")
def alone(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Mapping[str, list[int]]]:
    """One rank, two micro-batches a step; and the biases at the end."""
    run = tmp_path_factory.mktemp("sigmoid") / "run"
    ((outcome, biases),) = run_on_ranks(train, 1, *train_line(shards, run))
    assert outcome.code == 0, outcome.err
    return run, biases


def test_the_bias_follows_the_load_once_a_step(alone: tuple[Path, Mapping[str, list[int]]]) -> None:
    run, biases = alone
    assert len(steps(run)) == 10
    assert biases == {f"{LAYER}.mlp.router.bias_steps": balanced(run)}
    assert max(map(abs, balanced(run))) > 1


@pytest.mark.parametrize(
    "layout", [("parallel.ep_size=2",), pytest.param(("train.micro_batch_size=4",), marks=pytest.mark.slow)]
)
def test_two_ranks_move_it_alike(
    shards: Path, tmp_path: Path, alone: tuple[Path, Mapping[str, list[int]]], layout: tuple[str, ...]
) -> None:
    reference, wanted = alone
    for outcome, biases in run_on_ranks(train, 2, *train_line(shards, tmp_path / "run", *layout)):
        assert outcome.code == 0, outcome.err
        assert biases == wanted
    for found, other in zip(steps(tmp_path / "run"), steps(reference), strict=True):
        assert found["tokens_per_expert"] == other["tokens_per_expert"]
        assert sum(found["received_rows"][LAYER]) == other["received_rows"][LAYER][0]
        assert len(found["received_rows"][LAYER]) == 2


def killed(line: list[str]) -> Any:
    """Run a command that dies before its seventh step."""
    return command(*line, kill=("step", 6))


def test_resume_restores_it_bit_for_bit(
    shards: Path, tmp_path: Path, alone: tuple[Path, Mapping[str, list[int]]]
) -> None:
    reference, wanted = alone
    line = train_line(shards, tmp_path / "run", "checkpoint.every=4 steps")
    with pytest.raises(RankError, match="died with exit code -9"):
        run_on_ranks(killed, 1, line)
    assert len(steps(tmp_path / "run")) == 6
    ((outcome, biases),) = run_on_ranks(train, 1, *line)
    assert outcome.code == 0, outcome.err
    assert biases == wanted
    for found, other in zip(steps(tmp_path / "run"), steps(reference), strict=True):
        assert only(found, RECORDED) == only(other, RECORDED)


def test_without_a_rate_the_choice_does_not_change(
    shards: Path, tmp_path: Path, alone: tuple[Path, Mapping[str, list[int]]]
) -> None:
    line = train_line(shards, tmp_path / "run", "model.moe.bias_update_rate=0.0")
    ((outcome, _),) = run_on_ranks(train, 1, *line)
    assert outcome.code == 0, outcome.err
    free, held = steps(tmp_path / "run"), steps(alone[0])
    assert free[0]["tokens_per_expert"] == held[0]["tokens_per_expert"]
    assert free[-1]["tokens_per_expert"] != held[-1]["tokens_per_expert"]
