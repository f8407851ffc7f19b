"""`swin-moe plan`: does a run fit, how fast is it, what limits it, and which layout is the best."""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from launcher.cli.preflight import no_run
from launcher.config.load import ConfigError, load_config
from launcher.config.schema import RunConfig
from launcher.plan.base.hardware import Hardware, load_hardware
from launcher.plan.search.failures import Failures
from launcher.plan.time.published import bound_line
from launcher.process.local_launcher import is_parent, run_local
from launcher.process.run_rank import RankContext, run_rank
from launcher.validation.place_rules import check_output_file
from launcher.validation.rules import problems
from launcher.validation.run_rules import run_errors
from parallel.ranks.rank import Ranks

if TYPE_CHECKING:
    from launcher.plan.search.run_cost import Terms


def parse_range(text: str) -> list[int]:
    """Powers of two, such as 8..4096.

    Raises:
        ConfigError: it is no such range.
    """
    first, dots, last = text.partition("..")
    if not dots or not first.isdecimal() or not last.isdecimal() or not 1 <= int(first) <= int(last):
        raise ConfigError(f"--simulate ({text}) must be FIRST..LAST numbers of GPUs, such as 8..4096")
    low, high = int(first), int(last)
    if low & (low - 1) or high & (high - 1):
        near = [1 << round(math.log2(n)) for n in (low, high)]
        raise ConfigError(f"--simulate ({text}) goes by powers of two: {near[0]}..{near[1]} would do")
    return [low << i for i in range(int(math.log2(high // low)) + 1)]


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
    nodes = [args.gpus_per_node or hardware.ranks_per_node] * (args.nodes or 1)
    hardware.peak(config.train.precision)
    if (counts or args.search) and (errors := run_errors(config)):
        raise ConfigError("\n".join(["no layout can be had:", *(f"  {error}" for error in errors)]))
    run_mode = _simulate if counts else _search if args.search else _one
    record = {"hardware": hardware.name, **run_mode(args, config, hardware, nodes)}
    print(bound_line(hardware.device))
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0


def _one(args: argparse.Namespace, config: RunConfig, hardware: Hardware, nodes: list[int]) -> dict[str, Any]:
    """The layout that is configured."""
    _check(config, nodes)
    from launcher.plan.search import advice, report, values
    from launcher.plan.search.candidate import Predictor
    from launcher.plan.search.run_cost import run_cost_lines

    predictor, terms = Predictor.of(config, hardware), _terms(args, config)
    candidate = predictor.predict(config, nodes)
    found = advice.advise(candidate, predictor)
    print(_title(args, config, hardware, nodes))
    print("\n".join(report.layout_lines(candidate, hardware)))
    print("\n".join(run_cost_lines(candidate, terms, hardware.device)))
    print("\n".join(advice.advice_lines(candidate, found, predictor)))
    return values.layout_json(candidate, hardware, terms, found)


def _search(
    args: argparse.Namespace, config: RunConfig, hardware: Hardware, nodes: list[int]
) -> dict[str, Any]:
    from launcher.plan.search import tables, values
    from launcher.plan.search.candidate import Predictor
    from launcher.plan.search.run_cost import run_cost_lines
    from launcher.plan.search.search import batch_error, search

    if error := batch_error(config, sum(nodes)):
        raise ConfigError(error)
    candidates = search(config, nodes, Predictor.of(config, hardware), say=_say, most=args.top)
    terms = _terms(args, config)
    print(_title(args, config, hardware, nodes))
    print("\n".join(tables.search_lines(candidates, terms, args.top)))
    if problem := tables.no_layout(candidates):
        raise ConfigError(problem)
    print("\n".join(run_cost_lines(candidates[0], terms, hardware.device)))
    return {"layouts": [values.candidate_json(c, terms) for c in candidates]}


def _simulate(
    args: argparse.Namespace, config: RunConfig, hardware: Hardware, nodes: list[int]
) -> dict[str, Any]:
    from launcher.plan.search import tables, values
    from launcher.plan.search.candidate import Predictor
    from launcher.plan.search.simulate import simulate

    steps = 1
    if args.nodes:
        _check(config, nodes)
        steps = config.train.grad_accum_steps(sum(nodes))
    failures = Failures(mtbf_gpu_h=args.mtbf, save_s=args.save, restart_s=args.restart)
    predictor, terms = Predictor.of(config, hardware), _terms(args, config)
    points = simulate(config, parse_range(args.simulate), predictor, failures, steps)
    title = f"{args.config} on {hardware.name}, {config.train.precision}"
    print(title)
    print("\n".join(tables.simulation_lines(points, terms)))
    if args.out:
        from launcher.plan.search.charts import draw

        print(f"charts: {', '.join(map(str, draw(points, title, args.out)))}")
    return {"points": [values.point_json(p, terms) for p in points]}


def _terms(args: argparse.Namespace, config: RunConfig) -> "Terms":
    """The length of an epoch and the price."""
    from launcher.plan.search.run_cost import Terms, epoch_images

    images = args.images or epoch_images(config)
    return Terms(epoch_images=images, price_per_gpu_hour=args.price_per_gpu_hour)


def _title(args: argparse.Namespace, config: RunConfig, hardware: Hardware, nodes: list[int]) -> str:
    return f"{args.config} on {len(nodes)} x {nodes[0]} {hardware.name}, {config.train.precision}"


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
