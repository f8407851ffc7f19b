"""The search against a plain enumeration, the command's text and its errors, and calibration on two ranks."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.cli.program import main
from launcher.config.load import ConfigError, load_config
from launcher.config.schema import RunConfig
from launcher.plan.base.hardware import Hardware, profiles
from launcher.plan.search.candidate import Candidate
from launcher.plan.search.exchanges import ExchangeOrder, exchanges
from launcher.plan.search.search import batch_error, micro_batches, search
from launcher.plan.time.estimate import predict_time
from launcher.validation.rules import rule_errors
from parallel.experts.placement import ExchangeOptions
from tests.distributed import run_on_ranks
from tests.launcher.plan.machines import MACHINE, cost, predictor
from tests.launcher.plan.tiny_runs import TINY, run_of

CONFIG = str(Path(__file__).parents[3] / "configs" / "demo_cpu.yaml")


def key_of(config: RunConfig) -> tuple[object, ...]:
    parallel = config.parallel
    return (
        parallel.ep_size,
        parallel.expert_tensor_parallel_size,
        parallel.zero_stage,
        parallel.offload_optimizer,
        config.train.micro_batch_size,
        config.model.activation_checkpoint_every,
    )


@pytest.fixture(scope="module")
def found() -> list[Candidate]:
    return search(run_of(micro=2, ranks=2), [2], predictor())


@pytest.fixture(scope="module")
def allowed() -> list[RunConfig]:
    """Every layout with every exchange that no rule forbids on 2 nodes of 2, by loops over all options."""
    config, found = run_of(micro=2, ranks=4), []
    for ep, slices, stage, offload, every in itertools.product(
        (1, 2, 4), (1, 2, 4), range(4), (False, True), (0, 1)
    ):
        if ep % slices or (offload and not stage):
            continue
        for strategy, hierarchical, overlap in itertools.product(
            ("ep", "dp", "auto", 2, 4), (False, True), (1, 2, 4, 8)
        ):
            exchange = ExchangeOptions(strategy=strategy, hierarchical=hierarchical, overlap=overlap)
            parallel = replace(
                config.parallel,
                ep_size=ep,
                expert_tensor_parallel_size=slices,
                zero_stage=stage,
                offload_optimizer=offload,
                expert_exchange=exchange,
            )
            model = replace(config.model, activation_checkpoint_every=every)
            one = replace(config, model=model, parallel=parallel)
            if not rule_errors(one, 4, [2, 2]):
                found.append(one)
    return found


def enumerated(allowed: list[RunConfig], machine: Hardware) -> dict[tuple[object, ...], float]:
    """Seconds of every layout with the best of all its exchanges."""
    best: dict[tuple[object, ...], float] = {}
    costs = cost(machine)
    for one in allowed:
        step_s = predict_time(one, [2, 2], machine, costs).step_s
        best[key_of(one)] = min(step_s, best.get(key_of(one), step_s))
    return best


GPU = replace(MACHINE, device="cuda", name="a GPU")
CROWDED = replace(GPU, between=replace(GPU.between, message_us=2000.0))  # hops inside of the node are cheap


@pytest.mark.parametrize("machine", [MACHINE, GPU, CROWDED], ids=["cpu", "gpu", "crowded"])
def test_search_is_the_enumeration_of_all_layouts_and_exchanges(
    machine: Hardware, allowed: list[RunConfig]
) -> None:
    # 4 images a rank, routing groups of 2: micro-batches of 2 and 4; 4 experts on 4 ranks
    assert micro_batches(run_of(micro=4, ranks=4), 4) == [2, 4]
    config = run_of(micro=2, ranks=4)
    best = enumerated(allowed, machine)
    found = search(config, [2, 2], predictor(machine), most=1)
    steps = {key_of(c.config): c.time.step_s for c in found if c.time}
    assert steps == pytest.approx(best)
    assert found[0].time is not None
    assert found[0].time.step_s == pytest.approx(min(best.values()))
    assert all(not rule_errors(c.config, 4, [2, 2]) for c in found if c.time)


def test_the_exchanges_differ_by_machine() -> None:
    # one rank of each node in a group, and two: a message between nodes of 2 ms makes two hops faster
    chosen = {}
    for machine in (MACHINE, GPU, CROWDED):
        config = run_of(micro=4, ranks=4, ep_size=4)
        order = ExchangeOrder(predictor=predictor(machine), nodes=[2, 2])
        chosen[machine.name, machine.between.message_us] = order(config)[0]
    assert len(set(chosen.values())) > 1
    config = run_of(micro=4, ranks=4, ep_size=1)
    assert exchanges(config, [2, 2]) == [config.parallel.expert_exchange]  # no row travels


def test_the_order_of_exchanges_keeps_the_configured_one_where_it_is_as_fast() -> None:
    own = ExchangeOptions(overlap=4)  # on a CPU nothing overlaps, but chunks wait longer; 1 is faster
    config = run_of(micro=4, ranks=4, ep_size=2, expert_exchange=own)
    order = ExchangeOrder(predictor=predictor(), nodes=[4])
    assert own in exchanges(config, [4])
    assert order(config)[0].overlap == 1
    same = replace(MACHINE, in_node=replace(MACHINE.in_node, message_us=0.0), start_us=0.0)
    free = ExchangeOrder(predictor=predictor(same), nodes=[4])(config)
    assert free[0] == own


def test_what_fits_comes_fastest_first(found: list[Candidate]) -> None:
    speeds = [c.time.images_s for c in found if c.time]
    assert speeds == sorted(speeds, reverse=True)
    assert not any(c.reason for c in found)


def test_what_does_not_fit_comes_after_with_what_it_lacks(found: list[Candidate]) -> None:
    config = run_of(micro=2, ranks=2)
    needs = sorted({c.memory.peak_bytes for c in found if c.memory})
    small = replace(MACHINE, memory_gib=needs[len(needs) // 2] / 2**30)
    found = search(config, [2], predictor(small))  # activations are remembered
    fits = [not c.reason for c in found]
    assert any(fits)
    assert not all(fits)
    assert fits == sorted(fits, reverse=True)
    short = [c.memory.peak_bytes for c in found if c.reason and c.memory]
    assert short == sorted(short)
    assert all(size > small.memory_bytes for size in short)
    assert found[-1].reason.startswith("needs ")


def test_layouts_that_break_a_rule_are_said_once() -> None:
    two = replace(TINY, moe=replace(TINY.moe, num_experts=2))
    found = search(run_of(two, micro=2, ranks=4), [4], predictor(), most=1)
    (broken,) = [c for c in found if c.time is None]
    assert (broken.config.parallel.ep_size, broken.config.parallel.expert_tensor_parallel_size) == (4, 1)
    assert broken.reason.endswith("parallel.expert_tensor_parallel_size=2 would do")
    assert found[-1] is broken


@pytest.mark.parametrize(
    ("ranks", "batch", "said"),
    [
        (  # 32 ranks x groups of 2 images = 64, and 16 x 2 = 32 is the next that divides
            32,
            32,
            "no layout works: 32 ranks x 2 images (model.moe.routing_group_images=2) = 64 must divide "
            "train.global_batch_size (32); 16 ranks or train.global_batch_size=64 would do",
        ),
        (
            3,
            64,
            "no layout works: 3 ranks x 2 images (model.moe.routing_group_images=2) = 6 must divide "
            "train.global_batch_size (64); 2 ranks or train.global_batch_size=66 would do",
        ),
    ],
)
def test_a_global_batch_that_no_layout_divides_is_an_equation(ranks: int, batch: int, said: str) -> None:
    config = run_of(micro=2, ranks=4)
    config = replace(config, train=replace(config.train, global_batch_size=batch))
    assert batch_error(config, ranks) == said
    assert batch_error(config, 4) == ""
    with pytest.raises(ConfigError, match="must divide train.global_batch_size"):
        search(config, [ranks], predictor())


def test_overrides_give_the_layout_again(found: list[Candidate]) -> None:
    config = load_config(CONFIG, found[0].overrides)
    assert key_of(config) == key_of(found[0].config)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "plan.json"
    options = ["--nodes", "1", "--gpus-per-node", "2", "--gpu", "a100-40", "--price-per-gpu-hour", "3"]
    assert main(["plan", CONFIG, *options, "--json", str(file), "train.precision=bf16"]) == 0
    said = capsys.readouterr().out
    for part in (
        "on 1 x 2 A100 SXM 40 GB, bf16",
        "GiB spare",
        "all-to-all",
        "a million images",
        "slowest: ",
        "time to train: 4 epochs of how many images? give --images N",
        "speeds are upper bounds; measured runs reached less of them",
    ):
        assert part in said
    found = json.loads(file.read_text())
    assert found["memory"]["fits"]
    assert found["time"]["step_s"] == pytest.approx(sum(found["time"]["items_s"].values()))
    cost = 3 * 2 * 1e6 / found["time"]["images_s"] / 3600
    assert found["price_per_million_images"] == pytest.approx(cost)


def test_simulation_draws_charts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--gpu",
        "a100-40",
        "--simulate",
        "1..4",
        "--out",
        str(tmp_path),
        "--json",
        str(tmp_path / "p"),
    ]
    assert main(["plan", CONFIG, *options]) == 0
    assert "the all-to-all takes longer than compute" in capsys.readouterr().out
    assert (tmp_path / "weak_scaling.png").read_bytes()[1:4] == b"PNG"
    assert "<svg" in (tmp_path / "weak_scaling.svg").read_text()
    assert [p["ranks"] for p in json.loads((tmp_path / "p").read_text())["points"]] == [1, 2, 4]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([CONFIG], "plan needs CONFIG and --gpu NAME|FILE"),
        ([CONFIG, "--gpu", "a100"], "--gpu (a100) may be a100-40 or a100-80; name one of them"),
        ([CONFIG, "--gpu", "h10-80"], "is neither a profile nor a YAML file; did you mean h100-80?"),
        (
            [CONFIG, "--gpu", "h100", "--nodes", "2", "--search"],
            "no layout works: 16 ranks x 32 images (model.moe.routing_group_images=32) = 512 must divide "
            "train.global_batch_size (128); 4 ranks or train.global_batch_size=512 would do",
        ),
        (
            [CONFIG, "--gpu", "tiny.yaml", "--gpus-per-node", "1", "--search", "train.global_batch_size=32"],
            "no layout fits: the nearest needs",
        ),
        ([CONFIG, "--gpu", "no.yaml"], "cannot read no.yaml"),
        ([CONFIG, "--gpu", "h200", "--simulate", "4"], "--simulate (4) must be FIRST..LAST"),
        (
            [CONFIG, "--gpu", "h200", "--gpus-per-node", "3"],
            "parallel.ep_size (2) must divide the number of ranks",
        ),
        (["--calibrate", "x.txt"], "--calibrate (x.txt) must be a file that ends in .yaml"),
        (["--calibrate", "no/x.yaml"], "there is no directory no"),
        ([CONFIG, "--gpu", "h200", "--json", "no/x.json"], "--json (no/x.json): there is no directory no"),
        (
            [CONFIG, "--gpu", "h200", "--simulate", "4..8", "--out", "/dev/null/x"],
            "--out (/dev/null/x) cannot be written: Not a directory",
        ),
    ],
)
def test_errors(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("tiny.yaml").write_text(f"base: {profiles()['h200']}\nmemory_gib: 0.001\n")
    assert main(["plan", *options]) == 2
    assert said in capsys.readouterr().err


def calibrated(file: str) -> None:
    """On a rank: a short calibration, written by the first."""
    import torch
    import torch.distributed as dist

    from launcher.plan.base import stopwatch
    from launcher.plan.time import calibrate, zero3_hooks

    zero3_hooks.DEPTHS = 1, 2
    stopwatch.BUDGET_S, calibrate.SIZES, calibrate.SIDES = 0.0, (2**10, 2**14), (16, 64)
    calibrate.MESSAGES = (2**10, 2**20)
    hardware = calibrate.measure(torch.device("cpu"))
    if dist.get_rank() == 0:
        calibrate.write(hardware, Path(file))


@pytest.mark.long
def test_two_ranks_write_a_profile_that_a_plan_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "here.yaml")
    run_on_ranks(calibrated, 2, file)
    assert main(["plan", CONFIG, "--gpu", file]) == 0
    assert "this machine, 2 ranks" in capsys.readouterr().out
