"""What failures cost a run: how often to save, and the share of the time that stays."""

import math
from dataclasses import dataclass

# Llama 3 (Dubey et al. 2024, section 3.3.4): 419 unplanned interruptions in 54 days on 16,384 GPUs, one in so
# many GPU-hours
MTBF_GPU_H = 50_700.0


@dataclass(frozen=True, kw_only=True)
class Failures:
    """What goes wrong, and what it costs."""

    mtbf_gpu_h: float = MTBF_GPU_H  # between failures of one GPU, or of what a run needs beside it
    save_s: float = 30.0  # that a checkpoint keeps training waiting
    restart_s: float = 300.0  # from the failure to the next step


def young_s(save_s: float, mtbf_s: float) -> float:
    """The interval between checkpoints that loses the least: sqrt(2 save MTBF) (Young 1974)."""
    return math.sqrt(2 * save_s * mtbf_s)


def goodput(failures: Failures, mtbf_s: float) -> float:
    """The share of the time that is not lost to saves, to steps done again and to restarts; at least 0.

    To first order: save / interval, and per failure half an interval and a restart (Young 1974).
    """
    interval_s = young_s(failures.save_s, mtbf_s)
    saves = failures.save_s / interval_s if interval_s else 0.0
    return max(0.0, 1 - saves - (interval_s / 2 + failures.restart_s) / mtbf_s)
