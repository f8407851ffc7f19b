"""What the recipes on Fashion-MNIST give: python -m benchmarks.recipes --out runs/recipes [--nproc 2]

Trains and evaluates configs/recipes/ with the command line that users have, a run directory a seed, and
prints the four comparisons of docs/recipes.md from the runs' summaries. Runs that have finished are not
trained again. Needs data/fashion-mnist (`swin-moe shards pack`) and data/fashion-2000 (`swin-moe shards
split`, see configs/recipes/fashion_finetune.yaml).
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

RECIPES = Path(__file__).parents[1] / "configs" / "recipes"
FACTORS = (0.5, 0.625, 1.0, 1.25)
Row = tuple[str, list[float]]  # what, and its figure for each seed


class Runs:
    """The runs below one directory, trained where they are asked for."""

    def __init__(self, out: Path, nproc: int, seeds: Sequence[int], more: Sequence[str]) -> None:
        self.out, self.nproc, self.seeds, self.more = out, nproc, seeds, more
        self.longest_s = 0.0

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Runs":
        """Those of the options of `run_options`, below a directory that is made now."""
        args.out.mkdir(parents=True, exist_ok=True)
        return cls(args.out, args.nproc, args.seeds, args.overrides)

    def train(self, recipe: str, seed: int, *options: str, name: str = "") -> dict[str, Any]:
        """The summary of a run of a recipe, trained now unless it is there."""
        run = self.path(name or recipe, seed)
        if not (run / "summary.json").exists():
            line = [str(RECIPES / f"fashion_{recipe}.yaml"), "--nproc", str(self.nproc), "--resume", "auto"]
            command("train", *line, f"run_dir={run}", f"seed={seed}", *options, *self.more)
        summary: dict[str, Any] = json.loads((run / "summary.json").read_text())
        self.longest_s = max(self.longest_s, summary["wall_s"])
        return summary

    def start(self, recipe: str, seed: int, *options: str) -> list[str]:
        """The options that start a run from the weights of another."""
        file = self.out / f"{recipe}_{seed}.safetensors"
        if not file.exists():
            command("convert", str(self.path(recipe, seed)), str(file), "--to", "native", *options)
        return [f"train.pretrained={file}"]

    def sweep(self, recipe: str, seed: int, *, prioritized: bool) -> dict[float, float]:
        """Top-1 of a run by capacity factor, with its tokens in one order or the other."""
        run = self.path(recipe, seed)
        kept = run / f"sweep_{'prioritized' if prioritized else 'plain'}.json"
        if not kept.exists():
            factors = ",".join(map(str, FACTORS))
            order = f"model.moe.batch_prioritized={str(prioritized).lower()}"
            command("eval", str(run), "--nproc", str(self.nproc), "--sweep-capacity", factors, order)
            next(run.glob("eval/*/sweep.json")).rename(kept)
        return {row["capacity_factor"]: row["top1"] for row in json.loads(kept.read_text())["rows"]}

    def path(self, name: str, seed: int) -> Path:
        """A run directory."""
        return self.out / f"{name}_{seed}"


def command(*line: str) -> None:
    """One command of ours; its output goes to standard error."""
    print("swin-moe", *line, file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "launcher", *line], check=True, stdout=sys.stderr)


def simmim(runs: Runs) -> list[Row]:
    """(a) Pre-training without labels, and 2,000 labels with and without it."""
    pretrained = [runs.train("simmim", seed) for seed in runs.seeds]
    starts = [
        [*runs.start("simmim", seed, "--head", "replace"), "train.pretrained_head=replace"]
        for seed in runs.seeds
    ]
    tuned = [runs.train("finetune", seed, *start) for seed, start in zip(runs.seeds, starts, strict=True)]
    scratch = [runs.train("finetune", seed, name="scratch") for seed in runs.seeds]
    return [
        ("reconstruction loss before", [run["first_loss"] for run in pretrained]),
        ("reconstruction loss after", [run["loss"] for run in pretrained]),
        ("its factor", [run["first_loss"] / run["loss"] for run in pretrained]),
        ("2,000 labels from scratch, top-1", [run["top1"] for run in scratch]),
        ("2,000 labels after SimMIM, top-1", [run["top1"] for run in tuned]),
        ("gain", [a["top1"] - b["top1"] for a, b in zip(tuned, scratch, strict=True)]),
    ]


def experts(runs: Runs) -> list[Row]:
    """(b) Eight experts against the dense model, as many steps and active FLOPs."""
    rows: list[Row] = []
    for epochs in (4, 8):  # 4 is the recipes' own
        length, name = (f"train.duration={epochs} epochs",), "" if epochs == 4 else f"_{epochs}"
        dense = [runs.train("dense", seed, *length, name=f"dense{name}") for seed in runs.seeds]
        moe = [runs.train("moe", seed, *length, name=f"moe{name}") for seed in runs.seeds]
        for figure, sign in (("top1", 1), ("loss", -1)):
            gains = [sign * (a[figure] - b[figure]) for a, b in zip(moe, dense, strict=True)]
            rows += [
                (f"{epochs} epochs, dense, {figure}", [run[figure] for run in dense]),
                (f"{epochs} epochs, MoE, {figure}", [run[figure] for run in moe]),
                (f"{epochs} epochs, gain in {figure}", gains),
            ]
    return rows


def upcycling(runs: Runs) -> list[Row]:
    """(c) The dense model grown into experts, beside the same dense model trained on for as long."""
    dense = [runs.train("dense", seed) for seed in runs.seeds]
    grown = [runs.train("upcycled", seed, *runs.start("dense", seed)) for seed in runs.seeds]
    alone = ("model.moe=null", "train.upcycle_noise=null")
    longer = [runs.train("upcycled", s, *runs.start("dense", s), *alone, name="longer") for s in runs.seeds]
    return [
        ("dense, its end, top-1", [run["top1"] for run in dense]),
        ("upcycled, its start, top-1", [run["first_top1"] for run in grown]),
        ("upcycled, its end, top-1", [run["top1"] for run in grown]),
        ("dense trained on as long, top-1", [run["top1"] for run in longer]),
        ("upcycled over its start", [run["top1"] - run["first_top1"] for run in grown]),
        (
            "upcycled over dense trained on",
            [a["top1"] - b["top1"] for a, b in zip(grown, longer, strict=True)],
        ),
    ]


def priority(runs: Runs) -> list[Row]:
    """(d) Which tokens a full expert leaves out: the last ones, or those of the lowest scores."""
    for seed in runs.seeds:
        runs.train("moe", seed)
    plain = [runs.sweep("moe", seed, prioritized=False) for seed in runs.seeds]
    first = [runs.sweep("moe", seed, prioritized=True) for seed in runs.seeds]
    rows: list[Row] = []
    for factor in FACTORS:
        rows += [
            (f"capacity {factor:g}, plain order, top-1", [found[factor] for found in plain]),
            (f"capacity {factor:g}, batch-prioritised, top-1", [found[factor] for found in first]),
        ]
    gains = [a[0.5] - b[0.5] for a, b in zip(first, plain, strict=True)]
    return [*rows, ("gain at 0.5", gains)]


PARTS: dict[str, Callable[[Runs], list[Row]]] = {
    "simmim": simmim,
    "experts": experts,
    "upcycling": upcycling,
    "priority": priority,
}


def run_options(description: str | None) -> argparse.ArgumentParser:
    """The options of a script that trains what is missing and reads it; `Runs.of` takes them."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--nproc", type=int, default=2)
    parser.add_argument("--seeds", type=_numbers, default="0,1,2")
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*", help="of every training, such as train.micro_batch_size=128")
    return parser


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def main() -> None:
    """Train what is missing, and print every comparison as soon as it stands."""
    parser = run_options(__doc__)
    parser.add_argument("--parts", default=",".join(PARTS))
    args = parser.parse_args()
    runs = Runs.of(args)
    found: dict[str, list[Row]] = {}
    for part in args.parts.split(","):
        found[part] = PARTS[part](runs)
        print(PARTS[part].__doc__)
        for name, figures in found[part]:
            show(name, figures)
    print(f"longest run: {runs.longest_s / 60:.1f} minutes on {args.nproc} ranks")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


def show(name: str, figures: Sequence[float]) -> None:
    """One line: mean and deviation over the seeds, and each of them."""
    spread = f" +- {stdev(figures):.4f}" if len(figures) > 1 else ""
    print(f"  {name:<44} {mean(figures):.4f}{spread}  ({', '.join(f'{figure:.4f}' for figure in figures)})")


if __name__ == "__main__":
    main()
