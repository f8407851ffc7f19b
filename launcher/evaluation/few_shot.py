"""k-shot linear evaluation: a ridge regression on frozen features of k training images a class.

Legend: n training samples, m test samples, C channels, D = C + 1, K classes.
"""

from collections.abc import Sequence
from statistics import mean, pstdev
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data_shards.format.rng import Purpose, permutation
from launcher.evaluation.context import EvalContext
from launcher.evaluation.features import LabelledFeatures, split_features
from launcher.evaluation.loop import eval_stream, support_split, validation_split

BIAS = 100.0  # of the constant feature: so large that its weight is hardly regularised
REGULARISER = 2.0**10


class Ridge(NamedTuple):
    """A linear map from features to scores, see `fit`."""

    mean: Tensor  # (C,)
    deviation: Tensor  # (C,)
    weight: Tensor  # (D, K)

    def scores(self, features: Tensor) -> Tensor:
        """(m, C) -> (m, K), fp64."""
        return self._standardised(features) @ self.weight

    def _standardised(self, features: Tensor) -> Tensor:
        """(m, C) -> (m, D)."""
        return F.pad((features.double() - self.mean) / self.deviation, (0, 1), value=BIAS)


def fit(features: Tensor, labels: Tensor, num_classes: int, regulariser: float = REGULARISER) -> Ridge:
    """Least squares with an L2 penalty, as V-MoE and BiT's successors have it, in closed form.

    Features are standardised by the mean and the deviation (of the population, plus 1e-5) of the n training
    samples, and a constant feature of 100 is added for the bias. Targets Y are 1 for the class and -1 for
    the others. The weights minimise |X W - Y|^2 + regulariser |W|^2:

        W = (X^T X + regulariser I)^-1 X^T Y  =  X^T (X X^T + regulariser I)^-1 Y

    solved in fp64 by Cholesky, in the smaller of the two forms. The regulariser is 2^10, as published
    (google-research/big_vision, evaluators/fewshot_lsr.py and its configurations; V-MoE, Riquelme et al.
    2021, appendix on few-shot evaluation). There the solver is an eigendecomposition in fp32.

    Args:
        features: (n, C).
        labels: (n,).
        num_classes: K.
        regulariser: above 0.
    """
    x = features.double()
    ridge = Ridge(x.mean(0), x.std(0, correction=0) + 1e-5, x.new_empty(0))
    x, y = ridge._standardised(x), 2.0 * F.one_hot(labels, num_classes).double() - 1.0
    if len(x) >= x.shape[1]:
        weight = _solve(x.mT @ x, x.mT @ y, regulariser)
    else:
        weight = x.mT @ _solve(x @ x.mT, y, regulariser)
    return ridge._replace(weight=weight)


def _solve(gram: Tensor, right: Tensor, regulariser: float) -> Tensor:
    """(gram + regulariser I)^-1 right: (a, a), (a, K) -> (a, K)."""
    gram = gram + regulariser * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.cholesky_solve(right, torch.linalg.cholesky(gram))


def draw_shots(labels: np.ndarray, num_classes: int, shots: int, seed: int) -> np.ndarray:
    """The samples of k shots: of each class the first `shots` of an order drawn by (seed, class).

    Args:
        labels: (N,) of the training split.
        num_classes: K.
        shots: k; a class with fewer samples gives all it has.
        seed: of the draw.

    Returns:
        (at most K * k,) int64, class after class.
    """
    order, ends = np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels, minlength=num_classes))
    chosen = []
    for label, of_class in enumerate(np.split(order, ends[:-1])):
        chosen.append(of_class[permutation(len(of_class), Purpose.SHOTS, seed, label)[:shots]])
    return np.concatenate(chosen)


def few_shot(
    context: EvalContext, shots: int, seeds: Sequence[int], mapped_to: Sequence[str] | None = None
) -> None:
    """Evaluate k shots by several seeds, print mean and deviation, and write few_shot.json.

    Args:
        context: the checkpoint.
        shots: k; `check_support` has found that many images of every class.
        seeds: of the draws.
        mapped_to: the classes of data.train, where labels of data.val are mapped to them by name.
    """
    data = context.config.data
    place = support_split(data)
    with eval_stream(context.config, context.mesh, grouped=False, place=place) as stream:
        labels, num_classes = stream.labels(), stream.num_classes
    drawn = [draw_shots(labels, num_classes, shots, seed) for seed in seeds]
    union = np.unique(np.concatenate(drawn))
    train = split_features(context, place, union)
    test = split_features(context, validation_split(data), mapped_to=mapped_to)
    accuracies = [accuracy(train, test, np.searchsorted(union, one), num_classes) for one in drawn]
    context.say(
        f"{context.name}: {shots}-shot top-1 {mean(accuracies):.2%} +- {pstdev(accuracies):.2%} "
        f"({', '.join(f'{one:.2%}' for one in accuracies)} by seed {', '.join(map(str, seeds))})"
    )
    record = {
        "shots": shots,
        "seeds": list(seeds),
        "top1": accuracies,
        "mean": mean(accuracies),
        "deviation": pstdev(accuracies),
        "regulariser": REGULARISER,
        "images": len(test.labels),
    }
    context.write_json("few_shot", record)


def accuracy(train: LabelledFeatures, test: LabelledFeatures, rows: np.ndarray, num_classes: int) -> float:
    """Top-1 accuracy on all of `test` after a fit to some rows of `train`."""
    chosen = torch.from_numpy(rows).to(train.labels.device)
    ridge = fit(train.values[chosen], train.labels[chosen], num_classes)
    hits = [
        (ridge.scores(values).argmax(1) == labels).sum()
        for values, labels in zip(test.values.split(4096), test.labels.split(4096), strict=True)
    ]
    return float(torch.stack(hits).sum()) / len(test.labels)
