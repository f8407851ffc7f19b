"""Steps predicted by `swin-moe plan` against steps that are taken: python -m benchmarks.plan_time

Layouts of one Swin-MoE of this size on 1, 2 and 4 gloo ranks of this machine, one thread each, on random
pictures: ZeRO 0 to 3, ep 1, 2 and 4, with and without activation checkpointing. On each number of ranks the
machine is calibrated as `plan --calibrate` does it, before, between and after the layouts, whose steps are
taken in turns; what is predicted and what is measured are medians of these rounds, wall clock. Nothing is
fitted to a step. With more ranks than cores a rank has a share of a core, in calibration and in steps alike.

`--clock cpu` is for a machine with other load: steps and collectives in processor seconds, mean of the ranks,
times their share of a core; waiting is not in it. The default is the clock on the wall.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

from tests.distributed import run_on_ranks

Row = dict[str, Any]
# ranks -> (ZeRO stage, ep, checkpointing)
LAYOUTS = {
    1: [(0, 1, 0), (1, 1, 1), (2, 1, 0)],
    2: [(0, 1, 0), (1, 2, 0), (1, 2, 1), (2, 2, 0), (3, 1, 1)],
    4: [(0, 4, 0), (1, 4, 0), (2, 2, 1), (3, 4, 0)],
}
CLOSE, ENOUGH = 0.25, 10
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**31),
}  # as launcher/process/local_launcher.py
MICRO, LIMIT_S = 8, 3000


def config_of(stage: int, ep_size: int, every: int, ranks: int) -> Any:
    """One layout of the run."""
    from launcher.config.schema import DataConfig, OptimConfig, ParallelConfig, RunConfig, TrainConfig
    from swin_moe.config import ModelConfig
    from swin_moe.moe_config import MoEConfig

    model = ModelConfig(
        image_size=96,
        num_classes=100,
        embed_dim=64,
        depths=(1, 2, 4),
        num_heads=(2, 4, 8),
        window_size=6,
        position_bias="log_cpb",
        drop_path_rate=0.1,
        activation_checkpoint_every=every,
        moe=MoEConfig(blocks=((), (1,), (1, 3)), num_experts=8, routing_group_images=8, expert_dropout=0.0),
    )
    return RunConfig(
        run_dir="",
        model=model,
        data=DataConfig(train="", val=""),
        optim=OptimConfig(),
        train=TrainConfig(global_batch_size=MICRO * ranks, micro_batch_size=MICRO),
        parallel=ParallelConfig(ep_size=ep_size, zero_stage=stage),  # type: ignore[arg-type]
    )


class TimedTraining:
    """Steps of one layout."""

    def __init__(self, config: Any, ranks: int) -> None:
        from launcher.tasks.param_groups import parameter_groups
        from launcher.training.builders import engine_options, run_mesh
        from parallel.zero.engine import Engine
        from swin_moe.backbone.model import build_model

        self.config, parallel = config, config.parallel
        mesh = run_mesh(parallel, [ranks])
        model = build_model(
            config.model,
            mesh=mesh,
            sharded=parallel.zero_stage == 3,
            exchange=parallel.expert_exchange,
        )
        with contextlib.redirect_stdout(io.StringIO()):
            self.engine = Engine(
                model, parameter_groups(model, config.optim), mesh, engine_options(config, 1)
            )
        self.engine.train()

    def step(self) -> tuple[float, float]:
        """Wall and processor seconds of a step, from when all ranks are there to when all are done."""
        import torch
        import torch.distributed as dist

        from swin_moe.heads.classification import classification_loss
        from swin_moe.random.keyed import sample_keys

        images = torch.randn(MICRO, 3, *self.config.model.image_sides)
        labels = torch.randint(100, (MICRO,))
        keys = sample_keys(0, torch.arange(MICRO))
        dist.barrier()
        began = time.perf_counter(), time.process_time()
        output = self.engine(images, keys)
        self.engine.backward(classification_loss(output.logits, labels, 0.1) + output.aux_loss)
        self.engine.step(1e-4)
        dist.barrier()
        return time.perf_counter() - began[0], time.process_time() - began[1]


def measured(ranks: int, rounds: int, steps: int, clock: str) -> list[Row]:
    """On one rank: calibrations and steps in turns."""
    import torch

    from launcher.plan.time.calibrate import measure
    from launcher.plan.time.compute_cost import ComputeCost, compute_cost
    from launcher.plan.time.estimate import predict_time
    from parallel.ranks.collectives import gather_objects

    device, share = torch.device("cpu"), max(1.0, ranks / (os.cpu_count() or 1))
    configs = [config_of(*layout, ranks) for layout in LAYOUTS[ranks]]
    trainings = [TimedTraining(config, ranks) for config in configs]
    for training in trainings:
        training.step()
        training.step()
    taken: list[list[tuple[float, float]]] = [[] for _ in configs]
    profiles = [measure(device, processor=clock == "cpu")]
    for _ in range(rounds):
        for times, training in zip(taken, trainings, strict=True):
            times += [training.step() for _ in range(steps)]
        profiles.append(measure(device, processor=clock == "cpu"))
    work = compute_cost(configs[0], profiles[0]).work
    rows = []
    for layout, config, times in zip(LAYOUTS[ranks], configs, taken, strict=True):
        predictions = [
            predict_time(config, [ranks], p, ComputeCost(work=work, hardware=p, precision="fp32"))
            for p in profiles
        ]
        predicted = sorted(predictions, key=lambda found: found.step_s)[len(predictions) // 2]
        wall_s = statistics.median(wall for wall, _ in times)
        cpu_s = statistics.fmean(gather_objects(statistics.median(cpu for _, cpu in times))) * share
        rows.append(
            {
                "ranks": ranks,
                "zero": layout[0],
                "ep": layout[1],
                "checkpointing": layout[2],
                "measured_s": cpu_s if clock == "cpu" else wall_s,
                "measured_wall_s": wall_s,
                "measured_cpu_s": cpu_s,
                "predicted_s": predicted.step_s,
                "groups_s": predicted.groups,
                "load": os.getloadavg()[0],
            }
        )
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    parser.add_argument("--rounds", type=int, default=3, help="of calibrating and stepping (default 3)")
    parser.add_argument("--steps", type=int, default=3, help="of a layout in each round (default 3)")
    parser.add_argument("--ranks", type=int, choices=LAYOUTS, help="only so many")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    args = parser.parse_args()
    os.environ.update(MALLOC)  # of the ranks, which are new processes
    rows: list[Row] = []
    for ranks in [args.ranks] if args.ranks else LAYOUTS:
        rows += run_on_ranks(measured, ranks, ranks, args.rounds, args.steps, args.clock, timeout_s=LIMIT_S)[
            0
        ]
        print("\n".join(line(row) for row in rows[-len(LAYOUTS[ranks]) :]), flush=True)
    close = sum(abs(row["predicted_s"] / row["measured_s"] - 1) <= CLOSE for row in rows)
    print(f"within {CLOSE:.0%}: {close} of {len(rows)} (goal: {ENOUGH}); load {os.getloadavg()[0]:.1f}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


def line(row: Row) -> str:
    """A row as text."""
    off = row["predicted_s"] / row["measured_s"] - 1
    return (
        f"{row['ranks']} ranks, ZeRO {row['zero']}, ep {row['ep']}, checkpointing "
        f"{'on ' if row['checkpointing'] else 'off'}: measured {row['measured_s'] * 1e3:8.1f} ms, predicted "
        f"{row['predicted_s'] * 1e3:8.1f} ms, {off:+.0%} (load {row['load']:.1f})"
    )


if __name__ == "__main__":
    main()
