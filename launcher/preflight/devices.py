"""Preflight of the GPUs: one a rank, all alike, working, and free of others."""

from typing import Any

from launcher.preflight.report import ProbeContext, ProbeResults, Verdict
from parallel.ranks.devices import DeviceError, Gpu, as_json, node_gpus, own_device

FREE_SHARE = 0.9  # of the memory, beside this process's own beginnings
OWN_MIB = 2048  # contexts of CUDA and NCCL
BF16_CAPABILITY = (8, 0)


def probe(context: ProbeContext) -> dict[str, Any] | None:
    """This rank's GPU; the first rank of a node asks for the table of all."""
    if context.device.type != "cuda":
        return None
    found = own_device(context.device)
    if context.ranks.local_rank == 0:
        try:
            found["table"] = as_json(node_gpus())
        except DeviceError as error:
            found["error"] = str(error)
    return found


def evaluate(results: ProbeResults) -> Verdict:
    """One GPU a rank, the same model everywhere, able to do what the run asks, without errors or others."""
    values, first = results.values, results.values[0]
    verdict = Verdict(message=f"{len(values)} x {first['name']}")
    for ranks in results.nodes:
        _evaluate_node(verdict, results, ranks)
    if len({value["name"] for value in values}) > 1:
        verdict.failures.append(
            f"GPU: {results.spread(value['name'] for value in values)}; ask for nodes of one kind"
        )
    if results.config is not None and results.config.train.precision == "bf16":
        old = [tuple(value["capability"]) < BF16_CAPABILITY for value in values]
        verdict.failures += results.each(
            f"{value['name']} cannot do bf16; set train.precision=fp16" if is_old else None
            for value, is_old in zip(values, old, strict=True)
        )
    verdict.warnings += results.each(
        f"the state of the GPUs is not known: {value['error']}" if "error" in value else None
        for value in values
    )
    return verdict


def _evaluate_node(verdict: Verdict, results: ProbeResults, ranks: list[int]) -> None:
    owners: dict[str, list[int]] = {}
    for rank in ranks:
        owners.setdefault(results.values[rank]["uuid"], []).append(rank)
    for uuid, sharers in owners.items():
        if len(sharers) > 1:
            visible = results.values[sharers[0]]["visible"]
            verdict.failures.append(
                f"{results.where(sharers)} use one GPU ({uuid}), of {visible} visible to each of them; start "
                "no more ranks than GPUs on a node, each with a local rank of its own"
            )
    tables = [results.values[rank]["table"] for rank in ranks if "table" in results.values[rank]]
    own = {results.values[rank]["pid"] for rank in ranks}
    for row in tables[0] if tables else ():
        gpu = Gpu(**row)
        if gpu.uuid in owners:
            _evaluate_gpu(verdict, gpu, own, f"the GPU of {results.where(owners[gpu.uuid])} ({gpu.uuid})")


def _evaluate_gpu(verdict: Verdict, gpu: Gpu, own: set[int], name: str) -> None:
    if gpu.ecc_errors:
        verdict.warnings.append(  # detected, so nothing was computed wrongly: the next one ends a run
            f"{name} has had {gpu.ecc_errors} uncorrected memory errors since it was reset; leave out that "
            "node, and tell its keeper"
        )
    others = strangers(gpu, own)
    others_text = (
        f", where {', '.join(f'{n} ({pid})' for pid, n in others.items())} runs as well" if others else ""
    )
    if gpu.free_mib < min(FREE_SHARE * gpu.total_mib, gpu.total_mib - OWN_MIB):
        verdict.warnings.append(
            f"{name} has {gpu.free_mib} of {gpu.total_mib} MiB free{others_text}; free it"
        )
    elif others:
        verdict.warnings.append(f"{name} is not ours alone{others_text}; end it, or choose another GPU")


def strangers(gpu: Gpu, own: set[int]) -> dict[int, str]:
    """Processes on a GPU that are none of the run's.

    In a container nvidia-smi gives the host's process ids, which tell nothing: then one process is taken for
    the run's own.
    """
    if own & gpu.processes.keys():
        return {pid: name for pid, name in gpu.processes.items() if pid not in own}
    return gpu.processes if len(gpu.processes) > 1 else {}
