"""The memory that `launcher/plan` predicts, beside what training takes on this machine.

    python benchmarks/plan_memory.py                        # all layouts, on 1, 2 and 4 gloo ranks
    python benchmarks/plan_memory.py --world 1 --json plan_memory.json
    python benchmarks/plan_memory.py --allocator            # and torch's own account, several times as long

Each layout trains two optimizer steps on random images through what a run is made of: `TaskSpec`, `Engine`,
`MasterWeights`, as in launcher/training/trainer.py; no data pipeline. All layouts of a world run one after
the other in the same ranks, one thread each. Two figures are measured, of the rank that needs most:

- `rss`: growth of the peak resident size (VmHWM) over the resident size just before the model is built, after
  a small model has trained in the process and everything free was given back. So the interpreter, the
  libraries and their first use are in the floor and not in the figure. MALLOC_MMAP_THRESHOLD_ is 64 KiB
  here: with the launcher's 1 GiB (process/local_launcher.py) freed memory stays resident for speed, and the
  figure would be of glibc's heap and not of tensors.
- `allocator`, if asked for: peak of what torch's CPU allocator handed out, by the memory events of
  torch.profiler in a second training. Buffers that are never written count there (reduction buckets), so it
  stands beside a prediction of its own with them, `reserved`.

DeepSpeed's own estimates: benchmarks/plan_states.py.
"""

import argparse
import contextlib
import ctypes
import gc
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from allocator import cpu_peak_bytes
from rank_processes import run_ranks

from data_shards.stream.batch import Batch
from launcher.config.load import load_config
from launcher.config.schema import RunConfig
from launcher.plan.memory.estimate import predict_memory
from launcher.tasks.param_groups import parameter_groups
from launcher.tasks.registry import task_spec
from launcher.tasks.spec import TaskContext
from launcher.training.builders import engine_options, run_mesh
from launcher.training.schedules import ema_momentum
from parallel.ranks.collectives import gather_objects
from parallel.ranks.init import join, leave, prepare_process
from parallel.ranks.rank import Ranks
from parallel.zero.engine import Engine
from parallel.zero.master_weights import MasterWeights
from swin_moe.random.keyed import sample_keys

Row = dict[str, Any]
STEPS, LIMIT_S, MIB = 2, 3000, 2**20
BASE = """
run_dir: none
model:
  image_size: 96
  num_classes: 1000
  embed_dim: 96
  depths: [2, 2, 2, 2]
  num_heads: [3, 6, 12, 24]
  window_size: 6
  position_bias: log_cpb
data: {train: data/synthetic, val: data/synthetic}
optim: {warmup: 1 steps}
train: {duration: 10 steps, micro_batch_size: 8}
deepspeed: {zero_optimization: {reduce_bucket_size: 60000000}}
"""
MOE = ["model.moe.blocks=[[],[],[1],[1]]", "model.moe.num_experts=4", "model.moe.routing_group_images=4"]
TINY = ["model.embed_dim=24", "model.image_size=48", "train.micro_batch_size=4", *MOE]
LAYOUTS: list[tuple[int, list[str]]] = [
    (1, ["parallel.zero_stage=0"]),
    (1, ["parallel.zero_stage=1", *MOE, "train.micro_batch_size=16"]),
    (1, ["parallel.zero_stage=1", *MOE, "train.micro_batch_size=16", "model.activation_checkpoint_every=1"]),
    (1, ["parallel.zero_stage=2"]),
    (2, ["parallel.zero_stage=0", *MOE, "parallel.ep_size=2"]),
    (2, ["parallel.zero_stage=1"]),
    (2, ["parallel.zero_stage=1", *MOE, "parallel.ep_size=2", "train.micro_batch_size=16"]),
    (2, ["parallel.zero_stage=2", *MOE, "parallel.ep_size=2"]),
    (2, ["parallel.zero_stage=2", *MOE, "parallel.ep_size=1", "model.activation_checkpoint_every=1"]),
    (2, ["parallel.zero_stage=3"]),
    (2, ["parallel.zero_stage=3", *MOE, "parallel.ep_size=2", "model.activation_checkpoint_every=2"]),
    (2, ["parallel.zero_stage=1", "train.precision=bf16"]),
    (2, ["parallel.zero_stage=2", "train.precision=bf16", "train.ema_decay=0.999"]),
    (4, ["parallel.zero_stage=1", *MOE, "parallel.ep_size=4"]),
    (4, ["parallel.zero_stage=2", *MOE, "parallel.ep_size=2", "model.activation_checkpoint_every=1"]),
    (4, ["parallel.zero_stage=3", *MOE, "parallel.ep_size=4"]),
]


