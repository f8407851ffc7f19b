"""How evenly each router loads its experts: every router trains the demo, and its records are read.

    python benchmarks/routers.py                                 # an epoch each on two processes: ten minutes
    python benchmarks/routers.py --duration "20 steps" --warmup "5 steps" --only sigmoid
    python benchmarks/routers.py --json routers.json

The task is configs/demo_cpu.yaml, with the same seed for all; `make demo` packs its shards. A load is what
the tokens wanted, before capacity drops any, and its figure is the busiest expert's over the mean: 1 is
even, and 8, the number of experts, is collapse. `train` is the mean over the last 50 steps and the layers,
`eval` over the layers at the end, `dropped` the share of all choices in the last 50 steps. Expert choice and
soft are even by construction: what they leave out are tokens, not experts. Runs live in a temporary
directory and are deleted.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean
from typing import Any

from launcher.config.load import load_config
from launcher.metrics.records import read_records
from launcher.validation.rules import check

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "demo_cpu.yaml"
LAST_STEPS = 50
ROUTERS: dict[str, tuple[str, ...]] = {  # options below model.moe
    "linear, no loss": ("balance_loss=none",),
    "linear, gshard": ("balance_loss=gshard",),
    "linear, importance_load": ("balance_loss=importance_load",),
    "linear, importance_load, compat tutel": ("balance_loss=importance_load", "compat=tutel"),
    "cosine, importance_load": ("router=cosine", "balance_loss=importance_load"),
    "sigmoid, bias fixed": ("router=sigmoid", "bias_update_rate=0.0"),
    "sigmoid, bias balancing": ("router=sigmoid",),
    # as many rows as there are choices, in evaluation too: 0 would be no number of tokens to choose
    "expert_choice": ("router=expert_choice", "capacity_factor=1.0", "eval_capacity_factor=1.0"),
    "soft": ("router=soft", "slots_per_expert=2"),  # as many slots as the last stage has tokens
    "hash": ("router=hash",),
    "random": ("router=random",),
}
Row = dict[str, Any]


def overrides(options: tuple[str, ...], arguments: argparse.Namespace) -> list[str]:
    """What a run changes of the demo."""
    return [
        *(f"data.{split}={ROOT}/data/fashion-mnist/{split}" for split in ("train", "val")),
        f"parallel.ep_size={arguments.nproc}",
        f"train.duration={arguments.duration}",
        f"optim.warmup={arguments.warmup}",
        "train.eval_batch_size=256",  # whole routing groups, which expert choice has in evaluation too
        *("train.eval_every=null", "train.moe_load_every=null", "checkpoint.every=null"),
        *(f"model.moe.{option}" for option in options),
    ]


def train(options: list[str], nproc: int) -> list[dict[str, Any]]:
    """The records of one run, which leaves nothing behind."""
    with tempfile.TemporaryDirectory() as directory:
        line = [sys.executable, "-m", "launcher", "train", str(CONFIG), "--nproc", str(nproc)]
        line += [f"run_dir={directory}/run", *options]
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(line)}\n{done.stderr}")
        return read_records(Path(directory) / "run" / "metrics.jsonl")


def figures(records: list[dict[str, Any]]) -> Row:
    """One row of the table."""
    last = [record for record in records if "moe" in record][-LAST_STEPS:]
    evaluation = records[-1]
    loads = [layer["load_max_over_mean"] for record in last for layer in record["moe"].values()]
    shares = evaluation["eval_expert_load"].values()
    return {
        "train_max_over_mean": fmean(loads),
        "eval_max_over_mean": fmean(max(layer) * len(layer) for layer in shares),
        "dropped_fraction": fmean(record["dropped_fraction"] for record in last),
        "top1": evaluation["eval_top1"],
        "train_s": evaluation["elapsed_s"],
    }


def render(rows: list[Row]) -> str:
    """The table, in Markdown."""
    lines = ["| router | max/mean load, train | eval | dropped | top-1 |", "|---|---|---|---|---|"]
    return "\n".join([*lines, *map(_line, rows)])


def _line(row: Row) -> str:
    loads = f"{row['train_max_over_mean']:.2f} | {row['eval_max_over_mean']:.2f}"
    return f"| {row['router']} | {loads} | {row['dropped_fraction']:.1%} | {row['top1']:.1%} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--warmup", default="100 steps", help="of each run (default: %(default)s)")
    parser.add_argument("--duration", default="1 epochs", help="of each run (default: %(default)s)")
    parser.add_argument("--nproc", type=int, default=2, help="ranks, and expert-parallel ranks (default: 2)")
    parser.add_argument("--only", default="", help="the routers whose names hold this text")
    parser.add_argument("--json", type=Path, help="write the rows to this file, too")
    arguments = parser.parse_args()

    chosen = {name: overrides(ROUTERS[name], arguments) for name in ROUTERS if arguments.only in name}
    for options in chosen.values():  # all of them before any
        check(load_config(CONFIG, options), arguments.nproc)
    rows: list[Row] = []
    for i, (name, options) in enumerate(chosen.items(), start=1):
        start_s = time.monotonic()
        rows.append({"router": name, **figures(train(options, arguments.nproc))})
        took = f"{i}/{len(chosen)}, {time.monotonic() - start_s:.0f} s"
        print(f"{_line(rows[-1])}  {took}", file=sys.stderr, flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(render(rows))


if __name__ == "__main__":
    main()
