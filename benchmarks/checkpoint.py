"""What a checkpoint costs: bytes, the steps it stalls, its rates beside a plain file copy, memory.

    python benchmarks/checkpoint.py --quick                      # a minute or two on two cores
    python benchmarks/checkpoint.py --json checkpoint.json
    python benchmarks/checkpoint.py --out DIR                    # on the file system of DIR

A Swin-MoE of 45 M parameters, 8 experts in 2 layers, trains on two gloo ranks of this machine
(expert-parallel over both, ZeRO stage 1, one thread each) and is saved through
`parallel.checkpoint.async_saver.CheckpointSaver`, once before going on and once beside training, in turn.
`copy` is the same files copied by one process in pieces of 16 MiB with fsync at the end of each, on the same
file system, between the saves; the checkpoint was written just before, so that the copy finds it in memory.
Rates are bytes of the checkpoint over wall seconds, a save's from its beginning to the commit, a write's
from the copy in host memory; the figures are of the best of interleaved rounds. A stall is what the saver
made a step wait, in steps; `slowed` is what the steps beside a save take longer, all of them together.
Loading verifies and reads; it stands beside reading the same files once, and the copy. Memory is the
largest peak resident size of a rank, measured before anything is loaded."""

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rank_processes import run_ranks

from parallel.checkpoint.async_saver import CheckpointSaver
from parallel.checkpoint.commit import latest, path_of
from parallel.checkpoint.load import load_checkpoint
from parallel.ranks.collectives import gather_objects
from parallel.ranks.init import join, leave, prepare_process
from parallel.ranks.mesh import Mesh, ParallelDims, build_mesh
from parallel.ranks.rank import Ranks
from parallel.zero.engine import Engine
from parallel.zero.master_weights import MasterWeights
from parallel.zero.options import EngineOptions
from swin_moe import ModelConfig, MoEConfig, build_model
from swin_moe.heads.classification import classification_loss
from swin_moe.random.keyed import sample_keys

Row = dict[str, Any]
MODES = ("asynchronous", "synchronous")
RANKS, LIMIT_S, PIECE = 2, 3600, 16 * 2**20
MODEL = ModelConfig(
    image_size=64,
    num_classes=1000,
    embed_dim=96,
    depths=(2, 2, 6, 2),
    num_heads=(3, 6, 12, 24),
    window_size=4,
    moe=MoEConfig(blocks=((), (), (1, 3), ()), num_experts=8, routing_group_images=2),
)


class CheckpointedTraining:
    """Steps on random images."""

    def __init__(self, mesh: Mesh, images: int) -> None:
        self.mesh, self.images, self.step = mesh, images, 0
        self.saved = 0  # the step of the last save
        self.model = build_model(MODEL, seed=1, mesh=mesh)
        groups = [{"name": "all", "params": list(self.model.parameters()), "lr": 1e-4}]
        self.engine = Engine(
            self.model,
            groups,
            mesh,
            EngineOptions(
                zero_stage=1, precision="fp32", max_grad_norm=5.0, micro_batch_size=images, grad_accum_steps=1
            ),
        )
        self.engine.train()
        self.masters = MasterWeights(self.engine.deepspeed)

    def take(self) -> float:
        """One step; its wall seconds."""
        began_s = time.perf_counter()
        images = torch.randn(self.images, 3, *MODEL.image_sides)
        labels = torch.randint(MODEL.num_classes, (self.images,))
        output = self.engine(images, sample_keys(0, torch.arange(self.images)))
        self.engine.backward(classification_loss(output.logits, labels, 0.1) + output.aux_loss)
        self.engine.step(1e-4)
        self.step += 1
        dist.barrier()
        return time.perf_counter() - began_s


@contextlib.contextmanager
def peak_rss(row: Row, name: str) -> Iterator[None]:
    """Bytes of the peak of this rank within."""
    Path("/proc/self/clear_refs").write_text("5")
    yield
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    row[name] = int(line.split()[1]) * 1024


def copied(source: Path, target: Path) -> float:
    """Seconds for a plain copy of the files of a directory, each durable."""
    target.mkdir()
    began_s = time.perf_counter()
    for file in source.iterdir():
        with file.open("rb", buffering=0) as old, (target / file.name).open("wb", buffering=0) as new:
            while piece := old.read(PIECE):
                new.write(piece)
            os.fsync(new.fileno())
    taken_s = time.perf_counter() - began_s
    remove(target)
    return taken_s


def read_once(source: Path) -> float:
    """Seconds to read the files of a directory."""
    began_s = time.perf_counter()
    for file in source.iterdir():
        with file.open("rb", buffering=0) as old:
            while old.read(PIECE):
                pass
    return time.perf_counter() - began_s


def remove(directory: Path) -> None:
    """Delete a directory of files and let the disk settle."""
    for file in directory.iterdir():
        file.unlink()
    directory.rmdir()
    os.sync()


