"""The preflight: checks of all ranks before the first step.

Each rank runs its probes (launcher/preflight/checks.py), all ranks measure their links together, one gather
brings the values to every rank, and every rank comes to the same verdicts.
"""

import logging
import time
from dataclasses import asdict
from typing import Any

import torch

from launcher.config.load import ConfigError
from launcher.config.schema import RunConfig
from launcher.preflight import links as link_figures
from launcher.preflight.checks import CHECKS
from launcher.preflight.disk import token
from launcher.preflight.report import ProbeContext, ProbeResults, Report
from parallel.ranks.bandwidth import RankNode, Times, measure, scopes
from parallel.ranks.collectives import gather_objects
from parallel.ranks.identity import node_name
from parallel.ranks.rank import Ranks

logger = logging.getLogger(__name__)

SMALL_MIB = {"cpu": 1.0, "cuda": 16.0}  # messages before every run


class PreflightError(ConfigError):
    """A check failed; raised on all ranks."""


def before_training(config: RunConfig, ranks: Ranks, device: torch.device) -> None:
    """The checks of a run before its first step: rank 0 prints the warnings and a summary.

    Raises:
        PreflightError: on all ranks, with every failure in a line.
    """
    megabytes = SMALL_MIB[device.type]
    report = preflight(config, ranks, device, message_bytes=int(megabytes * 2**20), in_train=True)
    if ranks.rank == 0:
        print(f"preflight: {summary(report)}", flush=True)
        for line in report.warnings:
            logger.warning("preflight: warning: %s", line)
    if report.failures:
        raise PreflightError(joined(report.failures))


def preflight(
    config: RunConfig | None,
    ranks: Ranks,
    device: torch.device,
    *,
    message_bytes: int,
    in_train: bool = False,
) -> Report:
    """Probe, measure, gather and evaluate. Every rank calls it and gets the same report.

    Args:
        config: of the run; None leaves out what needs one.
        ranks: this process among the others, who have met.
        device: of this process.
        message_bytes: of a rank, for the links.
        in_train: what `open_run` has checked is not checked again.
    """
    began_s = time.perf_counter()
    with token(config, is_first=ranks.rank == 0) as left:
        met = gather_objects((RankNode(ranks.rank, node_name()), left))
        met_s = time.time()
        places, run_token = [place for place, _ in met], met[0][1]
        context = ProbeContext(
            config=config, ranks=ranks, device=device, met_s=met_s, token=run_token, in_train=in_train
        )
        probed = {check.name: check.probe(context) for check in CHECKS}
        with scopes(places, ranks.rank) as links:
            times = measure(places, ranks.rank, device, links, message_bytes)
            gathered = gather_objects((probed, times))
    results = {
        check.name: ProbeResults(
            places=places,
            values=[rank_looks[check.name] for rank_looks, _ in gathered],
            config=config,
            device_type=device.type,
        )
        for check in CHECKS
    }
    all_times = ProbeResults(
        places=places, values=[rank_times for _, rank_times in gathered], device_type=device.type
    )
    verdicts = {
        check.name: check.evaluate(results[check.name]) for check in CHECKS if applies(results[check.name])
    }
    verdicts["links"] = link_figures.evaluate(all_times, message_bytes)
    return Report(
        results=results,
        verdicts=verdicts,
        links=all_times,
        message_bytes=message_bytes,
        seconds=time.perf_counter() - began_s,
    )


def applies(results: ProbeResults) -> bool:
    """Whether a probe returned a value on any rank."""
    return any(value is not None for value in results.values)


def summary(report: Report) -> str:
    """One line of it all."""
    rates = link_figures.summary(report.links, report.message_bytes)
    return f"{len(report.verdicts)} checks in {report.seconds:.2f} s{rates}"


def render(report: Report) -> str:
    """The table of the command: a line for each check and for each complaint, then the links."""
    lines = []
    for name, verdict in report.verdicts.items():
        lines.append(f"{verdict.word:4}  {name:13}  {verdict.message}".rstrip())
        lines += [
            f"      {'FAIL' if line in verdict.failures else 'warn'}: {line}"
            for line in [*verdict.failures, *verdict.warnings]
        ]
    lines += [f"      {line}" for line in link_figures.table(report.links, report.message_bytes)]
    return "\n".join([*lines, summary(report)])


def as_json(report: Report) -> dict[str, Any]:
    """All values of all ranks, and what was made of them."""
    checks = {
        name: {**asdict(verdict), "verdict": verdict.word, "by_rank": _values(report, name)}
        for name, verdict in report.verdicts.items()
    }
    return {
        "nodes": [place.node for place in report.links.places],
        "seconds": report.seconds,
        "message_bytes": report.message_bytes,
        "checks": checks,
        "links": link_figures.as_json(report.links, report.message_bytes),
    }


def _values(report: Report, name: str) -> list[Any]:
    values = report.results[name].values if name in report.results else report.links.values
    return [asdict(value) if isinstance(value, Times) else value for value in values]


def joined(lines: list[str]) -> str:
    """One line, or a list of them."""
    if len(lines) == 1:
        return lines[0]
    return f"{len(lines)} things to correct:\n" + "\n".join(f"  {line}" for line in lines)
