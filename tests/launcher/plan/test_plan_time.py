"""Rooflines, links, simulation and hardware profiles against numbers worked by hand."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from launcher.config.load import ConfigError
from launcher.plan.base.hardware import load_hardware, on_curve, profiles
from launcher.plan.base.trace import TracedOp
from launcher.plan.search.failures import Failures, goodput, young_s
from launcher.plan.time.estimate import EXCHANGE, FEED, GATHER, HOOKS, OPTIMIZER, REDUCE, predict_time
from launcher.plan.time.links import (
    RankGroup,
    all_reduce_s,
    crossover_bytes,
    gather_s,
    groups_of,
    hierarchical_s,
    linear_s,
)
from launcher.plan.time.roofline import op_s, ops_s, tile_share
from parallel.ranks.mesh import ParallelDims
from swin_moe.backbone.model import build_model
from tests.launcher.plan.machines import MACHINE, cost
from tests.launcher.plan.tiny_runs import TINY, run_of, work_of

PRODUCT = TracedOp(
    "product", 1, 100, 100, 100, elements=30_000
)  # 2 MFLOP at 5 GFLOP/s: 400 us; 120 kB: 120 us
PASS = TracedOp("copy", elements=1_000_000)  # 4 MB at 1 GB/s: 4 ms


def test_a_roofline_of_two_operations() -> None:
    assert op_s(PRODUCT, MACHINE, "fp32") == pytest.approx(400e-6)
    assert op_s(PRODUCT._replace(elements=200_000), MACHINE, "fp32") == pytest.approx(800e-6)  # by memory
    assert op_s(PASS, MACHINE, "bf16") == pytest.approx(2e-3)
    assert ops_s([PRODUCT, PASS], MACHINE, "fp32") == pytest.approx(400e-6 + 4e-3 + 2e-6)
    gpu = replace(MACHINE, device="cuda", launch_us=3000.0)
    assert ops_s([PRODUCT, PASS], gpu, "fp32") == pytest.approx(6e-3)  # the host is the slower one


def test_tiles() -> None:
    # 256 x 256 are 4 tiles of 128: half of 8 units are idle; k = 2048 is cut in 2, so that all have one
    assert tile_share(TracedOp("product", 1, 256, 256, 64), 128, 8) == 0.5
    assert tile_share(TracedOp("product", 1, 256, 256, 2048), 128, 8) == 1.0
    assert tile_share(TracedOp("product", 1, 129, 128, 64), 128, 2) == pytest.approx(129 / 256)
    assert tile_share(TracedOp("product", 9, 128, 128, 64), 128, 8) == pytest.approx(
        9 / 16
    )  # a second wave for one


def test_curves_are_straight_in_logarithms() -> None:
    curve = ((1.0, 2.0), (100.0, 8.0))
    assert [on_curve(curve, x) for x in (0.5, 10.0, 1000.0)] == pytest.approx([2.0, 4.0, 8.0])
    machine = replace(MACHINE, products={"fp32": ((10.0, 1e-3), (1000.0, 1e-1))})
    assert op_s(PRODUCT, machine, "fp32") == pytest.approx(2e6 / 1e10)


def test_rings() -> None:
    one, two = RankGroup(2, 2), RankGroup(4, 2)
    # inside: 2 steps of 1 us, half of the bytes twice at 4 GB/s
    assert all_reduce_s(MACHINE, one, 8e6) == pytest.approx(10e-6 + 2e-6 + 8e6 / 4e9)
    # two nodes of two: both ports of a node, 2 GB/s; 3/4 twice; 1 step between and 2 inside, or a tree: 5 + 1
    assert all_reduce_s(MACHINE, two, 8e6) == pytest.approx(10e-6 + 2 * 6e-6 + 1.5 * 8e6 / 2e9)
    assert gather_s(MACHINE, two, 8e6) == pytest.approx(10e-6 + 7e-6 + 0.75 * 8e6 / 2e9)
    assert gather_s(MACHINE, RankGroup(2, 1), 8e6) == pytest.approx(10e-6 + 5e-6 + 4e6 / 1e9)
    assert all_reduce_s(MACHINE, RankGroup(1, 1), 8e6) == 0


def test_all_to_all_in_one_stage_and_two() -> None:
    group = RankGroup(4, 2)
    # one message of 1/4 inside; two between: 40 us and half of the bytes at .5 GB/s, which is the longer
    assert linear_s(MACHINE, group, 1e6) == pytest.approx(10e-6 + 40e-6 + 1e-3)
    # 1/2 inside at 2 GB/s, all of it read and written at 1 GB/s, then one message and 1/2 between
    expected = 20e-6 + (3e-6 + 0.25e-3) + 2e-3 + (20e-6 + 1e-3)
    assert hierarchical_s(MACHINE, group, 1e6) == pytest.approx(expected)
    assert hierarchical_s(MACHINE, RankGroup(2, 2), 1e6) == linear_s(MACHINE, RankGroup(2, 2), 1e6)


@pytest.mark.parametrize("group", [RankGroup(16, 2), RankGroup(256, 8), RankGroup(2048, 8)])
def test_both_take_as_long_at_the_crossover(group: RankGroup) -> None:
    hardware = load_hardware("a100-40")
    size = crossover_bytes(hardware, group)
    assert size > 0
    assert linear_s(hardware, group, size) == pytest.approx(hierarchical_s(hardware, group, size))
    assert linear_s(hardware, group, size / 2) > hierarchical_s(hardware, group, size / 2)
    assert crossover_bytes(hardware, RankGroup(8, 8)) == 0


def test_groups_of_a_layout() -> None:
    groups = groups_of(ParallelDims(world_size=16, ep_size=8), [4] * 4, 1)
    assert groups.world == RankGroup(16, 4)
    assert groups.exchange == RankGroup(8, 4)
    assert groups.copies == RankGroup(2, 1)  # ranks 0 and 8
    assert groups_of(ParallelDims(world_size=16, ep_size=8), [4] * 4, 4).exchange == RankGroup(2, 1)


def test_a_step_is_the_sum_of_its_items() -> None:
    found = predict_time(run_of(ep_size=4, zero_stage=1), [2, 2], MACHINE, cost())
    assert sum(seconds for _, seconds in found.items) == pytest.approx(found.step_s)
    assert set(found.groups) == {"compute", EXCHANGE, REDUCE, GATHER, OPTIMIZER, FEED}
    assert found.images_s == pytest.approx(8 / found.step_s)
    flops = 6 * sum(op.multiply_adds for p in work_of(TINY).parts for op in p.trace.at(1)[0] * p.number)
    assert found.mfu < 1
    experts = 6 * 2 * 4 * 16 * 64
    assert found.mfu * 4 * 1e10 / found.images_s == pytest.approx(flops + experts)
    again = predict_time(run_of(replace(TINY, activation_checkpoint_every=1)), [2, 2], MACHINE, cost())
    assert again.groups["compute"] > predict_time(run_of(), [2, 2], MACHINE, cost()).groups["compute"]


def test_accumulation_computes_more_and_reduces_as_often() -> None:
    one, three = (predict_time(run_of(steps=n, zero_stage=1), [2, 2], MACHINE, cost()) for n in (1, 3))
    assert three.groups["compute"] == pytest.approx(3 * one.groups["compute"])
    assert three.groups[REDUCE] == pytest.approx(one.groups[REDUCE])


def test_a_feed_that_is_too_slow_is_waited_for() -> None:
    slow = replace(MACHINE, cores_per_rank=1.0, img_s_core=1.0)
    found = predict_time(run_of(), [2, 2], slow, cost(slow))
    assert found.limit == FEED
    assert found.step_s == pytest.approx(2.0)  # two images a rank at one image/s


def test_the_hooks_of_stage_3_cost_a_call_of_each_module() -> None:
    hooked = replace(MACHINE, zero3_module_us=500.0)
    work = work_of(TINY)
    for every, steps in ((0, 1), (0, 3), (1, 1)):
        model = replace(TINY, activation_checkpoint_every=every)
        config = run_of(model, zero_stage=3, steps=steps)
        with_hooks, without = (predict_time(config, [2, 2], m, cost(m)) for m in (hooked, MACHINE))
        calls = steps * (work.modules + every * work.block_modules / 2)  # blocks run forward again
        assert with_hooks.groups[HOOKS] == pytest.approx(calls * 500e-6)
        assert with_hooks.step_s - without.step_s == pytest.approx(calls * 500e-6)
        assert (
            HOOKS
            not in predict_time(replace(config, parallel=run_of().parallel), [4], hooked, cost(hooked)).groups
        )


def test_modules_are_those_that_are_called() -> None:
    called = []
    model = build_model(TINY).train()
    for module in model.modules():
        module.register_forward_pre_hook(lambda one, _: called.append(one))
    model(torch.zeros(2, 3, 16, 16), torch.zeros(2, dtype=torch.int64))
    assert abs(len(set(called)) - work_of(TINY).modules) <= 0.15 * work_of(TINY).modules


def test_on_a_gpu_hooks_run_beside_the_device() -> None:
    gpu = replace(MACHINE, device="cuda", zero3_module_us=1.0)
    config = run_of(zero_stage=3)
    assert HOOKS not in predict_time(config, [2, 2], gpu, cost(gpu)).groups  # the device takes longer
    slow = replace(gpu, zero3_module_us=1e5)
    costs, dims = cost(slow), config.parallel.dims(4)
    found = predict_time(config, [2, 2], slow, costs)
    compute_s = sum(costs.compute_s(config, dims).values())
    host_s = work_of(TINY).modules * 0.1 + costs.launch_s
    assert found.groups[HOOKS] == pytest.approx(host_s - compute_s)


def test_reductions_hide_behind_the_backward_pass_in_full_buckets() -> None:
    gpu = replace(MACHINE, device="cuda")
    count = work_of(TINY).dense_parameters
    config = replace(run_of(), deepspeed={"zero_optimization": {"reduce_bucket_size": count // 4}})
    dense = next(
        c for c in predict_time(config, [2, 2], gpu, cost(gpu)).collectives if "dense grad" in c.name
    )
    assert dense.hideable == pytest.approx(4 * (count // 4) / count)
    assert not dict(predict_time(run_of(), [2, 2], gpu, cost(gpu)).hidden)  # DeepSpeed's bucket is never full


def test_young() -> None:
    # a save of 30 s, 50,000 GPU-hours between failures, 4096 GPUs: MTBF 43945 s, sqrt(60 x 43945) = 1624 s
    mtbf_s = 50_000 * 3600 / 4096
    assert young_s(30, mtbf_s) == pytest.approx(1623.8, abs=0.1)
    lost = 30 / 1623.8 + (1623.8 / 2 + 300) / mtbf_s
    assert goodput(Failures(mtbf_gpu_h=50_000, save_s=30, restart_s=300), mtbf_s) == pytest.approx(
        1 - lost, abs=1e-6
    )
    assert goodput(Failures(), 100.0) == 0


def test_every_profile_is_one() -> None:
    assert list(profiles()) == ["a100-40", "a100-80", "b200", "h100-80", "h200"]
    loaded = {name: load_hardware(name) for name in profiles()}
    assert all(one.device == "cuda" and one.ranks_per_node == 8 for one in loaded.values())
    bf16 = [loaded[name].peak("bf16") for name in ("a100-80", "h100-80", "b200")]
    assert bf16 == [312e12, 989.4e12, 2250e12]
    assert loaded["a100-40"].in_node == loaded["a100-80"].in_node
    for path in profiles().values():  # each figure of a file of its own has its source beside it
        assert "data sheet" in path.read_text()


def test_unknown_profiles(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--gpu \(a10-80\) is neither .* did you mean a100-80\?"):
        load_hardware("a10-80")
    assert load_hardware("H100") == load_hardware("h100-80")
    with pytest.raises(ConfigError, match=r"--gpu \(a100\) may be a100-40 or a100-80; name one of them"):
        load_hardware("a100")
    file = tmp_path / "x.yaml"
    base = profiles()["a100-80"]
    file.write_text(f"base: {base}\nmemory_efficiency: 1.5\npeak_tflop: 3\n")
    with pytest.raises(ConfigError) as caught:
        load_hardware(str(file))
    assert "peak_tflop: no such option; did you mean peak_tflops?" in str(caught.value)
    file.write_text(f"base: {base}\nmemory_efficiency: 1.5\n")
    with pytest.raises(ConfigError, match=r"memory_efficiency \(1.5\) must lie in \(0, 1\]"):
        load_hardware(str(file))
    with pytest.raises(ConfigError, match="fp16"):
        replace(MACHINE).peak("fp16")


def test_a_calibrated_curve_round_trips(tmp_path: Path) -> None:
    from launcher.plan.time.calibrate import write

    machine = replace(MACHINE, passes={"copy": ((1.0, 2.0), (3.0, 4.0))})
    write(machine, tmp_path / "m.yaml")
    assert load_hardware(str(tmp_path / "m.yaml")) == machine
    assert yaml.safe_load((tmp_path / "m.yaml").read_text())["passes"] == {"copy": [[1.0, 2.0], [3.0, 4.0]]}
    assert math.isclose(machine.memory_bytes, 2**30)