def measure(directory: Path, rounds: int, images: int) -> Row:
    """Everything that one rank sees."""
    mesh = build_mesh(ParallelDims(world_size=RANKS, ep_size=RANKS))
    with contextlib.redirect_stdout(io.StringIO()):
        training = CheckpointedTraining(mesh, images)
    own: Row = {}
    times: dict[str, list[float]] = {name: [] for name in ("step", "beside", "copy", "read", "load")}
    for name in MODES:
        times |= {f"{name} stall": [], f"{name} save": [], f"{name} write": []}
    for _ in range(3):
        training.take()
    with peak_rss(own, "peak_training"):
        times["step"] += [training.take() for _ in range(4)]
    for name in MODES:  # each with memory of its own, given back before the next
        with peak_rss(own, f"peak_{name}"):
            save(training, saver_of(name, directory, mesh), name, times)
    savers = {name: saver_of(name, directory, mesh) for name in MODES}
    for number in range(rounds + 1):  # the first round warms up: memory is touched for the first time
        for name, saver in savers.items():
            save(training, saver, name, times)
        saved = latest(directory)
        assert saved is not None
        os.sync()
        dist.barrier()
        if mesh.is_first:
            times["copy"].append(copied(saved, directory / "copy"))
            times["read"].append(read_once(saved))
        dist.barrier()
        began_s = time.perf_counter()
        load_checkpoint(saved, training.masters, 8)
        dist.barrier()
        times["load"].append(time.perf_counter() - began_s)
        if number == 0:
            times = {name: [] if name != "step" else values for name, values in times.items()}
        times["step"] += [training.take() for _ in range(2)]
    own["rounds"] = times
    own["seconds"] = {name: min(values) for name, values in times.items() if values}
    own["bytes"] = sum(file.stat().st_size for file in path_of(directory, training.saved).iterdir())
    return own


def saver_of(name: str, directory: Path, mesh: Mesh) -> CheckpointSaver:
    """The same code, with or without waiting."""
    return CheckpointSaver(directory, mesh, asynchronous=name == "asynchronous", keep_last=1)


def save(
    training: CheckpointedTraining, saver: CheckpointSaver, name: str, times: dict[str, list[float]]
) -> None:
    """One save, and the steps beside it."""
    os.sync()
    dist.barrier()
    step = training.saved = training.step
    saver.start(step, training.masters, {})
    beside: list[float] = []
    while all(gather_objects(saver.writing)):  # all stop together
        beside.append(training.take())
    (outcome,) = saver.finish()
    assert outcome.error is None, outcome.error
    times[f"{name} stall"].append(outcome.stall_s)
    times[f"{name} save"].append(outcome.save_s)
    times[f"{name} write"].append(outcome.save_s - outcome.copy_s)
    if beside:
        extra = sum(beside) - len(beside) * statistics.median(times["step"])
        times["beside"].append(extra)


def rank_main(rank: int, directory: Path) -> None:
    """One rank; the first writes what all saw."""
    torch.set_num_threads(1)
    job = json.loads((directory / "job.json").read_text())
    ranks = Ranks.that_meet_at(directory / "meet", rank, RANKS)
    join(ranks, prepare_process(ranks))
    own = measure(directory / "checkpoints", job["rounds"], job["images"])
    every = gather_objects(own)
    if rank == 0:
        (directory / "rows.json").write_text(json.dumps(every))
    leave()


def on_ranks(job: Row, out: Path | None) -> list[Row]:
    """What each rank measured."""
    with tempfile.TemporaryDirectory(dir=out) as name:
        directory = Path(name)
        (directory / "checkpoints").mkdir()
        (directory / "job.json").write_text(json.dumps(job))
        arguments = [["--rank", rank, name] for rank in range(RANKS)]
        run_ranks(__file__, arguments, LIMIT_S, {"OMP_NUM_THREADS": "1"})
        return json.loads((directory / "rows.json").read_text())


def summary(rows: list[Row]) -> Row:
    """The figures of all ranks together."""
    first = rows[0]
    seconds, size = first["seconds"], first["bytes"]
    dense = {name: max(row[name] for row in rows) for name in first if name.startswith("peak_")}
    found = {
        "checkpoint_bytes": size,
        "bytes_over_least": size / first["whole_bytes"],
        "step_s": seconds["step"],
        "copy_mib_s": size / seconds["copy"] / 2**20,
        "read_mib_s": size / seconds["read"] / 2**20,
        "save_mib_s": size / seconds["synchronous save"] / 2**20,
        "load_mib_s": size / seconds["load"] / 2**20,
        "save_over_copy": seconds["copy"] / seconds["synchronous save"],
        "write_over_copy": seconds["copy"] / seconds["synchronous write"],
        "load_over_copy": seconds["copy"] / seconds["load"],
        "load_over_read": seconds["read"] / seconds["load"],
        "slowed_steps": seconds["beside"] / seconds["step"],
    }
    for name in MODES:
        found[f"stall_{name}_s"] = seconds[f"{name} stall"]
        found[f"stall_{name}_steps"] = seconds[f"{name} stall"] / seconds["step"]
        found[f"peak_{name}_over_training"] = dense[f"peak_{name}"] / dense["peak_training"]
    found["peak_training_mib"] = dense["peak_training"] / 2**20
    return found


def main() -> None:
    """Measure, print, write."""
    if "--rank" in sys.argv:
        rank_main(int(sys.argv[2]), Path(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    parser.add_argument("--out", type=Path, help="an existing directory to write the checkpoints below")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and images")
    args = parser.parse_args()
    job = {"rounds": 2 if args.quick else 5, "images": 16 if args.quick else 32}
    rows = on_ranks(job, args.out)
    for row in rows:
        row["whole_bytes"] = whole_bytes()
    found = summary(rows)
    print(f"torch {torch.__version__}, {torch.cpu.get_capabilities().get('cpu_name')}, {job}")
    for name, value in found.items():
        print(f"{name:36}{value:14.3f}" if isinstance(value, float) else f"{name:36}{value:14}")
    if args.json:
        args.json.write_text(json.dumps({"job": job, "figures": found, "ranks": rows}, indent=1) + "\n")


def whole_bytes() -> int:
    """The least that a checkpoint can take: three fp32 numbers a parameter."""
    with torch.device("meta"):
        return 12 * sum(p.numel() for p in build_model(MODEL).parameters())


if __name__ == "__main__":
    main()
