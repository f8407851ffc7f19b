"""Every check on four ranks of two nodes, made to fail for real where it can be, and the line it says."""

import contextlib
import os
import re
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from data_shards.format.index import Manifest, read_index
from data_shards.pack.sources.registry import synthetic
from data_shards.pack.write import pack
from data_shards.storage.base import LocalFile
from launcher.config.load import load_config
from launcher.config.schema import RunConfig
from launcher.preflight import checks as preflight_checks
from launcher.preflight import disk as preflight_disk
from launcher.preflight import machine as preflight_machine
from launcher.preflight.data import first_sample, places
from launcher.preflight.run import preflight
from launcher.process.run_rank import longest_wait
from parallel.ranks import bandwidth
from parallel.ranks.rank import Ranks
from tests.distributed import run_on_ranks, set_timeout
from tests.launcher.running import CONFIG, overrides
from tests.messages import assert_each_names, assert_names

CORES = frozenset(range(8))
FREE = 10 * 2**30
LATE_S = 0.12  # twice what counts as noise on a CPU


class Told(NamedTuple):
    """What a preflight said, on one rank."""

    failures: list[str]
    warnings: list[str]


class Case(NamedTuple):
    """What is wrong, on which ranks, on which faked nodes."""

    patch: Callable[[], Any]  # a context manager
    ranks: tuple[int, ...]
    nodes: str = "aabb"
    more: tuple[str, ...] = ()  # options of those ranks,
    shared: bool = True  # or of all


def other(function: str, module: Any, replacement: Any) -> Callable[[], Any]:
    return lambda: mock.patch.object(module, function, replacement)


