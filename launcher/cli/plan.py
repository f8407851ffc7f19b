"""`swin-moe plan`: does a run fit, how fast is it, what limits it, and which layout is the best."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from launcher.cli.preflight import no_run
from launcher.config.load import ConfigError, load_config
from launcher.config.schema import RunConfig
from launcher.console.arguments import Commands, add_command, positive
from launcher.plan.base.hardware import Hardware, load_hardware
from launcher.plan.search.simulate import MTBF_GPU_H, Failures, parse_range
from launcher.process.local_launcher import is_parent, run_local
from launcher.process.run_rank import RankContext, run_rank
from launcher.validation.place_rules import check_output_file
from launcher.validation.rules import problems
from launcher.validation.run_rules import run_errors
from parallel.ranks.rank import Ranks

HELP = """\
examples:
  swin-moe plan CONFIG --nodes 4 --gpus-per-node 8 --gpu h100-80
  swin-moe plan CONFIG --nodes 4 --gpus-per-node 8 --gpu a100-40 --search     the best layouts
  swin-moe plan CONFIG --gpu a100-80 --simulate 8..4096 --out plans            weak scaling, failures, charts
  swin-moe plan --calibrate here.yaml --nproc 2                                a profile of this machine
  swin-moe plan CONFIG --nodes 1 --gpus-per-node 2 --gpu here.yaml

Nothing is started and no data is needed. --gpu: a100-40, a100-80, h100-80, h200, b200 (configs/hardware/), or
a YAML file of such figures. What is modelled, and how far off it is: docs/planner_time.md, docs/planner.md.
"""


def add_parser(subparsers: Commands) -> None:
    """Add `plan` to the launcher's `subparsers`."""
    text = "memory, time and layout of a run, before it is queued"
    parser = add_command(subparsers, "plan", text, HELP)
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("config", nargs="?", metavar="CONFIG", help="a YAML file, or the name of a recipe")
    add("overrides", nargs="*", metavar="a.b=value", help="options to override")
    add("--nodes", type=positive, default=1, metavar="N", help="of the cluster (default %(default)s)")
    add("--gpus-per-node", type=positive, metavar="G", help="default: as the profile has them")
    add("--gpu", metavar="NAME|FILE", help="a hardware profile")
    add("--search", action="store_true", help="try every layout, fastest first")
    add("--top", type=positive, default=10, metavar="K", help="layouts to print (default %(default)s)")
    add("--simulate", metavar="8..4096", help="weak scaling over so many GPUs, powers of two")
    add("--out", type=Path, metavar="DIR", help="of --simulate: charts as PNG and SVG")
    add("--mtbf", type=_above_zero, default=MTBF_GPU_H, metavar="H", help="GPU-hours a failure (Llama 3's)")
    add("--save", type=_above_zero, default=30.0, metavar="S", help="seconds of a checkpoint (default 30)")
    add("--restart", type=_above_zero, default=300.0, metavar="S", help="seconds of a restart (default 300)")
    add("--price-per-gpu-hour", type=_above_zero, metavar="P", help="prints the cost of a million images")
    add("--json", type=Path, metavar="FILE", help="write all values there")
    add("--calibrate", type=Path, metavar="OUT.yaml", help="measure this machine, and write a profile")
    add("--nproc", type=positive, default=1, help="of --calibrate: ranks to start (default %(default)s)")


