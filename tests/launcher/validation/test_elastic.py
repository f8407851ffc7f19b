"""--elastic: what is planned for another number of ranks, and a run that goes on there as it would have."""

import itertools
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from launcher.config.load import ConfigError, load_config
from launcher.config.schema import RunConfig
from launcher.validation.elastic import replan
from launcher.validation.rules import check, rule_errors
from parallel.ranks.mesh import ParallelDims
from parallel.ranks.topology import straddling
from tests.distributed import RankError, run_on_ranks
from tests.faults import Wrapped
from tests.launcher.running import CONFIG, Outcome, command, only, overrides, start, steps
from tests.messages import assert_names

GLOBAL = 24  # over 4 ranks 6 each, over 3 ranks 8, over 2 ranks 12; 256 images an epoch: 10 2/3 steps
SAVED, KILLED, STEPS = 3, 4, 24
LAYOUT = (
    f"train.global_batch_size={GLOBAL}",
    "train.micro_batch_size=6",
    "model.moe.routing_group_images=2",
    "parallel.collective_timeout_s=60",
    "checkpoint.asynchronous=false",  # so that it is known what a kill finds
)
SCHEDULE = (f"train.duration={STEPS} steps", f"checkpoint.every={SAVED} steps", "checkpoint.keep_last=9")


def config(*more: str) -> RunConfig:
    return load_config(CONFIG, [*overrides(Path("shards"), "run", *LAYOUT), *more])


# --- the plan -----------------------------------------------------------------------------------------


def test_what_fits_stays_and_nothing_is_said() -> None:
    for world_size, ep_size in ((1, 1), (2, 2), (4, 2), (4, 4)):
        asked = config(f"parallel.ep_size={ep_size}")
        assert replan(asked, world_size) == (asked, [])


def test_a_smaller_world_of_the_same_layout_says_its_accumulation() -> None:
    asked = config("parallel.ep_size=2")
    planned, lines = replan(asked, 2, before=4)
    assert planned == asked
    assert lines == ["elastic: 4 -> 2 ranks x 2 micro-batches of 6, the global batch stays 24"]


def test_everything_that_does_not_fit_is_planned_anew() -> None:
    asked = config(
        "parallel.ep_size=4", "parallel.expert_tensor_parallel_size=2", "parallel.expert_exchange.strategy=2"
    )
    planned, lines = replan(asked, 3, before=4)
    assert lines == [
        "elastic: 4 -> 3 ranks x 2 micro-batches of 4, the global batch stays 24",
        "  parallel.ep_size: 4 -> 3",
        "  parallel.expert_tensor_parallel_size: 2 -> 1",
        "  parallel.expert_exchange.strategy: 2 -> 1",
        "  train.micro_batch_size: 6 -> 4",
    ]
    assert (planned.parallel.ep_size, planned.train.micro_batch_size) == (3, 4)


@pytest.mark.parametrize(
    ("ep_size", "world_size", "per_node", "found"),
    [
        (16, 24, None, 12),
        (16, 24, 8, 8),  # 12 would straddle nodes of 8
        (32, 48, 8, 24),  # wider than a node: whole nodes
        (4, 6, 6, 3),
        (2, 3, 3, 3),  # 1 would put every expert on every rank
        (4, 1, 1, 1),
        (8, 7, 7, 7),
        (2, 35, 5, 5),
    ],
)
def test_the_ep_size_of_a_plan(ep_size: int, world_size: int, per_node: int | None, found: int) -> None:
    asked = config(f"parallel.ep_size={ep_size}", "model.moe.num_experts=64", "train.global_batch_size=3360")
    assert replan(asked, world_size, per_node)[0].parallel.ep_size == found


def test_an_exchange_in_two_stages_only_where_nodes_allow_it() -> None:
    asked = config("parallel.ep_size=4", "parallel.expert_exchange.hierarchical=true")
    assert replan(asked, 4, 2)[0] == asked
    for planned, lines in (replan(asked, 4, 3), replan(asked, 4, 1, even_nodes=False)):
        assert not planned.parallel.expert_exchange.hierarchical
        assert lines[1:] == ["  parallel.expert_exchange.hierarchical: True -> False"]


def test_a_world_over_which_the_batch_does_not_divide() -> None:
    with pytest.raises(ConfigError) as error:
        replan(config(), 5)
    assert_names(str(error.value), "--elastic: train.global_batch_size (24)", "5 ranks", "; 4 or 6 ranks")
    with pytest.raises(ConfigError, match="; 12 ranks would do$"):
        replan(config(), 13)


@pytest.mark.parametrize(
    "wrong",
    [
        ("parallel.ep_size=6", "parallel.expert_tensor_parallel_size=4", "train.micro_batch_size=3"),
        ("train.global_batch_size=25", "train.micro_batch_size=4"),
    ],
)
def test_a_configuration_that_is_wrong_on_any_ranks_is_left_to_check(wrong: tuple[str, ...]) -> None:
    assert replan(config(*wrong), 6)[0] == config(*wrong)


