"""Preflight of the GPUs: one a rank, all alike, sound, and free of others."""

from typing import Any

from launcher.preflight.report import Here, Seen, Verdict
from parallel.ranks.devices import DeviceError, Gpu, as_json, node_gpus, own_device

FREE_SHARE = 0.9  # of the memory, beside this process's own beginnings
OWN_MIB = 2048  # contexts of CUDA and NCCL
BF16_CAPABILITY = (8, 0)


def look(here: Here) -> dict[str, Any] | None:
    """This rank's GPU; the first rank of a node asks for the table of all."""
    if here.device.type != "cuda":
        return None
    found = own_device(here.device)
    if here.ranks.local_rank == 0:
        try:
            found["table"] = as_json(node_gpus())
        except DeviceError as error:
            found["error"] = str(error)
    return found


def judge(seen: Seen) -> Verdict:
    """One GPU a rank, the same model everywhere, able to do what the run asks, without errors or others."""
    values, first = seen.values, seen.values[0]
    found = Verdict(told=f"{len(values)} x {first['name']}")
    for ranks in seen.nodes:
        _judge_node(found, seen, ranks)
    if len({value["name"] for value in values}) > 1:
        found.failures.append(
            f"GPU: {seen.spread(value['name'] for value in values)}; ask for nodes of one kind"
        )
    if seen.config is not None and seen.config.train.precision == "bf16":
        old = [tuple(value["capability"]) < BF16_CAPABILITY for value in values]
        found.failures += seen.each(
            f"{value['name']} cannot do bf16; set train.precision=fp16" if is_old else None
            for value, is_old in zip(values, old, strict=True)
        )
    found.warnings += seen.each(
        f"the state of the GPUs is not known: {value['error']}" if "error" in value else None
        for value in values
    )
    return found


def _judge_node(found: Verdict, seen: Seen, ranks: list[int]) -> None:
    owners: dict[str, list[int]] = {}
    for rank in ranks:
        owners.setdefault(seen.values[rank]["uuid"], []).append(rank)
    for uuid, sharers in owners.items():
        if len(sharers) > 1:
            visible = seen.values[sharers[0]]["visible"]
            found.failures.append(
                f"{seen.where(sharers)} use one GPU ({uuid}), of {visible} visible to each of them; start no "
                "more ranks than GPUs on a node, each with a local rank of its own"
            )
    tables = [seen.values[rank]["table"] for rank in ranks if "table" in seen.values[rank]]
    own = {seen.values[rank]["pid"] for rank in ranks}
    for row in tables[0] if tables else ():
        gpu = Gpu(**row)
        if gpu.uuid in owners:
            _judge_gpu(found, gpu, own, f"the GPU of {seen.where(owners[gpu.uuid])} ({gpu.uuid})")


def _judge_gpu(found: Verdict, gpu: Gpu, own: set[int], name: str) -> None:
    if gpu.ecc_errors:
        found.warnings.append(  # detected, so nothing was computed wrongly: the next one ends a run
            f"{name} has had {gpu.ecc_errors} uncorrected memory errors since it was reset; leave out that "
            "node, and tell its keeper"
        )
    others = strangers(gpu, own)
    said = f", where {', '.join(f'{n} ({pid})' for pid, n in others.items())} runs as well" if others else ""
    if gpu.free_mib < min(FREE_SHARE * gpu.total_mib, gpu.total_mib - OWN_MIB):
        found.warnings.append(f"{name} has {gpu.free_mib} of {gpu.total_mib} MiB free{said}; free it")
    elif others:
        found.warnings.append(f"{name} is not ours alone{said}; end it, or choose another GPU")


def strangers(gpu: Gpu, own: set[int]) -> dict[int, str]:
    """Processes on a GPU that are none of the run's.

    In a container nvidia-smi gives the host's process ids, which tell nothing: then one process is taken for
    the run's own.
    """
    if own & gpu.processes.keys():
        return {pid: name for pid, name in gpu.processes.items() if pid not in own}
    return gpu.processes if len(gpu.processes) > 1 else {}
