"""What a model of clips sees in moving garments: python -m benchmarks.moving_fashion --out runs/motion

Trains configs/recipes/fashion_motion.yaml with the command line that users have, a run directory a seed, in
three arms: dense; with experts in the last stage; and a model of images, whose clips have one frame. Each is
then evaluated on the validation videos, whose clips are also changed:

    whole      as they are
    one frame  every frame is the first one, so that nothing moves
    shuffled   the frames in a random order, of which each clip has its own
    reversed   from the last frame to the first, compared with the opposite direction

The label is one of 8 directions, so that chance is 12.5 %. A frame alone is distributed alike for all of
them. Shuffled frames still show the axis of the motion: the label is one of two directions then, and no model
can choose between them better than a coin. Two-sided binomial tests say whether the hits agree with this.
Runs that have finished are not trained again. Needs data/moving-fashion (`swin-moe shards pack`).
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from launcher.console.columns import aligned
from launcher.evaluation.loop import eval_stream
from launcher.predict.answerer import Asked
from launcher.predict.task_answerer import open_task
from parallel.ranks.dims import ParallelDims
from parallel.ranks.init import choose_accelerator
from parallel.ranks.mesh import Mesh
from swin_moe.random.keyed import sample_keys

DIRECTIONS = 8
EXPERTS = "model.moe={blocks: [[], [0]], num_experts: 8, top_k: 1, routing_group_images: 16}"
ARMS: Mapping[str, tuple[str, ...]] = {
    "dense": (),
    "experts": (EXPERTS,),
    "image": ("model.frames=1", "model.patch_frames=1"),
}


class Answers(NamedTuple):
    """What a model says of N videos: (N,) int64 each."""

    predicted: Tensor
    labels: Tensor


def repeated(clips: Tensor, generator: torch.Generator) -> Tensor:
    """The first frame in the place of all: (B, D, ...) -> (B, D, ...)."""
    return clips[:, :1].expand_as(clips)


def shuffled(clips: Tensor, generator: torch.Generator) -> Tensor:
    """The frames of each clip in an order of its own."""
    order = torch.rand(clips.shape[:2], generator=generator).argsort(1)
    return torch.stack([clip[row] for clip, row in zip(clips, order, strict=True)])


CHANGES: Mapping[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "whole": lambda clips, generator: clips,
    "one frame": repeated,
    "shuffled": shuffled,
    "reversed": lambda clips, generator: clips.flip(1),
}


def train(run: Path, seed: int, nproc: int, options: Sequence[str]) -> None:
    """Train a run unless it has finished; its output goes to standard error."""
    if (run / "summary.json").exists():
        return
    line = ["train", "fashion_motion", "--nproc", str(nproc), "--resume", "auto", f"run_dir={run}"]
    line += [f"seed={seed}", *options]
    print("swin-moe", *line, file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "launcher", *line], check=True, stdout=sys.stderr)


@torch.no_grad()
def answers(run: Path, seed: int) -> dict[str, Answers]:
    """The answers to all validation videos by change."""
    answerer = open_task(run, ema=False, precision="fp32", device="cpu", asked=Asked())
    task, generator = answerer.task, torch.Generator().manual_seed(seed)
    found: dict[str, list[Answers]] = {name: [] for name in CHANGES}
    with eval_stream(answerer.config, Mesh(dims=ParallelDims()), grouped=False) as stream:
        for batch in stream:
            counted, keys = batch.weights > 0, sample_keys(0, batch.positions)
            for name, change in CHANGES.items():
                clips = change(batch["clip"][:, 0], generator)[:, None]
                inputs = task.eval_inputs(replace(batch, tensors={**batch.tensors, "clip": clips}))
                prediction: Any = task.predict(answerer.model, inputs, keys, answerer.call)
                best = prediction.logits.argmax(1)
                found[name].append(Answers(best[counted], batch["label"][counted]))
    return {name: Answers(*map(torch.cat, zip(*parts, strict=True))) for name, parts in found.items()}


def figures(found: Mapping[str, Answers]) -> dict[str, float]:
    """Shares and p-values of one run, see the module."""
    (whole, labels), (one, _), (mixed, _), (back, _) = (found[name] for name in CHANGES)
    opposite = (labels + DIRECTIONS // 2) % DIRECTIONS
    axis = mixed % (DIRECTIONS // 2) == labels % (DIRECTIONS // 2)
    right = mixed == labels
    return {
        "top1": share(whole == labels),
        "one frame": share(one == labels),
        "p of 1/8": binomial_p(int((one == labels).sum()), len(labels), 1 / DIRECTIONS),
        "shuffled": share(right),
        "its axis": share(axis),
        "of these right": share(right[axis]),
        "p of 1/2": binomial_p(int(right.sum()), int(axis.sum()), 0.5),
        "reversed, opposite": share(back == opposite),
        "reversed, same": share(back == labels),
    }


def share(hits: Tensor) -> float:
    """The mean of (N,) bool."""
    return hits.double().mean().item()


def binomial_p(hits: int, count: int, chance: float) -> float:
    """Of `count` draws with this chance, the probability of a result that is no more likely than `hits`."""
    logs = [
        math.lgamma(count + 1)
        - math.lgamma(k + 1)
        - math.lgamma(count - k + 1)
        + k * math.log(chance)
        + (count - k) * math.log1p(-chance)
        for k in range(count + 1)
    ]
    return min(1.0, sum(math.exp(one) for one in logs if one <= logs[hits] + 1e-9))


def main() -> None:
    """Train what is missing, evaluate it, and print a row for each run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--nproc", type=int, default=2)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*", help="of every training, such as data.val=DIR/val")
    args = parser.parse_args()
    choose_accelerator()
    rows: list[dict[str, Any]] = []
    for arm in args.arms.split(","):
        for seed in map(int, args.seeds.split(",")):
            run = args.out / f"{arm}_{seed}"
            train(run, seed, args.nproc, [*ARMS[arm], *args.overrides])
            wall_s = json.loads((run / "summary.json").read_text())["wall_s"]
            rows.append({"arm": arm, "seed": seed, "minutes": wall_s / 60, **figures(answers(run, seed))})
    print(
        "\n".join(aligned([list(rows[0]), *([shown(v) for v in row.values()] for row in rows)], right=True))
    )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


def shown(value: Any) -> str:
    """A cell of the table."""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
