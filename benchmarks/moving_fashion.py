"""What a model of clips sees in moving garments: python benchmarks/moving_fashion.py --out runs/motion

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

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from recipes import Runs, run_options
from scipy.stats import binomtest
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
        "p of 1/8": binomial_p(one == labels, 1 / DIRECTIONS),
        "shuffled": share(right),
        "its axis": share(axis),
        "of these right": share(right[axis]),
        "p of 1/2": binomial_p(right[axis], 0.5),
        "reversed, opposite": share(back == opposite),
        "reversed, same": share(back == labels),
    }


def share(hits: Tensor) -> float:
    """The mean of (N,) bool."""
    return hits.double().mean().item()


def binomial_p(hits: Tensor, chance: float) -> float:
    """Of as many draws as (N,) bool with this chance, the probability of a result no likelier than theirs."""
    return float(binomtest(int(hits.sum()), len(hits), chance).pvalue)


def main() -> None:
    """Train what is missing, evaluate it, and print a row for each run."""
    parser = run_options(__doc__)
    parser.add_argument("--arms", default=",".join(ARMS))
    args = parser.parse_args()
    runs = Runs.of(args)
    choose_accelerator()
    rows: list[dict[str, Any]] = []
    for arm in args.arms.split(","):
        for seed in runs.seeds:
            wall_s = runs.train("motion", seed, *ARMS[arm], name=arm)["wall_s"]
            found = figures(answers(runs.path(arm, seed), seed))
            rows.append({"arm": arm, "seed": seed, "minutes": wall_s / 60, **found})
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