def config_of(world: int, overrides: list[str], directory: Path) -> RunConfig:
    """The configuration of a layout; a step is one micro-batch a rank."""
    path = directory / f"base-{os.getpid()}.yaml"
    path.write_text(BASE)
    config = load_config(path, overrides)
    batch = config.train.micro_batch_size * world
    return load_config(path, [*overrides, f"train.global_batch_size={batch}"])


class MeasuredTraining:
    """What a session trains with, on random images."""

    def __init__(self, config: RunConfig, world: int) -> None:
        device = torch.device("cpu")
        self.config, self.mesh = config, run_mesh(config.parallel, [world])
        spec = task_spec(config.task)
        context = TaskContext(
            mesh=self.mesh,
            device=device,
            sharded=config.parallel.zero_stage == 3,
            exchange=config.parallel.expert_exchange,
        )
        self.task = spec.build(config, context)
        model = self.task.model
        groups = parameter_groups(model, config.optim, spec.parameters)
        self.engine = Engine(model, groups, self.mesh, engine_options(config, 1))
        self.masters = MasterWeights(self.engine.deepspeed, ema_momentum(config.train))
        self.engine.train()

    def step(self) -> None:
        """One optimizer step, as launcher/training/trainer.py takes it."""
        count, sides = self.config.train.micro_batch_size, self.config.model.image_sides
        pixels = np.random.default_rng(0).integers(0, 256, (count, *sides, 3), dtype=np.uint8)
        batch = Batch(
            tensors={"image": torch.from_numpy(pixels).permute(0, 3, 1, 2), "label": torch.arange(count)},
            positions=torch.arange(count) + count * self.mesh.rank,
            weights=torch.ones(count),
        )
        output = self.task.step(self.engine, self.task.inputs(batch), sample_keys(0, batch.positions))
        self.engine.backward(output.loss + output.aux_loss)
        self.engine.step(1e-4)
        self.masters.update_ema(1)


def train(config: RunConfig, world: int) -> None:
    """Some steps, after which everything is given back."""
    with contextlib.redirect_stdout(io.StringIO()):
        training = MeasuredTraining(config, world)
        for _ in range(STEPS):
            training.step()
    dist.barrier()
    training.engine.deepspeed.destroy()


def give_back() -> None:
    """Free what nobody holds."""
    gc.collect()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def resident(name: str) -> int:
    """Bytes of VmRSS or VmHWM."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1]) * 1024


def resident_peak(config: RunConfig, world: int) -> int:
    """Bytes by which the resident size grows at most."""
    give_back()
    Path("/proc/self/clear_refs").write_text("5")
    floor = resident("VmRSS")
    train(config, world)
    return resident("VmHWM") - floor


def allocator_peak(config: RunConfig, world: int) -> int:
    """Bytes that torch's allocator had handed out at most."""
    give_back()
    return cpu_peak_bytes(lambda: train(config, world))


