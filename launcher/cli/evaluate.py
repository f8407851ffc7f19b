"""`swin-moe eval`: everything that can be asked of a trained checkpoint."""

import argparse
import logging
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from launcher.config.load import ConfigError, load_config
from launcher.config.schema import RunConfig
from launcher.evaluation.judging import Judging, judging
from launcher.evaluation.loop import support_split
from launcher.evaluation.support import check_support
from launcher.process.local_launcher import is_parent, run_local
from launcher.process.run_rank import RankContext, run_rank
from launcher.rundir.directory import RunDirectory
from launcher.tasks.registry import task_spec
from launcher.validation.capacity_rules import slots_error
from parallel.ranks.rank import Ranks
from parallel.suggest import suggestion

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from launcher.evaluation.context import EvalContext

ONLY_CLASSES = ("confusion", "labels")  # options that make no sense without classes
ONLY_EXPERTS = ("affinity", "capacity_factor", "sweep_capacity", "sweep_top_k")
STUDIES = ("sweep_capacity", "sweep_top_k", "few_shot", "knn", "throughput")
WARM_UP = 10  # passes of --throughput


def run(args: argparse.Namespace, arguments: list[str]) -> int:
    """Carry out `eval`, as a rank or as the parent of some: the exit status."""
    directory = RunDirectory(args.run_directory)
    config = load_config(directory.config, [*args.overrides, *args.match_classes])
    if args.precision:
        config = replace(config, train=replace(config.train, precision=args.precision))
    config = with_one_set(config, args.val)
    check_options(args, config)
    judged = judging(args, config, directory, by_model=is_by_model(args))
    if is_parent(args.nproc):
        return run_local(args.nproc, arguments)

    def work(ranks: Ranks, device: torch.device, context: RankContext) -> None:
        from launcher.evaluation.context import EvalRequest, load  # imports DeepSpeed, which finds its device

        if args.few_shot or args.knn:
            check_support(args, config, judged.support.mapped_to)
        request = EvalRequest(
            config=config, run=directory, checkpoint=args.checkpoint, kind=args.kind, val=args.val
        )
        loaded = load(request, ranks, device, context.watch.beat)
        evaluate(args, replace(loaded, mapped_to=judged.model.mapped_to), judged)
        if loaded.mesh.is_first:
            args.answer = {"directory": loaded.directory, **loaded.written}

    return run_rank(config, work, args.runtime)


def with_one_set(config: RunConfig, name: str | None) -> RunConfig:
    """The configuration with one validation set.

    Args:
        config: of the run.
        name: of the set; None takes the first.

    Raises:
        ConfigError: there is no such set.
    """
    val = config.data.val
    if not isinstance(val, dict):
        if name is not None:
            raise ConfigError(f"--val ({name}): data.val of this run is one set ({val}): leave out --val")
        return config
    name = name or next(iter(val))
    if name not in val:
        near = suggestion(name, val, f"its sets: {', '.join(val)}")
        raise ConfigError(f"--val ({name}): no such set of data.val; {near}")
    return replace(config, data=replace(config.data, val=val[name]))


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
    if args.few_shot or args.knn:
        support_split(config.data)
        if config.data.trains_on_tars:
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
