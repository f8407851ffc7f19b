"""What a Python script calls beside `launcher.load` (launcher/evaluation/loaded.py): training.

`swin_moe.load` gives the model alone: `swin_moe` knows nothing of images in files, which are decoded by
`data_shards`.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from launcher.config.load import load_config
from launcher.config.schema import RunConfig
from launcher.process.run_rank import RankContext, Runtime, run_rank
from parallel.ranks.rank import Ranks


def train(
    config: RunConfig | str | Path,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    allow_change: bool = False,
    reset_crashes: bool = False,
    elastic: bool = False,
    runtime: Runtime | None = None,
) -> int:
    """Train a run as this rank: of one process, or of those that torchrun, mpirun or srun started.

    Args:
        config: of the run, or its recipe.
        overrides: "train.duration=3 epochs" and the like, where `config` is a recipe.
        resume: go on from the newest checkpoint of the run directory, if there is one.
        allow_change: on resume, let options differ that change what training computes.
        reset_crashes: start although the last sessions crashed before a checkpoint.
        elastic: on resume, fit ep_size, slices and micro-batch to the ranks that are there.
        runtime: how this process becomes a rank; tests give another.

    Returns:
        The exit status (docs/faults.md): 0 for a finished run. Errors are printed, as the command does.

    Raises:
        ConfigError: the recipe cannot be used.
    """
    chosen = config if isinstance(config, RunConfig) else load_config(config, overrides)

    def work(ranks: Ranks, device: torch.device, context: RankContext) -> None:
        from launcher.training.run import train  # DeepSpeed looks for its device when it is imported

        train(
            chosen,
            ranks,
            device,
            context,
            "auto" if resume else "never",
            allow_change=allow_change,
            reset_crashes=reset_crashes,
            elastic=elastic,
        )

    return run_rank(chosen, work, runtime)
