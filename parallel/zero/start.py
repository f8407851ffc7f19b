"""Attaches DeepSpeed to the process group of a run."""

import logging

import deepspeed
import deepspeed.comm
import torch.distributed as dist


def start_deepspeed() -> None:
    """Attach DeepSpeed to the process group that is there, without its shared-memory operator."""
    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(logging.WARNING)
    logger.addFilter(_is_news)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line of DeepSpeed is relevant: our tests cover the optimizers that it calls untested."""
    return "with an untested optimizer" not in record.getMessage()