def rank_main(rank: int, world: int, directory: Path) -> None:
    """One rank: all layouts of its world; the first writes what all saw."""
    torch.set_num_threads(1)
    ranks = Ranks.that_meet_at(directory / "meet", rank, world)
    join(ranks, prepare_process(ranks))
    for overrides in ([*TINY, f"parallel.zero_stage={stage}"] for stage in (1, 3)):
        train(config_of(world, overrides, directory), world)
    job = json.loads((directory / "job.json").read_text())
    for overrides in job["layouts"]:
        config = config_of(world, overrides, directory)
        own = {"rss": resident_peak(config, world)}
        if job["allocator"]:
            own["allocator"] = allocator_peak(config, world)
        every = gather_objects(own)
        if rank == 0:
            row = {"overrides": overrides, **{name: max(x[name] for x in every) for name in own}}
            with (directory / "rows.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"  measured: {' '.join(overrides)}", file=sys.stderr, flush=True)
    leave()


def on_ranks(world: int, layouts: list[list[str]], allocator: bool) -> Iterator[Row]:
    """What the ranks measured, layout by layout."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "job.json").write_text(json.dumps({"layouts": layouts, "allocator": allocator}))
        own = {
            "OMP_NUM_THREADS": "1",
            "MALLOC_MMAP_THRESHOLD_": str(2**16),
            "MALLOC_TRIM_THRESHOLD_": str(2**17),
            "MALLOC_ARENA_MAX": "2",
        }
        run_ranks(__file__, [["--rank", rank, world, name] for rank in range(world)], LIMIT_S, own)
        for line in (directory / "rows.jsonl").read_text().splitlines():
            yield json.loads(line)


def compared(world: int, row: Row) -> Row:
    """A row with the prediction and its deviations."""
    with tempfile.TemporaryDirectory() as name:
        config = config_of(world, row["overrides"], Path(name))
    memory = predict_memory(config, [world], "cpu")
    reserved = predict_memory(config, [world], "cpu", reserved=True).peak_bytes
    found = {
        "world": world,
        **row,
        "predicted": memory.peak_bytes,
        "predicted_reserved": reserved,
        "rss_deviation": memory.peak_bytes / row["rss"] - 1,
        "moment": memory.moment,
        "items": dict([*memory.items, memory.transient]),
    }
    if "allocator" in row:
        found["allocator_deviation"] = reserved / row["allocator"] - 1
    return found


def label(row: Row) -> str:
    """A layout in a few words."""
    given = dict(x.split("=", 1) for x in row["overrides"])
    words = [f"{row['world']} ranks, ZeRO {given['parallel.zero_stage']}"]
    words += [f"ep {given.get('parallel.ep_size', 1)}" if "model.moe.num_experts" in given else "dense"]
    short = {
        "activation_checkpoint_every": "checkpoint",
        "precision": "",
        "ema_decay": "ema",
        "micro_batch_size": "batch",
    }
    given = {key.rpartition(".")[2]: value for key, value in given.items()}
    words += [f"{name} {given[key]}".strip() for key, name in short.items() if key in given]
    return ", ".join(words)


def show(rows: list[Row]) -> None:
    """The table, every deviation in it."""
    print(f"{'layout, MiB':44}{'predicted':>10}{'rss':>9}{'':>8}{'reserved':>10}{'allocator':>10}")
    for row in rows:
        line = f"{label(row):44}{row['predicted'] / MIB:10.1f}{row['rss'] / MIB:9.1f}"
        line += f"{row['rss_deviation']:+8.1%}"
        if "allocator" in row:
            line += f"{row['predicted_reserved'] / MIB:10.1f}{row['allocator'] / MIB:10.1f}"
            line += f"{row['allocator_deviation']:+8.1%}"
        print(f"{line}  {row['moment']}")
    for name in ("rss", "allocator"):
        known = [abs(row[f"{name}_deviation"]) for row in rows if name in row]
        if known:
            print(f"within 10 % of {name}: {sum(d <= 0.1 for d in known)} of {len(known)}")


def main() -> None:
    """Measure, print, write."""
    if "--rank" in sys.argv:
        rank_main(int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    parser.add_argument("--world", type=int, choices=(1, 2, 4), help="only the layouts of so many ranks")
    parser.add_argument("--allocator", action="store_true", help="ask torch's allocator too")
    args = parser.parse_args()
    rows = []
    for world in [args.world] if args.world else (1, 2, 4):
        layouts = [overrides for ranks, overrides in LAYOUTS if ranks == world]
        rows += [compared(world, row) for row in on_ranks(world, layouts, args.allocator)]
    show(rows)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
