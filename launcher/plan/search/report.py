"""What `swin-moe plan` says of one layout, as lines of text."""

from launcher.plan.base.hardware import Hardware
from launcher.plan.memory.estimate import Memory
from launcher.plan.search.candidate import Candidate
from launcher.plan.time.estimate import StepTime

GIB = 2**30


def layout_lines(candidate: Candidate, hardware: Hardware) -> list[str]:
    """Memory and time of a predicted layout."""
    assert candidate.memory is not None
    assert candidate.time is not None
    memory, time = memory_lines(candidate.memory, hardware), time_lines(candidate.time, candidate.ranks)
    return [*memory, *time]


def memory_lines(memory: Memory, hardware: Hardware) -> list[str]:
    """Every item, the peak, and whether it fits."""
    rows = [*memory.items, (f"{memory.transient[0]} (transient)", memory.transient[1])]
    spare = hardware.memory_bytes - memory.peak_bytes
    verdict = (
        f"fits, {spare / GIB:.1f} GiB spare"
        if spare >= 0
        else f"does NOT fit: {-spare / GIB:.1f} GiB too much"
    )
    host = [f"  {'host, of a rank':<34}{memory.host_bytes / GIB:9.3f} GiB"] if memory.host_bytes else []
    return [
        "memory of the rank that needs most",
        *(f"  {name:<34}{size / GIB:9.3f} GiB" for name, size in rows if size),
        f"  {'peak':<34}{memory.peak_bytes / GIB:9.3f} GiB of {hardware.memory_gib:g}: {verdict}",
        *host,
    ]


def time_lines(time: StepTime, ranks: int) -> list[str]:
    """Every item of a step, and what follows from the sum."""
    hidden = dict(time.hidden)
    lines = ["time of an optimizer step"]
    for name, seconds in time.items:
        beside = f", {hidden[name] * 1e3:.2f} ms more behind computing" if name in hidden else ""
        lines.append(f"  {name:<34}{seconds * 1e3:9.2f} ms {seconds / time.step_s:5.1%}{beside}")
    lines += [
        f"  {'step':<34}{time.step_s * 1e3:9.2f} ms",
        f"throughput: {time.images_s:.0f} images/s, {time.images_s / ranks:.1f} a GPU; MFU {time.mfu:.1%}; "
        f"{time.cores:.1f} host cores a GPU feed it, {time.sample_bytes / 2**20:.2f} MiB a decoded sample",
    ]
    if time.all_to_all_linear_s:
        lines.append(
            f"all-to-all of the rows: linear {time.all_to_all_linear_s * 1e3:.2f} ms, hierarchical "
            f"{time.all_to_all_hierarchical_s * 1e3:.2f} ms a step"
        )
    return lines
