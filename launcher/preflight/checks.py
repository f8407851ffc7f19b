"""The checks of a preflight, in the order in which they are told; to add one: two functions and one entry.

A `look` runs on one rank and may not wait for another; a `judge` gets what all ranks saw, on every rank.
"""

import hashlib
import platform
from dataclasses import asdict
from typing import Any

import torch

from launcher.config.load import ConfigError, dump_config
from launcher.preflight import data, devices, disk, machine, time
from launcher.preflight.report import Check, Here, Seen, Verdict
from launcher.rundir.versions import version_of
from launcher.validation.rules import check

PACKAGES = ("torch", "deepspeed", "numpy", "swin-moe")


def look_at_versions(here: Here) -> dict[str, str]:
    """Everything that computes or talks."""
    from deepspeed.accelerator import get_accelerator

    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    found |= {name: version_of(name) for name in PACKAGES}
    found |= {"cuda": str(torch.version.cuda), "nccl": _nccl(), "accelerator": get_accelerator()._name}
    moe = here.config.model.moe if here.config else None
    return found | ({"tutel": version_of("tutel")} if moe and moe.backend == "tutel" else {})


def _nccl() -> str:
    return ".".join(map(str, torch.cuda.nccl.version())) if torch.cuda.is_available() else "None"


def judge_versions(seen: Seen) -> Verdict:
    """The same on all ranks."""
    first = seen.values[0]
    found = Verdict(told=", ".join(f"{name} {value}" for name, value in first.items() if value != "None"))
    for name in dict.fromkeys(name for value in seen.values for name in value):
        values = [value.get(name, "missing") for value in seen.values]
        if len(set(values)) > 1:
            found.failures.append(f"{name}: {seen.spread(values)}; install the same version on every node")
    return found


def look_at_configuration(here: Here) -> dict[str, Any] | None:
    """The digest of every section as it was resolved, and what `swin-moe check` says; a run has been told."""
    if here.config is None:
        return None
    text = dump_config(here.config)
    found: dict[str, Any] = {"digest": _digest(text), "error": None}
    found["sections"] = {name: _digest(repr(value)) for name, value in asdict(here.config).items()}
    if not here.in_train:
        try:
            check(here.config, here.ranks.world_size, here=True)
        except ConfigError as error:
            found["error"] = str(error).removeprefix("one thing to correct:\n  ")
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def judge_configuration(seen: Seen) -> Verdict:
    """One configuration, and a valid one."""
    digests = [value["digest"] for value in seen.values]
    found = Verdict(told=f"sha256 {digests[0][:12]}")
    if len(set(digests)) > 1:
        sections = [value["sections"] for value in seen.values]
        differing = [name for name in sections[0] if len({rank[name] for rank in sections}) > 1]
        found.failures.append(
            f"configuration ({', '.join(differing)}): {seen.spread(digest[:12] for digest in digests)}; "
            "every rank must read the same file and overrides"
        )
    found.failures += seen.each(value["error"] for value in seen.values)
    return found


CHECKS = (
    Check("versions", look_at_versions, judge_versions),
    Check("configuration", look_at_configuration, judge_configuration),
    Check("clocks", machine.look_at_clock, machine.judge_clocks),
    Check("run directory", disk.look_at_run, disk.judge_run),
    Check("scratch", disk.look_at_scratch, disk.judge_scratch),
    Check("shards", data.look, data.judge),
    Check("devices", devices.look, devices.judge),
    Check("compute", machine.look_at_compute, machine.judge_compute),
    Check("time-outs", time.look_at_timeouts, time.judge_timeouts),
    Check("limits", machine.look_at_limits, machine.judge_limits),
    Check("time limit", time.look_at_time_limit, time.judge_time_limit),
)
