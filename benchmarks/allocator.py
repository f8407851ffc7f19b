"""The peak of torch's CPU allocator."""

from collections.abc import Callable

import torch


def cpu_peak_bytes(work: Callable[[], object]) -> int:
    """The most bytes that torch's CPU allocator had handed out during `work`, beyond those before it.

    The profiler lists every allocation and release, whose running sum is exact. What a library for matrix
    products or gloo keeps for itself is not in it.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        work()
    assert profile.profiler is not None
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    in_use = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        in_use += event.nbytes()
        peak = max(peak, in_use)
    return peak