def test_every_plan_passes_the_rules_and_keeps_the_global_batch() -> None:
    """All worlds to 12 with some configurations of which most do not fit them."""
    planned_anew = refused = 0
    base = config()
    for experts, (ep_size, slices, strategy), (
        batch,
        micro,
        group,
    ), world_size, per_node in itertools.product(
        (3, 8),
        ((1, 1, "ep"), (2, 1, "dp"), (4, 2, 2), (6, 3, 3), (8, 4, "auto"), (12, 6, 12)),
        ((24, 6, 2), (48, 8, 4), (36, 6, 6), (7, 7, 1), (64, 16, 4)),
        range(1, 13),
        (None, 4),
    ):
        assert base.model.moe is not None
        moe = replace(base.model.moe, num_experts=experts, routing_group_images=group)
        exchange = replace(base.parallel.expert_exchange, strategy=strategy)
        asked = replace(
            base,
            model=replace(base.model, moe=moe),
            data=replace(base.data, augment=None if batch == 7 else base.data.augment),
            parallel=replace(
                base.parallel, ep_size=ep_size, expert_tensor_parallel_size=slices, expert_exchange=exchange
            ),
            train=replace(base.train, global_batch_size=batch, micro_batch_size=micro, eval_batch_size=group),
        )
        assert rule_errors(asked, None) == []
        found, lines, would_do = plan(asked, world_size, per_node)
        if found is None:
            refused += 1
            assert rule_errors(replace(asked, parallel=base.parallel), world_size) != []
            assert all(rule_errors(replan(asked, other)[0], other) == [] for other in would_do)
            continue
        assert rule_errors(found, world_size) == []
        assert (found == asked) == (lines == []) == (rule_errors(asked, world_size) == [])
        assert found.train.micro_batch_size <= micro
        assert _but_for_the_layout(found) == _but_for_the_layout(asked)
        if per_node and found.parallel.ep_size != ep_size and world_size % per_node == 0:
            dims = ParallelDims(world_size=world_size, ep_size=found.parallel.ep_size)
            assert straddling(dims, [per_node] * (world_size // per_node)) == []
        planned_anew += found != asked
    assert planned_anew > 200
    assert refused > 100


def plan(
    config: RunConfig, world_size: int, per_node: int | None
) -> tuple[RunConfig | None, list[str], list[int]]:
    """A plan and its lines, or the numbers of ranks that would do instead."""
    try:
        return *replan(config, world_size, per_node), []
    except ConfigError as error:
        numbers = str(error).rpartition("; ")[2].removesuffix(" ranks would do").split(" or ")
        return None, [], [int(number) for number in numbers]


def _but_for_the_layout(config: RunConfig) -> RunConfig:
    parallel = replace(config.parallel, ep_size=1, expert_tensor_parallel_size=1, expert_exchange=None)  # type: ignore[arg-type]
    return replace(config, parallel=parallel, train=replace(config.train, micro_batch_size=1))


def test_check_speaks_of_elastic_where_a_checkpoint_is(shards: Path, tmp_path: Path) -> None:
    line = overrides(shards, tmp_path / "run", *LAYOUT, "parallel.ep_size=2")
    asked = load_config(CONFIG, line)
    with pytest.raises(ConfigError) as error:
        check(asked, 3)
    assert "--elastic" not in str(error.value)
    (tmp_path / "run" / "checkpoints" / "step-00000006").mkdir(parents=True)
    with pytest.raises(ConfigError) as error:
        check(asked, 3)
    assert str(error.value).startswith("2 things to correct:\n")
    hint = "  or go on with --elastic: parallel.ep_size: 2 -> 3; train.micro_batch_size: 6 -> 4"
    assert str(error.value).splitlines()[-1] == hint


# --- the run ------------------------------------------------------------------------------------------


def line(shards: Path, run: Path, *more: str, ep_size: int) -> list[str]:
    options = (*LAYOUT, *SCHEDULE, f"parallel.ep_size={ep_size}", *more)
    return ["train", str(CONFIG), "--resume", "auto", *overrides(shards, run, *options)]


def recorded(samples: Path, *arguments: str, kill: tuple[str, int] | None = None) -> Outcome:
    """Run a command and write down which positions of the stream each step took, on this rank."""

    def hook(event: str, trainer: Any) -> None:
        if event == "start":
            trainer.batches = Recorded(trainer, samples)

    return command(*arguments, kill=kill, hook=hook)


class Recorded(Wrapped):
    """Batches of a trainer that are written down as they are taken."""

    def __init__(self, trainer: Any, samples: Path) -> None:
        super().__init__(trainer.batches)
        self.trainer, self.samples = trainer, samples

    def __next__(self) -> Any:
        batch = next(self.inner)
        with (self.samples / f"{dist.get_world_size()}-{dist.get_rank()}").open("a") as file:
            record = [self.trainer.step + 1, batch.positions.tolist(), batch["label"].tolist()]
            file.write(json.dumps(record) + "\n")
        return batch


def samples_of(directory: Path, world_size: int) -> dict[int, list[tuple[int, int]]]:
    """(position, label) of every sample of each step, over all ranks of a session."""
    found: dict[int, list[tuple[int, int]]] = {}
    for path in sorted(directory.glob(f"{world_size}-*")):
        for step, positions, labels in map(json.loads, path.read_text().splitlines()):
            found.setdefault(step, []).extend(zip(positions, labels, strict=True))
    return {step: sorted(pairs) for step, pairs in found.items()}


@pytest.fixture(scope="module")
def uninterrupted(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The run and the samples of an uninterrupted run on some ranks; each is made once."""
    made: dict[int, tuple[Path, Path]] = {}

    def reference(ranks: int) -> tuple[Path, Path]:
        if ranks not in made:
            path = tmp_path_factory.mktemp("uninterrupted")
            outcomes = run_on_ranks(recorded, ranks, path, *line(shards, path / "run", ep_size=ranks))
            assert {outcome.code for outcome in outcomes} == {0}, outcomes[0].err
            made[ranks] = path / "run", path
        return made[ranks]

    return reference


@pytest.mark.long
@pytest.mark.parametrize(
    ("before", "now", "plan"),
    [
        (
            4,
            2,
            [
                "elastic: 4 -> 2 ranks x 2 micro-batches of 6, the global batch stays 24",
                "  parallel.ep_size: 4 -> 2",
            ],
        ),
        pytest.param(
            4,
            3,
            [
                "elastic: 4 -> 3 ranks x 2 micro-batches of 4, the global batch stays 24",
                "  parallel.ep_size: 4 -> 3",
                "  train.micro_batch_size: 6 -> 4",
            ],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            2,
            4,
            ["elastic: 2 -> 4 ranks x 1 micro-batches of 6, the global batch stays 24"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_killed_run_goes_on_over_other_ranks_with_the_very_same_samples(
    shards: Path, tmp_path: Path, uninterrupted: Any, before: int, now: int, plan: list[str]
) -> None:
    (reference, samples), run = uninterrupted(before), tmp_path / "run"
    train = line(shards, run, ep_size=before)
    with pytest.raises(RankError, match="died with exit code -9"):
        run_on_ranks(partial(recorded, kill=("step", KILLED)), before, tmp_path, *train)
    for path in tmp_path.glob(f"{before}-*"):
        path.unlink()
    outcomes = run_on_ranks(recorded, now, tmp_path, *train, "--elastic")
    assert {outcome.code for outcome in outcomes} == {0}, outcomes[0].err
    assert outcomes[0].out.splitlines()[: len(plan)] == plan

    found, wanted = samples_of(tmp_path, now), samples_of(samples, before)
    resumed = range(SAVED + 1, STEPS + 1)
    assert list(found) == list(resumed)
    assert found == {step: wanted[step] for step in resumed}
    assert {len(pairs) for pairs in found.values()} == {GLOBAL}
    assert worst_deviation(run, reference, resumed) < 1e-4


def worst_deviation(run: Path, reference: Path, of: range) -> float:
    """The largest relative deviation of a loss from the uninterrupted run's; steps before are equal."""
    found, wanted = steps(run), steps(reference)
    assert [record["step"] for record in found] == [record["step"] for record in wanted]
    pairs = list(zip(found, wanted, strict=True))
    assert all(a["loss"] == b["loss"] for a, b in pairs[: of.start - 1])
    assert len(pairs[of.start - 1 :]) >= 20
    worst = max(abs(a["loss"] / b["loss"] - 1) for a, b in pairs[of.start - 1 :])
    print(f"worst relative deviation of a loss: {worst:.1e}")
    return worst


@pytest.mark.slow
def test_nproc_and_elastic(shards: Path, tmp_path: Path) -> None:
    """The parent plans as its ranks do; without --elastic it says what would help."""
    train = line(shards, tmp_path / "run", "train.duration=6 steps", ep_size=2)
    done = start(*train, "--nproc", "2", cwd=tmp_path)
    assert done.wait(120) == 0, done.communicate()[1]
    longer = line(shards, tmp_path / "run", "train.duration=6 steps", "train.duration=8 steps", ep_size=2)
    refused = start(*longer, "--allow-change", "--nproc", "3", cwd=tmp_path)
    assert "or go on with --elastic: parallel.ep_size: 2 -> 3" in refused.communicate(timeout=120)[1]
    assert refused.returncode == 2
    program = start(*longer, "--allow-change", "--nproc", "3", "--elastic", cwd=tmp_path)
    out, err = program.communicate(timeout=120)
    assert program.returncode == 0, err
    assert out.count("elastic: 2 -> 3 ranks x 2 micro-batches of 4") == 1
    assert len(steps(tmp_path / "run")) == 8
    assert only(steps(tmp_path / "run")[-1], ["step"]) == [8]
