"""What tests/data/recorded/ holds: small shards, and of some runs the losses and a checkpoint.

    python -m tests.recorded   # write them again, which only a change of the arithmetic on purpose asks for

A refactor must read these files and give these losses: bit for bit on the same kind of processor under the
same torch, and to three digits on any other. Initial weights are drawn by torch, whose draws
of a truncated normal changed after 2.11: a run from its start is compared under the torch that recorded it.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from parallel.checkpoint.commit import path_of
from tests.distributed import run_on_ranks
from tests.launcher.packed import pack_synthetic
from tests.launcher.running import CONFIG, command, records

FOLDER = Path(__file__).parent / "data" / "recorded"
SHARDS, RUNS, LOSSES = FOLDER / "shards", FOLDER / "runs", FOLDER / "losses.json"
STEPS, SAVED = 4, 2  # optimizer steps of a run, and of the checkpoint that is kept
COMMON = (
    f"data.train={SHARDS}/train",
    f"data.val={SHARDS}/val",
    "model.image_size=16",
    "model.window_size=2",
    "model.embed_dim=8",
    "model.num_heads=[1, 2]",
    "model.depths=[1, 1]",
    "model.drop_path_rate=0.2",
    "data.augment={}",
    "train.global_batch_size=8",
    "train.micro_batch_size=2",
    "train.eval_batch_size=8",
    f"train.duration={STEPS} steps",
    f"train.eval_every={STEPS} steps",
    f"checkpoint.every={SAVED} steps",
    "optim.base_lr=0.1",
)
DENSE = ("model.moe=null",)
EXPERTS = ("model.moe.routing_group_images=2", "model.moe.num_experts=4", "model.moe.blocks=[[], [0]]")
NOISY = (*EXPERTS, "model.moe.gate_noise=1.0", "model.moe.expert_dropout=0.1", "parallel.ep_size=2")
CASES: dict[str, tuple[str, ...]] = {  # two ranks each; the model of configs/debug.yaml, changed
    "swin_stage0": (*DENSE, "model.position_bias=table", "parallel.zero_stage=0"),
    "swinv2_stage1": (*DENSE, "model.attention=cosine", "model.norm=post", "parallel.zero_stage=1"),
    "swin_mlp_stage2": (*DENSE, "model.attention=mlp", "model.position_bias=table", "parallel.zero_stage=2"),
    "simmim_stage1": (
        *DENSE,
        "task=simmim",
        "data.augment=null",
        "simmim.mask_patch_size=8",
        "parallel.zero_stage=1",
    ),
    "swin_moe_ep2_stage1": (*NOISY, "parallel.zero_stage=1"),
    "swin_moe_ep2_stage3": (*NOISY, "parallel.zero_stage=3"),
    "swin_moe_ep2_stage3_bf16": (
        *NOISY,
        "parallel.zero_stage=3",
        "train.precision=bf16",
        "train.ema_decay=0.9",
    ),
    "swin_moe_capacity_bf16": (
        *EXPERTS,
        "model.moe.capacity_factor=1.0",
        "model.moe.router=cosine",
        "train.precision=bf16",
        "train.ema_decay=0.9",
    ),
}
KIND = ("vendor_id", "cpu family", "model", "stepping", "cache size")  # lines of /proc/cpuinfo
KEPT = ("simmim_stage1", *(name for name in CASES if "moe" in name))  # with a checkpoint
FIGURES = ("step", "loss", "aux_loss", "lr", "grad_norm", "dropped_fraction", "eval_loss", "eval_top1")


def figures(run_dir: Path) -> list[dict[str, float]]:
    """Of every step and evaluation of a run, what must stay as it is.

    `loss` of a step is the total loss here: what `loss` meant when these files were recorded.
    """
    rows = [row for row in records(run_dir) if "loss" in row or "eval_loss" in row]
    rows = [row | {"loss": row["total_loss"]} if "total_loss" in row else row for row in rows]
    return [{name: row[name] for name in FIGURES if name in row} for row in rows]


def release() -> str:
    """Of torch, without the build."""
    return torch.__version__.split("+")[0]


def processor() -> list[str]:
    """What decides which kernels torch and its libraries take, and how they cut their work."""
    told = [name for name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR") if name in os.environ]
    first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    lines = dict(line.split(":", 1) for line in first.splitlines() if ":" in line)
    values = {name.strip(): value.split() for name, value in lines.items()}
    kind = [" ".join(values.get(name, [])) for name in KIND]
    sets = sorted(flag for flag in values.get("flags", []) if flag.startswith(("avx", "amx", "fma")))
    return [*kind, torch.backends.cpu.get_cpu_capability(), *sets, *told]


def train(name: str, run_dir: Path, *more: str) -> None:
    """Run a case on two ranks.

    Raises:
        RuntimeError: if the run ends with an error; it has the error's text.
    """
    options = (*COMMON, *CASES[name], f"run_dir={run_dir}", *more)
    for outcome in run_on_ranks(command, 2, "train", str(CONFIG), "--resume", "auto", *options):
        if outcome.code:
            raise RuntimeError(f"{name}: {outcome.err}")


def _record() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    pack_synthetic(SHARDS, 32, 8, image_size=16, samples_per_shard=16)
    losses: dict[str, Any] = {}
    for name in CASES:
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            train(name, run)
            losses[name] = figures(run)
            if name not in KEPT:
                continue
            last = path_of(run / "checkpoints", STEPS)
            saved = path_of(run / "checkpoints", SAVED)
            shutil.rmtree(last)
            (run / "checkpoints" / "latest").write_text(saved.name + "\n")
            shutil.rmtree(run / "tensorboard")
            shutil.copytree(run, RUNS / name)
    LOSSES.write_text(json.dumps({"torch": release(), "on": processor(), "losses": losses}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(_record())