def space(free: int) -> Callable[[], Any]:
    system = SimpleNamespace(f_bavail=free // 4096, f_frsize=4096)
    return other("statvfs", os, lambda path: system)


def slow_product() -> Any:
    original = preflight_machine.product

    def late(left: torch.Tensor) -> torch.Tensor:
        time.sleep(LATE_S)
        return original(left)

    return mock.patch.object(preflight_machine, "product", late)


def slow_exchange(*peers: int) -> Callable[[], Any]:
    original = bandwidth.exchange

    def late(peer: int, sent: torch.Tensor, received: torch.Tensor) -> None:
        if peer in peers and sent.numel() > 1:
            time.sleep(LATE_S)
        original(peer, sent, received)

    return other("exchange", bandwidth, late)


def unreadable(path: Any, *_: Any) -> Any:
    raise OSError(5, "Input/output error")


@contextlib.contextmanager
def timeout_of_the_group() -> Iterator[None]:
    set_timeout(timedelta(seconds=77))
    yield


def in_folder(name: str) -> Callable[[], Any]:
    return lambda: contextlib.chdir(name)


def environment(**variables: str) -> Callable[[], Any]:
    return lambda: mock.patch.dict(os.environ, variables)


def cases() -> dict[str, Case]:
    real_time, real_version = time.time, preflight_checks.version_of
    few_files = SimpleNamespace(**{**vars(resource), "getrlimit": lambda which: (1024, 1024)})
    other_torch = other("version_of", preflight_checks, lambda p: "2.0" if p == "torch" else real_version(p))
    return {
        "nothing": Case(contextlib.nullcontext, ()),
        "version": Case(other_torch, (3,)),
        "configuration": Case(contextlib.nullcontext, (2,), more=("optim.base_lr=0.5",), shared=False),
        "clock": Case(other("time", time, lambda: real_time() + 5), (2, 3)),
        "not shared": Case(in_folder("elsewhere"), (2, 3), more=("run_dir=run",)),
        "not writable": Case(other("touch", Path, unreadable), (1,)),
        "disk full": Case(space(2**19), (0,)),
        "disk nearly full": Case(space(3 * 2**19), (0,)),
        "no room for temporary files": Case(space(2**20), (3,)),
        "cache": Case(
            contextlib.nullcontext,
            (0, 1, 2, 3),
            more=("data.cache=cache", f"data.cache_gib={2 * FREE / 2**30}"),
        ),
        "no shards": Case(in_folder("without"), (1,)),
        "other shards": Case(in_folder("others"), (1,)),
        "bad samples": Case(in_folder("bad"), (0,)),
        "failing reads": Case(other("member", LocalFile, unreadable), (1,), more=("data.retry_s=1",)),
        "compute": Case(slow_product, (1,)),
        "link": Case(slow_exchange(3), (2,), nodes="aaaa"),
        "rank": Case(slow_exchange(1, 3), (2,), nodes="aaaa"),
        "time-out": Case(timeout_of_the_group, (3,)),
        "threads": Case(other("get_num_threads", torch, lambda: 5), (2, 3)),
        "files": Case(other("resource", preflight_machine, few_files), (1,)),
        "time limit": Case(
            environment(SLURM_JOB_ID="7", SLURM_JOB_END_TIME=str(int(time.time()) + 100)), (0,)
        ),
    }


def results(folder: Path) -> dict[str, Told]:
    """Every case, one after the other, on this rank."""
    os.chdir(folder)
    return {name: one(folder, case) for name, case in cases().items()}


def config_of(folder: Path, *more: str) -> RunConfig:
    return load_config(CONFIG, overrides(Path("shards"), folder / "run", *more))


def one(folder: Path, case: Case) -> Told:
    rank = dist.get_rank()
    mine = rank in case.ranks
    config = config_of(folder, *(case.more if mine or case.shared else ()))
    set_timeout(longest_wait(config))
    with contextlib.ExitStack() as patches:
        patches.enter_context(mock.patch.dict(os.environ, {"SLURMD_NODENAME": case.nodes[rank]}))
        patches.enter_context(mock.patch.object(os, "sched_getaffinity", return_value=CORES))
        patches.enter_context(mock.patch.object(preflight_disk, "PATIENCE_S", 0.1))
        patches.enter_context(mock.patch.object(preflight_machine, "MANY_RANKS", 4))
        patches.enter_context(space(FREE)())
        if mine:
            patches.enter_context(case.patch())
        place = Ranks(rank=rank, world_size=4, local_rank=rank % 2, local_world_size=2)
        report = preflight(config, place, torch.device("cpu"), message_bytes=4096, in_train=True)
    return Told(report.failures, report.warnings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, and beside them folders in which they are missing, others, or damaged."""
    path = tmp_path_factory.mktemp("preflight")
    for name, images in (("shards", 64), ("others/shards", 32)):
        for split in ("train", "val"):
            pack(synthetic(images, 16, num_classes=10, image_size=32), split, path / name / split)
    for name in ("without", "bad"):
        shutil.copytree(path / "shards", path / name / "shards")
    (path / "without/shards/train/000000.tar").unlink()
    for split in ("train", "val"):
        spoil(config_of(path), path / "bad/shards" / split, split)
    (path / "elsewhere").mkdir()
    shutil.copytree(path / "shards", path / "elsewhere/shards")
    return path


def spoil(config: RunConfig, directory: Path, split: str) -> None:
    """Damage the image that rank 0 reads first."""
    place = next(place for place in places(config) if place.option == f"data.{split}")
    shard, row = first_sample(Manifest.load(directory), config, place, 0, 4)
    offset = int(read_index(directory / f"{shard:06}.idx")[row]["image"]["offset"])
    with (directory / f"{shard:06}.tar").open("r+b") as file:
        file.seek(offset)
        file.write(b"damaged!")


@pytest.fixture(scope="module")
def said(folder: Path) -> dict[str, Told]:
    """What all ranks said alike in every case."""
    by_rank = run_on_ranks(results, 4, folder)
    for other_rank in by_rank[1:]:
        assert other_rank == by_rank[0]
    return by_rank[0]


def one_line(lines: list[str]) -> str:
    assert len(lines) == 1, lines
    return lines[0]


def test_all_is_well(said: dict[str, Told]) -> None:
    assert said["nothing"] == Told([], [])


def test_another_version(said: dict[str, Told]) -> None:
    assert said["version"].warnings == []
    line = one_line(said["version"].failures)
    assert_names(line, f"torch: {version('torch')} on ranks 0-2, 2.0 on rank 3 (node b)")


def test_another_configuration(said: dict[str, Told]) -> None:
    line = one_line(said["configuration"].failures)
    wanted = (
        r"configuration \(optim\): \w{12} on ranks 0-1, 3, \w{12} on rank 2 \(node b\); every rank must read "
        "the same file and overrides"
    )
    assert re.fullmatch(wanted, line), line


def test_a_clock_that_is_ahead(said: dict[str, Told]) -> None:
    assert said["clock"].failures == []
    assert_names(one_line(said["clock"].warnings), "node b", "5.0 s", "node a", "NTP")


def test_a_run_directory_that_is_not_shared(said: dict[str, Told], folder: Path) -> None:
    assert said["not shared"].warnings == []
    line = one_line(said["not shared"].failures)
    assert_names(line, "run_dir (run)", "rank 0 (node a)", f"{folder}/run ", f"{folder}/elsewhere/run")
    assert_names(line, "ranks 2-3 (node b)")
    assert not (folder / "run").exists()  # only looked at


def test_a_rank_that_cannot_write(said: dict[str, Told], folder: Path) -> None:
    assert said["not writable"].warnings == []
    line = one_line(said["not writable"].failures)
    assert_names(line, "rank 1 (node a): ", f"run_dir ({folder}/run): Input/output error")


def test_a_full_disk(said: dict[str, Told], folder: Path) -> None:
    checkpoint = ("0.7 MiB", "61,278 parameters x 3 in fp32")
    full, nearly = said["disk full"], said["disk nearly full"]
    assert_names(one_line(full.failures), f"run_dir ({folder}/run)", "0.5 MiB", *checkpoint)
    assert_names(one_line(full.warnings), "rank 0 (node a): TMPDIR (/tmp)", "0.5 MiB", "256.0 MiB")
    assert nearly.failures == []
    assert_each_names(
        nearly.warnings,
        (f"run_dir ({folder}/run)", "1.5 MiB", "2.1 MiB", *checkpoint, "checkpoint.keep_last + 1 (3)"),
        ("rank 0 (node a): TMPDIR (/tmp)", "1.5 MiB", "256.0 MiB"),
    )


def test_no_room_for_temporary_files(said: dict[str, Told]) -> None:
    line = one_line(said["no room for temporary files"].warnings)
    assert_names(line, "rank 3 (node b): TMPDIR (/tmp)", "1.0 MiB", "256.0 MiB")


def test_no_room_for_the_cache(said: dict[str, Told]) -> None:
    line = one_line(said["cache"].warnings)
    parts = ("ranks 0-3 (nodes a, b): data.cache (cache)", "10.0 GiB", "20.0 GiB", "data.cache_gib")
    assert_names(line, *parts)


def test_shards_that_one_rank_cannot_read(said: dict[str, Told]) -> None:
    path = "shards/train/000000.tar"
    assert said["no shards"].warnings == []
    line = one_line(said["no shards"].failures)
    assert_names(line, f"rank 1 (node a): data.train: {path}: No such file or directory")
    assert_names(line, "`swin-moe shards verify shards/train`", "`swin-moe shards repair`")


def test_shards_of_another_time(said: dict[str, Told], folder: Path) -> None:
    lines = []
    for split in ("train", "val"):
        ours, theirs = (Manifest.load(folder / at / split).digest[:12] for at in ("shards", "others/shards"))
        if ours != theirs:
            lines.append((f"data.{split}: ", f"{ours} on ranks 0, 2-3, {theirs} on rank 1 (node a)"))
    assert said["other shards"].warnings == []
    assert_each_names(said["other shards"].failures, *lines)
    assert len(lines) >= 1


def test_a_bad_sample_stops_only_what_does_not_replace_it(said: dict[str, Told]) -> None:
    wanted = (
        r"rank 0 \(node a\): data\.{0}: shards/{0}/000000\.tar: sample \w+ at byte .* fails its checksum;.*"
    )
    line = one_line(said["bad samples"].failures)
    assert re.fullmatch(wanted.format("val"), line), line
    line = one_line(said["bad samples"].warnings)
    assert re.fullmatch(wanted.format("train"), line), line


def test_reads_that_fail_for_a_while_are_the_run_s_to_try_again(said: dict[str, Told]) -> None:
    assert said["failing reads"].failures == []
    wanted = r"rank 1 \(node a\): data\.{0}: shards/{0}/000000\.tar: Input/output error; given up after .*"
    for split, line in zip(("train", "val"), said["failing reads"].warnings, strict=True):
        assert re.fullmatch(wanted.format(split), line), line


def test_a_rank_that_computes_slowly(said: dict[str, Told]) -> None:
    line = one_line(said["compute"].warnings)
    wanted = r"compute takes up to \d+\.\d times the median on rank 1 \(node a\); look for other .*"
    assert re.fullmatch(wanted, line), line
    assert said["compute"].failures == []


def test_a_slow_link_and_a_slow_rank(said: dict[str, Told]) -> None:
    usual = r"the median of 4 links in a node is \d+\.\d\d GB/s"
    line = one_line(said["link"].warnings)
    wanted = rf"links: 0\.00 GB/s between rank 2 \(node a\) and rank 3 \(node a\); {usual}"
    assert re.fullmatch(wanted, line), line
    line = one_line(said["rank"].warnings)
    wanted = rf"links: rank 2 \(node a\) exchanges at most 0\.00 GB/s with any neighbour; {usual}"
    assert re.fullmatch(wanted, line), line


def test_another_time_out_of_the_group(said: dict[str, Told]) -> None:
    assert said["time-out"].failures == []
    line = one_line(said["time-out"].warnings)
    assert_names(line, "rank 3 (node b): ", "77 s", "2400 s", "parallel.collective_timeout_s")


def test_more_threads_than_cores(said: dict[str, Told]) -> None:
    assert said["threads"].failures == []
    line = one_line(said["threads"].warnings)
    assert_names(line, "10 threads of 2 ranks on 8 cores", "ranks 2-3 (node b)", "OMP_NUM_THREADS")


def test_few_open_files(said: dict[str, Told]) -> None:
    assert said["files"].failures == []
    line = one_line(said["files"].warnings)
    assert_names(line, "rank 1 (node a): ", "1024", "4 ranks", "ulimit -n 4096")


def test_a_job_that_is_over_before_it_begins(said: dict[str, Told]) -> None:
    line = one_line(said["time limit"].warnings)
    wanted = r"Slurm ends this job in \d\d s, and its signal comes 120 s before the end: nothing will be .*"
    assert re.fullmatch(wanted, line), line
