"""Preflight of the disks: one run directory for all ranks, room for its checkpoints, scratch and cache."""

import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from launcher.config.schema import CheckpointConfig, RunConfig
from launcher.preflight.report import ProbeContext, ProbeResults, Verdict, gib
from parallel.checkpoint.commit import committed
from swin_moe.backbone.flops import build_on_meta, count_parameters

TOKEN = ".preflight-"
PATIENCE_S = 3.0  # for a file that another node made to be seen here
SCRATCH_BYTES = 2**28  # of TMPDIR: what libraries leave there for a while
BYTES_PER_VALUE = 4.02  # fp32, and what stands around it: docs/checkpoints.md


@contextmanager
def token(config: RunConfig | None, *, is_first: bool) -> Iterator[str]:
    """Rank 0 leaves a file in the run directory, whose name it yields; "" where there is none.

    A directory that was not there before is gone afterwards.
    """
    if config is None or not is_first:
        yield ""
        return
    path, made = Path(config.run_dir), list[Path]()
    name = f"{TOKEN}{uuid.uuid4().hex}"
    try:
        made = [parent for parent in [path, *path.parents] if not parent.exists()]
        path.mkdir(parents=True, exist_ok=True)
        (path / name).touch()
    except OSError:
        name = ""
    try:
        yield name
    finally:
        with suppress(OSError):  # others may have put something there by now
            (path / name).unlink() if name else None
            for parent in made:
                parent.rmdir()


def probe_run(context: ProbeContext) -> dict[str, Any] | None:
    """Whether this rank sees what rank 0 left, and can write beside it; on rank 0 the space."""
    if context.config is None:
        return None
    path = Path(context.config.run_dir)
    entry: dict[str, Any] = {"path": str(path.absolute())}
    if context.token and not _appears(path / context.token):
        return entry | {"unshared": True}
    probe = path / f"{TOKEN}{context.token[-8:]}-{context.ranks.rank}"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        why = f"cannot write into run_dir ({context.config.run_dir}): {error.strerror}"
        return entry | {"error": f"{why}; see to it, or choose another run_dir"}
    return entry | (checkpoint_space(context.config, path) if context.ranks.rank == 0 else {})


def evaluate_run(results: ProbeResults) -> Verdict:
    """One directory, everyone may write, one checkpoint fits, and all that are kept."""
    assert results.config is not None
    verdict, run_dir = Verdict(), results.config.run_dir
    blind = [rank for rank, value in enumerate(results.values) if value.get("unshared")]
    if blind:
        verdict.failures.append(
            f"run_dir ({run_dir}) is not shared: what rank 0 (node {results.places[0].node}) writes into "
            f"{results.values[0]['path']} is not seen as {results.values[blind[0]]['path']} on "
            f"{results.where(blind)}; choose a run_dir on a file system that all nodes share"
        )
    verdict.failures += results.each(value.get("error") for value in results.values)
    if "free" in results.values[0]:
        _evaluate_space(verdict, run_dir, results.values[0], results.config.checkpoint)
    return verdict


def _evaluate_space(verdict: Verdict, run_dir: str, space: dict[str, Any], keep: CheckpointConfig) -> None:
    one, free = space["checkpoint"], space["free"]
    kept = keep.keep_last + keep.keep_best
    names = "checkpoint.keep_last" + " + checkpoint.keep_best" * bool(keep.keep_best)
    needed = one * max(1, kept + 1 - space["present"])
    takes = f"a checkpoint takes {gib(one)} ({space['parameters']:,} parameters x {space['values']} in fp32)"
    verdict.message = f"{gib(free)} free in {space['path']}, {takes}"
    fix = "make room, or choose another run_dir"
    if free < one:
        verdict.failures.append(f"run_dir ({run_dir}) has {gib(free)} free, and {takes}; {fix}")
    elif free < needed:
        verdict.warnings.append(
            f"run_dir ({run_dir}) has {gib(free)} free, and {gib(needed)} are needed: {takes}, and "
            f"{names} + 1 ({kept + 1}) are there at times; {fix}"
        )


def _appears(path: Path) -> bool:
    """Whether a file is there, or within a while."""
    give_up_s = time.monotonic() + PATIENCE_S
    while not path.exists():
        if time.monotonic() > give_up_s:
            return False
        time.sleep(0.1)
    return True


def checkpoint_space(config: RunConfig, path: Path) -> dict[str, Any]:
    """The bytes that a checkpoint of a run takes and those that are free in its directory."""
    parameters = count_parameters(build_on_meta(config.model))
    moments = bool(config.optim.momentum) if config.optim.optimizer == "sgd" else 2
    values = 1 + moments + bool(config.train.ema_decay)  # weights, moments, the moving average
    return {
        "free": _free(path),
        "parameters": parameters,
        "values": values,
        "checkpoint": int(parameters * values * BYTES_PER_VALUE),
        "present": len(committed(path / "checkpoints")),
    }


def _free(path: Path) -> int:
    """Bytes that this user may still write in the file system of a directory, or of what it will lie in."""
    there = next(parent for parent in [path.absolute(), *path.absolute().parents] if parent.exists())
    system = os.statvfs(there)
    return system.f_bavail * system.f_frsize


def probe_scratch(context: ProbeContext) -> dict[str, Any]:
    """What is free where temporary files and cached shards go, on this rank's node."""
    directory = Path(tempfile.gettempdir())
    entry: dict[str, Any] = {"tmp": str(directory), "tmp_free": _free(directory)}
    data = context.config.data if context.config else None
    if data is None or data.cache is None:
        return entry
    cache = os.path.expandvars(data.cache)
    if "$" in cache:
        error = f"data.cache ({data.cache}): a variable in it is not set; set it or name a directory"
        return entry | {"error": error}
    files = (os.path.join(folder, name) for folder, _, names in os.walk(cache) for name in names)
    held = sum(os.stat(file).st_size for file in files if os.path.isfile(file))
    return entry | {"cache": cache, "cache_free": _free(Path(cache)), "cache_holds": held}


def evaluate_scratch(results: ProbeResults) -> Verdict:
    """Room for temporary files and for all of the cache; both are missed without harm to the run."""
    values, first = results.values, results.values[0]
    verdict = Verdict(message=f"{gib(first['tmp_free'])} free in {first['tmp']}")
    verdict.failures += results.each(value.get("error") for value in values)
    verdict.warnings += results.each(_short_of_scratch(value) for value in values)
    if results.config is not None and "cache" in first:
        verdict.message += f", {gib(first['cache_free'])} in {first['cache']}"
        cap = int(results.config.data.cache_gib * 2**30)
        verdict.warnings += results.each(_short_of_cache(value, cap) for value in values)
    return verdict


def _short_of_scratch(value: dict[str, Any]) -> str | None:
    if value["tmp_free"] >= SCRATCH_BYTES:
        return None
    return f"TMPDIR ({value['tmp']}) has {gib(value['tmp_free'])} free, not {gib(SCRATCH_BYTES)}; set TMPDIR"


def _short_of_cache(value: dict[str, Any], cap: int) -> str | None:
    if "cache" not in value or (room := value["cache_free"] + value["cache_holds"]) >= cap:
        return None
    return (
        f"data.cache ({value['cache']}) has room for {gib(room)}, not {gib(cap)}; lower data.cache_gib, or "
        "make room"
    )
