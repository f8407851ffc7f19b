"""`train.profile`: what is recorded, on which ranks and steps, and that it changes nothing."""

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from launcher.config.load import ConfigError, load_config
from launcher.config.profile import ProfileConfig
from launcher.training.profiler import StepProfiler, counters, memory_curve
from launcher.validation.rules import rule_errors
from launcher.validation.run_rules import run_errors
from tests.distributed import run_on_ranks
from tests.launcher.running import CONFIG, command
from tests.launcher.short_run import assert_same, line

REGIONS = {"fetch", "inputs", "forward", "backward", "optimizer", "metrics"}


def trace(file: Path) -> list[dict[str, Any]]:
    with gzip.open(file) as opened:
        return list(json.load(opened)["traceEvents"])


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def profiler(directory: Path, steps: str, **more: Any) -> StepProfiler:
    options = ProfileConfig(steps=steps, **more)
    return StepProfiler(directory, options, rank=0, device=torch.device("cpu"))


def take(profiler: StepProfiler, *steps: int) -> None:
    """Steps with one product of matrices each, as the trainer takes them."""
    for step in steps:
        with profiler.step(step), profiler.region("forward"):
            torch.ones(64, 64) @ torch.ones(64, 64)
        if profiler.is_due:
            profiler.write()


@pytest.fixture(scope="module")
def profiled(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A short run on two ranks that records its steps 3 and 4 on both, and what rank 0 said."""
    run = tmp_path_factory.mktemp("profiled") / "run"
    options = ("train.profile.steps=3..4", "train.profile.ranks=[0, 1]")
    first, second = run_on_ranks(command, 2, *line(shards, run, *options))
    assert first.code == second.code == 0, first.err
    return run, first.err


@pytest.mark.long
def test_the_run_is_the_same_bit_for_bit(profiled: tuple[Path, str], reference: Path) -> None:
    assert_same(profiled[0], reference)


@pytest.mark.long
def test_each_rank_has_a_trace_of_its_steps_alone(profiled: tuple[Path, str]) -> None:
    run, said = profiled
    stems = ["rank0_steps3-4", "rank1_steps3-4"]
    assert files(run / "profile") == [
        f"{stem}{end}" for stem in stems for end in (".json.gz", ".txt", "_memory.json.gz")
    ]
    for stem in stems:
        names = [event["name"] for event in trace(run / "profile" / f"{stem}.json.gz")]
        assert {name for name in names if name.startswith("step ")} == {"step 3", "step 4"}
        assert {*names} >= REGIONS
        assert names.count("optimizer") == names.count("metrics") == 2
        assert any("alltoall" in name or "all_to_all" in name for name in names)
        assert "aten::bmm" in names or "aten::mm" in names
    assert f"profile of steps 3 to 4: {run}/profile/rank0_steps3-4.json.gz and " in said
    assert "https://ui.perfetto.dev" in said


@pytest.mark.long
def test_the_tables_name_the_top_operators(profiled: tuple[Path, str]) -> None:
    text = (profiled[0] / "profile" / "rank0_steps3-4.txt").read_text()
    assert text.startswith("top operators by their own time on the cpu\n")
    assert "top operators by their own memory on the cpu\n" in text
    assert "aten::" in text


@pytest.mark.long
def test_the_memory_is_what_torch_counts(profiled: tuple[Path, str]) -> None:
    """Kineto writes the total beside each allocation into the trace; ours is a sum of sizes."""
    directory = profiled[0] / "profile"
    curve = [event["args"]["MiB"] for event in trace(directory / "rank0_steps3-4_memory.json.gz")]
    events = [event for event in trace(directory / "rank0_steps3-4.json.gz") if event["name"] == "[memory]"]
    ordered = sorted(events, key=lambda event: event["ts"])
    assert curve == [event["args"]["Total Allocated"] / 2**20 for event in ordered]
    peak = max(curve)
    text = (directory / "rank0_steps3-4.txt").read_text()
    assert f"peak memory of tensors on the cpu above the start: {peak:.1f} MiB\n" in text


@pytest.mark.long
def test_a_resumed_run_records_what_is_left_of_the_steps(
    reference: Path, shards: Path, tmp_path: Path
) -> None:
    """Resumed at 8: of 7..9 only step 9 is left."""
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    (run / "checkpoints" / "latest").write_text("step-00000008\n")
    for outcome in run_on_ranks(command, 2, *line(shards, run, "train.profile.steps=7..9")):
        assert outcome.code == 0, outcome.err
    stem = "rank0_steps9-9"
    assert files(run / "profile") == [f"{stem}{end}" for end in (".json.gz", ".txt", "_memory.json.gz")]
    assert_same(run, reference)


def test_steps_outside_of_the_range_are_not_recorded(tmp_path: Path) -> None:
    take(profiler(tmp_path, "3..4"), 1, 2, 5, 6)
    assert files(tmp_path) == []
    take(profiler(tmp_path, "3..4", ranks=(1,)), 3, 4)
    assert files(tmp_path) == []


def test_a_run_that_is_stopped_inside_of_the_range_keeps_its_part(tmp_path: Path) -> None:
    stopped = profiler(tmp_path, "3..9")
    take(stopped, 2, 3, 4)
    assert files(tmp_path) == []
    stopped.write()
    assert files(tmp_path)[0] == "rank0_steps3-4.json.gz"
    stopped.write()  # nothing is left to write
    assert len(files(tmp_path)) == 3


def test_a_directory_that_cannot_be_written_costs_the_profile_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "profile").write_text("a file")
    take(profiler(tmp_path / "profile", "3..4"), 3, 4, 5)
    assert "the profile of steps 3 to 4 is lost: " in capsys.readouterr().err


def test_on_a_gpu_the_allocations_are_recorded_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Any] = []
    memory = torch.cuda.memory
    monkeypatch.setattr(memory, "_record_memory_history", lambda **options: calls.append(options))
    monkeypatch.setattr(memory, "_dump_snapshot", lambda file: calls.append(Path(file).name))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append("synchronize"))
    options = ProfileConfig(steps="3..4")
    take(StepProfiler(tmp_path, options, rank=0, device=torch.device("cuda")), 3, 4, 5)
    snapshot = "rank0_steps3-4_memory.pickle"
    assert calls == [{"max_entries": 1_000_000}, "synchronize", snapshot, {"enabled": None}]
    assert f"{snapshot} (open it at https://pytorch.org/memory_viz)" in capsys.readouterr().err


class Event:
    """An event of Kineto."""

    def __init__(self, name: str, ns: int, size: int) -> None:
        self.name, self.start_ns, self.nbytes = (lambda: name), (lambda: ns), (lambda: size)

    def device_type(self) -> Any:
        return torch.autograd.DeviceType.CPU


def test_a_memory_curve_by_hand() -> None:
    """1 MiB, then 2 more, then the first is released: 1, 3, 2 MiB, whatever the order of the events."""
    events = [Event("[memory]", 3000, -(2**20)), Event("aten::mm", 1, 0)]
    events += [Event("[memory]", 1000, 2**20), Event("[memory]", 2000, 2**21)]
    curve = list(memory_curve(events))
    assert curve == [(1000, "cpu", 2**20), (2000, "cpu", 3 * 2**20), (3000, "cpu", 2**21)]
    assert [(one["ts"], one["args"]) for one in counters(curve)] == [
        (1.0, {"MiB": 1.0}),
        (2.0, {"MiB": 3.0}),
        (3.0, {"MiB": 2.0}),
    ]


@pytest.mark.parametrize(("steps", "first", "last"), [("10..12", 10, 12), ("7", 7, 7), (" 1..100 ", 1, 100)])
def test_a_range_of_steps(steps: str, first: int, last: int) -> None:
    options = ProfileConfig(steps=steps)
    assert (options.first, options.last) == (first, last)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["steps=12..10"], "train.profile.steps (12..10) must be FIRST..LAST with 1 <= FIRST <= LAST"),
        (["steps=0..3"], "train.profile.steps (0..3) must be FIRST..LAST with 1 <= FIRST <= LAST"),
        (["steps=1..101"], "train.profile.steps (1..101) are 101 steps; at most 100 are recorded"),
        (["steps=a..b"], "train.profile.steps ('a..b') must read FIRST..LAST, such as 10..12"),
        (["steps=-1..3"], "train.profile.steps ('-1..3') must read FIRST..LAST, such as 10..12"),
        (["steps=1..3", "ranks=[]"], "train.profile.ranks ([]) must name at least one rank, each once"),
        (
            ["steps=1..3", "ranks=[0, 0]"],
            "train.profile.ranks ([0, 0]) must name at least one rank, each once",
        ),
        (["steps=1..3", "ranks=[-1]"], "train.profile.ranks ([-1]) must be at least 0"),
        (["ranks=[1]"], "train.profile.steps: required, but not given"),
    ],
)
def test_a_range_that_cannot_be_is_refused(options: list[str], error: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(CONFIG, [f"train.profile.{option}" for option in options])
    assert error in str(refused.value)


def test_steps_beyond_the_run_and_ranks_that_are_not_there_are_refused() -> None:
    options = ["train.duration=12 steps", "optim.warmup=1 steps"]
    config = load_config(CONFIG, [*options, "train.profile.steps=11..13", "train.profile.ranks=[0, 2]"])
    assert run_errors(config) == [
        "train.profile.steps (11..13) must not go beyond train.duration (12 steps): the last step is 12"
    ]
    assert rule_errors(config, 2) == [
        "train.profile.ranks ([0, 2]) must be below the number of ranks (2); 0 is the first rank"
    ]
    config = load_config(CONFIG, [*options, "train.profile.steps=11..12", "train.profile.ranks=[0, 1]"])
    assert run_errors(config) == rule_errors(config, 2) == []
