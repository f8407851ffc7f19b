"""The simulation against `plan` at each number of ranks, its notes and its charts, and what failures cost."""

from dataclasses import replace

import pytest

from launcher.cli.plan import parse_range
from launcher.config.load import ConfigError
from launcher.plan.search.charts import figure_of
from launcher.plan.search.failures import Failures
from launcher.plan.search.run_cost import Terms
from launcher.plan.search.simulate import Point, simulate
from launcher.plan.search.tables import simulation_lines
from tests.launcher.plan.machines import MACHINE, predictor
from tests.launcher.plan.tiny_runs import run_of

GPU = replace(MACHINE, device="cuda")


@pytest.fixture(scope="module")
def points() -> list[Point]:
    return simulate(run_of(ep_size=4), [1, 2, 4, 8], predictor(), Failures())


def test_simulation_is_weak_scaling(points: list[Point]) -> None:
    assert [p.ranks for p in points] == [1, 2, 4, 8]
    assert [p.ep_size for p in points] == [1, 2, 4, 4]  # as configured, and what divides
    assert [p.candidate.config.train.global_batch_size for p in points] == [2, 4, 8, 16]
    assert points[0].efficiency == 1
    per_rank = [p.time.images_s / p.ranks for p in points]
    assert [p.efficiency for p in points] == pytest.approx([x / per_rank[0] for x in per_rank])
    assert points[3].mtbf_s == pytest.approx(50_700 * 3600 / 8)


@pytest.mark.parametrize("hierarchical", [False, True])
def test_a_point_is_the_plan_of_as_many_ranks_whatever_the_range(hierarchical: bool) -> None:
    exchange = replace(run_of().parallel.expert_exchange, hierarchical=hierarchical)
    config, own = run_of(ep_size=4, expert_exchange=exchange), predictor(GPU)
    long = {p.ranks: p for p in simulate(config, [2, 4, 8], own, Failures())}
    for ranks in (4, 8):
        (alone,) = simulate(config, [ranks], own, Failures())
        train = replace(config.train, global_batch_size=2 * ranks)
        planned = own.predict(replace(config, train=train), [2] * (ranks // 2))
        assert planned.time == alone.time == long[ranks].time
        assert planned.memory == alone.candidate.memory == long[ranks].candidate.memory
        two, one = planned.time.all_to_all_hierarchical_s, planned.time.all_to_all_linear_s
        sent = planned.time.groups["all-to-all"] + dict(planned.time.hidden).get("all-to-all", 0.0)
        counts = sent - (two if hierarchical else one)  # the numbers of rows travel beside the rows
        assert 0 <= counts < 0.5 * sent


def test_accumulation_is_that_of_the_configuration(points: list[Point]) -> None:
    config = run_of(ep_size=4)
    twice = simulate(config, [4], predictor(), Failures(), grad_accum_steps=2)
    assert twice[0].candidate.config.train.global_batch_size == 16
    assert twice[0].candidate.grad_accum_steps == 2
    assert twice[0].time.groups["compute"] == pytest.approx(2 * points[2].time.groups["compute"])


def test_efficiency_above_one_is_explained_and_stays_on_its_axis(points: list[Point]) -> None:
    steep = [replace(p, efficiency=e) for p, e in zip(points, (1.0, 1.3, 1.6, 0.9), strict=True)]
    (note,) = [line for line in simulation_lines(steep, Terms()) if line.startswith("efficiency")]
    # 4 experts on one rank; on 4 ranks one each
    assert note.endswith("works more for its images than on 4: it holds 4 experts of a layer, not 1")
    assert not any(line.startswith("efficiency") for line in simulation_lines(points[:1], Terms()))
    for axis in figure_of(steep, "t").axes:
        low, high = axis.get_ylim()
        drawn = [y for line in axis.get_lines() for y in line.get_ydata()]
        assert low <= min(drawn)
        assert max(drawn) <= high


def test_what_the_other_hops_would_give_is_predicted() -> None:
    crowded = replace(GPU, between=replace(GPU.between, message_us=2000.0))
    found = simulate(run_of(ep_size=4), [2, 4], predictor(crowded), Failures())
    assert found[0].hops_gain == pytest.approx(0)  # one node
    assert found[1].hops_gain > 0.1
    lines = simulation_lines(found, Terms())
    gain = f"{found[1].hops_gain:+.0%} on 4 GPUs"
    assert f"parallel.expert_exchange.hierarchical=true would be faster: {gain}" in lines


def test_the_table_has_the_global_batch_and_the_cost(points: list[Point]) -> None:
    config = points[-1].candidate.config
    run = replace(config, train=replace(config.train, duration="10 epochs"))
    point = replace(points[-1], candidate=replace(points[-1].candidate, config=run))
    head, row = simulation_lines([point], Terms(epoch_images=1600, price_per_gpu_hour=3.0))[:2]
    assert head.split()[:3] == ["GPUs", "global", "batch"]
    hours = 1000 * point.time.step_s / 3600  # 10 x 1600 / 16 steps
    assert row.split()[:2] == ["8", "16"]
    assert row.split()[-3:] == [f"{hours:.1f}", f"{8 * hours:.0f}", f"{24 * hours:,.0f}"]
    million = 3 * 8 * 1e6 / point.time.images_s / 3600
    assert simulation_lines([point], Terms(price_per_gpu_hour=3.0))[1].split()[-1] == f"{million:.2f}"


def test_a_run_that_does_not_fit_is_marked() -> None:
    tight = replace(MACHINE, memory_gib=1e-4)
    lines = simulation_lines(simulate(run_of(), [2], predictor(tight), Failures()), Terms())
    assert "! does not fit in memory: 2 GPUs" in lines


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("8", "--simulate (8) must be FIRST..LAST numbers of GPUs, such as 8..4096"),
        ("64..8", "--simulate (64..8) must be FIRST..LAST numbers of GPUs, such as 8..4096"),
        ("6..100", "--simulate (6..100) goes by powers of two: 8..128 would do"),
    ],
)
def test_bad_ranges(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_range(text)
    assert str(caught.value) == said
    assert parse_range("8..64") == [8, 16, 32, 64]
