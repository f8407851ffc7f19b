"""`swin-moe eval`: everything that can be asked of a trained checkpoint."""

import argparse
import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from data_shards.stream.patterns import names_tars
from launcher.config.load import ConfigError, load_config
from launcher.config.schema import RunConfig
from launcher.console.arguments import Commands, add_averages, add_command, add_match_classes, positive
from launcher.evaluation.judging import Judging, judging
from launcher.evaluation.support import check_support
from launcher.process.local_launcher import is_parent, run_local
from launcher.process.run_rank import RankContext, run_rank
from launcher.rundir.directory import RunDirectory
from launcher.tasks.registry import task_spec
from launcher.validation.run_rules import slots_error
from parallel.ranks.rank import Ranks
from parallel.zero.options import DTYPES
from swin_moe.config import MOST_CAPACITY

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from launcher.evaluation.context import EvalContext

HELP = """\
examples:
  swin-moe eval runs/demo_cpu --nproc 2
  swin-moe eval runs/demo_cpu                                  one process; the experts come together
  swin-moe eval runs/demo_cpu --checkpoint step-00000234 --capacity-factor 0.5
  swin-moe eval runs/demo_cpu --sweep-capacity 0.5,0.625,1,1.25,2,0 --sweep-top-k 1,2     0: dropless
  swin-moe eval runs/demo_cpu --few-shot 5 --knn 20            on frozen features; --shots-seed, --bank
  swin-moe eval runs/demo_cpu --throughput train.eval_batch_size=64
  swin-moe eval runs/demo_cpu --confusion --affinity --labels real.json
  swin-moe eval runs/demo_cpu data.val=other/val --match-classes                      labels mapped by name

Every image of the validation split exactly once: exact (dropless), and for an MoE at a capacity too. The
figures are the same on any number of ranks and at any batch size. Results: RUN/eval/CHECKPOINT/.
docs/evaluation.md has every option, what it computes, and the files.
"""
ONLY_CLASSES = ("confusion", "labels")  # options that make no sense without classes
ONLY_EXPERTS = ("affinity", "capacity_factor", "sweep_capacity", "sweep_top_k")
STUDIES = ("sweep_capacity", "sweep_top_k", "few_shot", "knn", "throughput")
WARM_UP = 10  # passes of --throughput


def add_parser(subparsers: Commands) -> None:
    """Add `eval` to the launcher's `subparsers`."""
    parser = add_command(subparsers, "eval", "evaluate a run's checkpoint", HELP)
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("run_directory", type=Path, metavar="RUN", help="the run directory")
    add("overrides", nargs="*", metavar="a.b=value", help="options of the run to override")
    add("--nproc", type=positive, help="ranks to start on this machine")
    add("--checkpoint", help="step-NNNNNNNN; default: the newest")
    add("--precision", choices=list(DTYPES), help="to compute in; default: the training's; fp32 is exact")
    add_averages(parser)
    add_match_classes(parser)
    _add_ways(parser)
    _add_features(parser)
    add("--throughput", action="store_true", help="images/s and FLOP/s of the model alone, on one batch")
    add("--passes", type=positive, default=30, metavar="N", help="timed ones (default %(default)s)")
    add("--confusion", action="store_true", help="which class is taken for which, and the worst, as CSV")
    add("--affinity", action="store_true", help="which expert takes which classes: CSV, PNG, TensorBoard")
    add("--labels", type=Path, metavar="FILE", help="judge in another label space: ReaL, V2, 22K -> 1K")


