"""The checks of a preflight, in the order of the report; to add one: two functions and one entry.

A `probe` runs on each rank and must not wait for another. Its `evaluate` gets the values of all ranks.
"""

import hashlib
import platform
from dataclasses import asdict
from typing import Any

import torch

from launcher.config.load import ConfigError, dump_config
from launcher.preflight import data, devices, disk, machine, time
from launcher.preflight.report import Check, ProbeContext, ProbeResults, Verdict
from launcher.validation.rules import check
from parallel.versions import version_of

PACKAGES = ("torch", "deepspeed", "numpy", "swin-moe")


def probe_versions(context: ProbeContext) -> dict[str, str]:
    """Everything that computes or talks."""
    from deepspeed.accelerator import get_accelerator

    versions = {"python": ".".join(platform.python_version_tuple()[:2])}
    versions |= {name: version_of(name) for name in PACKAGES}
    versions |= {"cuda": str(torch.version.cuda), "nccl": _nccl(), "accelerator": get_accelerator()._name}
    moe = context.config.model.moe if context.config else None
    return versions | ({"tutel": version_of("tutel")} if moe and moe.backend == "tutel" else {})


def _nccl() -> str:
    return ".".join(map(str, torch.cuda.nccl.version())) if torch.cuda.is_available() else "None"


def evaluate_versions(results: ProbeResults) -> Verdict:
    """The same on all ranks."""
    first = results.values[0]
    verdict = Verdict(
        message=", ".join(f"{name} {value}" for name, value in first.items() if value != "None")
    )
    for name in dict.fromkeys(name for value in results.values for name in value):
        values = [value.get(name, "missing") for value in results.values]
        if len(set(values)) > 1:
            verdict.failures.append(
                f"{name}: {results.spread(values)}; install the same version on every node"
            )
    return verdict


def probe_configuration(context: ProbeContext) -> dict[str, Any] | None:
    """The digest of every resolved section, and the errors of `swin-moe check`, unless a run has checked."""
    if context.config is None:
        return None
    text = dump_config(context.config)
    digests: dict[str, Any] = {"digest": _digest(text), "error": None}
    digests["sections"] = {name: _digest(repr(value)) for name, value in asdict(context.config).items()}
    if not context.in_train:
        try:
            check(context.config, context.ranks.world_size, here=True)
        except ConfigError as error:
            digests["error"] = str(error).removeprefix("one thing to correct:\n  ")
    return digests


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def evaluate_configuration(results: ProbeResults) -> Verdict:
    """One configuration, and a valid one."""
    digests = [value["digest"] for value in results.values]
    verdict = Verdict(message=f"sha256 {digests[0][:12]}")
    if len(set(digests)) > 1:
        sections = [value["sections"] for value in results.values]
        differing = [name for name in sections[0] if len({rank[name] for rank in sections}) > 1]
        verdict.failures.append(
            f"configuration ({', '.join(differing)}): {results.spread(digest[:12] for digest in digests)}; "
            "every rank must read the same file and overrides"
        )
    verdict.failures += results.each(value["error"] for value in results.values)
    return verdict


CHECKS = (
    Check("versions", probe_versions, evaluate_versions),
    Check("configuration", probe_configuration, evaluate_configuration),
    Check("clocks", machine.probe_clock, machine.evaluate_clocks),
    Check("run directory", disk.probe_run, disk.evaluate_run),
    Check("scratch", disk.probe_scratch, disk.evaluate_scratch),
    Check("shards", data.probe, data.evaluate),
    Check("devices", devices.probe, devices.evaluate),
    Check("compute", machine.probe_compute, machine.evaluate_compute),
    Check("time-outs", time.probe_timeouts, time.evaluate_timeouts),
    Check("limits", machine.probe_limits, machine.evaluate_limits),
    Check("time limit", time.probe_time_limit, time.evaluate_time_limit),
)