def _above_zero(text: str) -> float:
    """A number above 0.

    Raises:
        ArgumentTypeError: it is something else.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0 (got {text!r})")
    return value


def run(args: argparse.Namespace, arguments: list[str]) -> int:
    """Carry out `plan`: the exit status."""
    if args.calibrate is not None:
        return _calibrate(args, arguments)
    if args.config is None or args.gpu is None:
        raise ConfigError(
            "plan needs CONFIG and --gpu NAME|FILE, such as --gpu a100-80; or --calibrate OUT.yaml alone"
        )
    if args.json:
        check_output_file("--json", args.json)
    if args.simulate and args.out:
        _make_directory(args.out)
    hardware, config = load_hardware(args.gpu), load_config(args.config, args.overrides)
    counts = parse_range(args.simulate) if args.simulate else []
    nodes = [args.gpus_per_node or hardware.ranks_per_node] * args.nodes
    hardware.peak(config.train.precision)
    if (counts or args.search) and (errors := run_errors(config)):
        raise ConfigError("\n".join(["no layout can be had:", *(f"  {error}" for error in errors)]))
    record: dict[str, Any] = {}
    if counts:
        record |= _simulate(args, config, hardware, counts)
    elif args.search:
        record |= _search(args, config, hardware, nodes)
    else:
        record |= _one(args, config, hardware, nodes)
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0


def _one(args: argparse.Namespace, config: RunConfig, hardware: Hardware, nodes: list[int]) -> dict[str, Any]:
    """The layout that is configured."""
    _check(config, nodes)
    from launcher.plan.memory.estimate import predict_memory
    from launcher.plan.search import report, values
    from launcher.plan.time.estimate import predict_time

    memory = predict_memory(config, nodes, hardware.device)
    time = predict_time(config, nodes, hardware)
    fits = memory.peak_bytes <= hardware.memory_bytes
    advice = report.advice(config, nodes, hardware, time, fits)
    print(f"{args.config} on {len(nodes)} x {nodes[0]} {hardware.name}, {config.train.precision}")
    print("\n".join(report.memory_lines(memory, hardware)))
    print("\n".join(report.time_lines(time, sum(nodes), args.price_per_gpu_hour)))
    print(f"limited by {time.limit}; change first: {advice}" if fits else f"change first: {advice}")
    return values.as_json(time, memory, hardware, sum(nodes), args.price_per_gpu_hour, advice)


def _search(
    args: argparse.Namespace, config: RunConfig, hardware: Hardware, nodes: list[int]
) -> dict[str, Any]:
    from launcher.plan.search import tables, values
    from launcher.plan.search.candidate import Predictor
    from launcher.plan.search.search import search

    candidates = search(config, nodes, Predictor.of(config, hardware), say=_say, most=args.top)
    print(f"{args.config} on {len(nodes)} x {nodes[0]} {hardware.name}, {config.train.precision}")
    print("\n".join(tables.search_lines(candidates, args.top)))
    if problem := tables.no_layout(candidates):
        raise ConfigError(problem)
    return {"hardware": hardware.name, "layouts": [values.candidate_json(c) for c in candidates]}


def _simulate(
    args: argparse.Namespace, config: RunConfig, hardware: Hardware, counts: list[int]
) -> dict[str, Any]:
    from launcher.plan.search import tables, values
    from launcher.plan.search.simulate import simulate

    failures = Failures(mtbf_gpu_h=args.mtbf, save_s=args.save, restart_s=args.restart)
    points = simulate(config, counts, hardware, failures)
    title = f"{args.config} on {hardware.name}, {config.train.precision}"
    print(title)
    print("\n".join(tables.simulation_lines(points)))
    if args.simulate and args.out:
        from launcher.plan.search.charts import draw

        print(f"charts: {', '.join(map(str, draw(points, title, args.out)))}")
    return {"hardware": hardware.name, "points": [values.point_json(p) for p in points]}


def _calibrate(args: argparse.Namespace, arguments: list[str]) -> int:
    if args.calibrate.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--calibrate ({args.calibrate}) must be a file that ends in .yaml")
    check_output_file("--calibrate", args.calibrate)
    if is_parent(args.nproc):
        return run_local(args.nproc, arguments)

    def work(ranks: Ranks, device: torch.device, context: RankContext) -> None:
        from launcher.plan.time.calibrate import measure, write

        hardware = measure(device, _say if ranks.rank == 0 else lambda _: None)
        if ranks.rank == 0:
            write(hardware, args.calibrate)
            print(f"{args.calibrate}: a profile of {hardware.name}; use it with --gpu {args.calibrate}")

    return run_rank(no_run(), work, args.runtime)


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--out ({directory}) cannot be written: {error.strerror}; choose another"
        ) from None


def _check(config: RunConfig, nodes: list[int]) -> None:
    world_size = sum(nodes)
    if errors := problems(config, world_size, nodes, data=False):
        raise ConfigError(
            "\n".join([f"this run cannot be had on {world_size} ranks:", *(f"  {e}" for e in errors)])
        )


def _say(text: str) -> None:
    """How far it is, where somebody looks on."""
    if sys.stderr.isatty():
        print(f"\r{text:<60}", end="", file=sys.stderr, flush=True)