def _add_ways(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--capacity-factor", type=_factor, metavar="F", help="beside exact; default: the training's")
    add("--sweep-capacity", type=_factors, metavar="F,F,...", help="evaluate at each; 0 is dropless")
    add("--sweep-top-k", type=_choices, metavar="K,K,...", help="and with so many choices a token")


def _add_features(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--few-shot", type=positive, metavar="K", help="ridge regression on K training images a class")
    add("--shots-seed", type=_seed, default=0, metavar="N", help="the first draw's (default %(default)s)")
    add("--shots-draws", type=positive, default=3, metavar="N", help="of K images (default %(default)s)")
    add("--knn", type=positive, metavar="K", help="K nearest neighbours among the training images")
    add("--bank", type=positive, metavar="N", help="training images for --knn, drawn by --shots-seed")


def run(args: argparse.Namespace, arguments: list[str]) -> int:
    """Carry out `eval`, as a rank or as the parent of some: the exit status."""
    directory = RunDirectory(args.run_directory)
    config = load_config(directory.config, [*args.overrides, *args.match_classes])
    if args.precision:
        config = replace(config, train=replace(config.train, precision=args.precision))
    check_options(args, config)
    judged = judging(args, config, directory, by_model=is_by_model(args))
    if is_parent(args.nproc):
        return run_local(args.nproc, arguments)

    def work(ranks: Ranks, device: torch.device, context: RankContext) -> None:
        from launcher.evaluation.context import EvalRequest, load  # imports DeepSpeed, which finds its device

        if args.few_shot or args.knn:
            check_support(args, config, judged.support.mapped_to)
        request = EvalRequest(config=config, run=directory, checkpoint=args.checkpoint, kind=args.kind)
        loaded = load(request, ranks, device, context.watch.beat)
        evaluate(args, replace(loaded, mapped_to=judged.model.mapped_to), judged)

    return run_rank(config, work, args.runtime)


def check_options(args: argparse.Namespace, config: RunConfig) -> None:
    """Refuse what makes no sense for the run, before the checkpoint is loaded.

    Raises:
        ConfigError: the first such option.
    """
    moe = config.model.moe
    for name in ONLY_CLASSES:
        if getattr(args, name) and not task_spec(config.task).has_classes:
            raise ConfigError(
                f"{_flag(name)} is for tasks with classes, such as classification; this run has "
                f"task={config.task}"
            )
    for name in ONLY_EXPERTS:
        if getattr(args, name) is not None and getattr(args, name) is not False and moe is None:
            raise ConfigError(f"{_flag(name)} is for models with experts; this run has model.moe=null")
    if (args.few_shot or args.knn) and names_tars(config.data.train):
        raise ConfigError(
            f"--few-shot and --knn need a manifest of data.train ({config.data.train}): "
            "`swin-moe shards index` writes it"
        )
    if args.bank and not args.knn:
        raise ConfigError("--bank is for --knn K")
    factors = [*(args.sweep_capacity or []), *([args.capacity_factor] if args.capacity_factor else [])]
    if moe and moe.router == "soft" and (factors or args.sweep_top_k):
        raise ConfigError("model.moe.router=soft has neither a capacity nor choices: nothing to vary")
    if moe and moe.router == "expert_choice" and (0.0 in factors or args.sweep_top_k):
        raise ConfigError("model.moe.router=expert_choice needs a capacity above 0, and no --sweep-top-k")
    for factor in factors:
        if error := slots_error(config.model, "the capacity factor", factor):
            raise ConfigError(error)
    for top_k in args.sweep_top_k or []:
        if moe and top_k > moe.num_experts:
            raise ConfigError(
                f"--sweep-top-k ({top_k}) must lie in 1..model.moe.num_experts ({moe.num_experts})"
            )


def is_standard(args: argparse.Namespace) -> bool:
    """Whether the command line asks for the standard evaluation, by itself or for its observers."""
    studies = any(getattr(args, name) for name in STUDIES)
    return bool(args.labels or args.confusion or args.affinity or not studies)


def is_by_model(args: argparse.Namespace) -> bool:
    """Whether an evaluation of the command line uses the classifier's head."""
    return bool(is_standard(args) or args.sweep_capacity or args.sweep_top_k)


def evaluate(args: argparse.Namespace, context: "EvalContext", judged: Judging) -> None:
    """Do all evaluations of the command line with one checkpoint; every rank calls it."""
    from launcher.evaluation.few_shot import few_shot
    from launcher.evaluation.knn import evaluate_knn
    from launcher.evaluation.labels import RelabelledMetric
    from launcher.evaluation.run import sweep
    from launcher.evaluation.throughput import measure

    if context.mesh.is_first:
        for note in judged.notes:
            logger.warning("%s", note)
    if judged.labels is not None:
        context = replace(context, metric=partial(RelabelledMetric, context.device, judged.labels))
    if is_standard(args):
        standard(args, context, judged)
    if args.sweep_capacity or args.sweep_top_k:
        sweep(context, args.sweep_capacity or [], args.sweep_top_k or [])
    if args.few_shot:
        seeds = range(args.shots_seed, args.shots_seed + args.shots_draws)
        few_shot(context, args.few_shot, seeds, judged.support.mapped_to)
    if args.knn:
        evaluate_knn(context, args.knn, args.bank, args.shots_seed, judged.support.mapped_to)
    if args.throughput:
        measure(context, args.capacity_factor, warm_up=WARM_UP, repeats=args.passes)


def standard(args: argparse.Namespace, context: "EvalContext", judged: Judging) -> None:
    """Evaluate in the standard modes, and write the tables."""
    from launcher.evaluation.affinity import Affinity
    from launcher.evaluation.confusion import Confusion
    from launcher.evaluation.run import evaluate_standard, labels_of_split
    from launcher.metrics.accuracy import ClassificationMetric

    device, confusion = context.device, []
    if args.confusion:
        metric = context.metric()
        assert isinstance(metric, ClassificationMetric)  # see check_options
        confusion = [Confusion(metric, len(judged.names), device)]
    affinity = []
    if args.affinity:
        affinity = [Affinity(labels_of_split(context), len(judged.classes), device)]
    evaluate_standard(context, args.capacity_factor, [*confusion, *affinity])
    for matrix in confusion:
        matrix.write(context, judged.names)
    for experts in affinity:
        experts.write(context, judged.classes)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0 (got {text!r})")
    return int(text)


def _factor(text: str) -> float:
    try:
        factor = float(text)
    except ValueError:
        factor = -1.0
    if not 0 <= factor <= MOST_CAPACITY:
        raise argparse.ArgumentTypeError(f"must be a factor in 0 ... {MOST_CAPACITY:g} (got {text!r})")
    return factor


def _factors(text: str) -> list[float]:
    return [_factor(part) for part in text.split(",")]


def _choices(text: str) -> list[int]:
    return [positive(part) for part in text.split(",")]
