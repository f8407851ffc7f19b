"""Several validation sets in one evaluation.

The values of the first set have their plain names (top1), which runs are compared by. Those of another set
have its name before them (real_top1).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from data_shards.stream.eval import EvalStream
from launcher.evaluation.loop import Evaluated, Evaluation, evaluate
from launcher.metrics.metric import Metric


def evaluate_sets(evaluated: Evaluated, sets: Mapping[str, EvalStream]) -> Evaluation:
    """Evaluate a model on every set, one after the other; every rank calls it.

    Args:
        evaluated: the model.
        sets: by name, the first one first.

    Returns:
        The values of all sets, and the image of the first.
    """
    (_, first), *others = sets.items()
    of_first = evaluate(evaluated, first)[0]
    metrics = dict(of_first.metrics)
    for name, stream in others:
        found = evaluate(evaluated, stream)[0].metrics
        metrics |= {f"{name}_{key}": value for key, value in found.items()}
    return of_first._replace(metrics=metrics)


def line_of_sets(metric: Metric, metrics: Mapping[str, Any], names: Sequence[str]) -> str:
    """The values of all sets as text: of one set without its name.

    Args:
        metric: of the task.
        metrics: of `evaluate_sets`.
        names: of the sets, the first one first.
    """
    first, *others = names
    lines = {first: metric.line(metrics)}
    lines |= {name: metric.line(values_of(metrics, name)) for name in others}
    return "; ".join(f"{name}: {line}" for name, line in lines.items()) if others else lines[first]


def values_of(metrics: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The values of a set that is not the first, by their plain names."""
    prefix = f"{name}_"
    return {key.removeprefix(prefix): value for key, value in metrics.items() if key.startswith(prefix)}
