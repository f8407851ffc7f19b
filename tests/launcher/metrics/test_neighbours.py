"""k-NN inside of a split: against loops, on several ranks, without labels; and several metrics together."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from data_shards.format.index import Manifest
from data_shards.stream.batch import Batch
from data_shards.stream.transform import NO_LABEL
from launcher.metrics.joined import JoinedMetric
from launcher.metrics.metric import MetricTable, SumMetric
from launcher.metrics.neighbours import CHUNK, NeighbourMetric, leave_one_out
from tests.distributed import run_on_ranks

CPU = torch.device("cpu")


class Pooled(NamedTuple):
    """A prediction."""

    features: Tensor


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_loops(features: Tensor, labels: Sequence[int], neighbours: int) -> list[int]:
    """The class of the nearest others of each sample, one pair after another in double precision."""
    chosen = []
    for i, sample in enumerate(features.double()):
        cosines = {
            j: float(F.cosine_similarity(sample, other, dim=0))
            for j, other in enumerate(features.double())
            if j != i
        }
        votes: dict[int, float] = {}
        for j in sorted(cosines, key=lambda j: -cosines[j])[:neighbours]:
            votes[labels[j]] = votes.get(labels[j], 0) + math.exp(cosines[j] / 0.07)
        chosen.append(max(votes, key=lambda label: votes[label]))
    return chosen


@pytest.mark.parametrize("neighbours", [1, 7, 20, 60], ids=lambda k: f"k {k}")
def test_each_sample_is_judged_by_the_nearest_others(neighbours: int) -> None:
    labels = torch.arange(40) % 3
    features = random(40, 6) + F.one_hot(labels, 6)
    found = leave_one_out(features, labels, neighbours=neighbours).tolist()
    assert found == by_loops(features, labels.tolist(), neighbours)


def test_chunks_change_nothing() -> None:
    """More samples than are compared at once: the last chunk is not full, and no sample votes for itself."""
    count = 2 * CHUNK + 3
    labels = torch.arange(count)  # its own class: nobody else votes for it
    assert (leave_one_out(random(count, 4), labels, neighbours=5) != labels).all()
    twins = random(count, 4).repeat(2, 1)  # each has one equal sample, of its class, far from it in order
    assert torch.equal(leave_one_out(twins, labels.repeat(2), neighbours=1), labels.repeat(2))


LABELS = [0, 1, 0, 1, 2, NO_LABEL, 2, 0, 1, NO_LABEL, 2]


def evaluated(metric: Any, labels: Sequence[int] | None, features: Tensor) -> Any:
    """The values of all ranks on rank 0, with batches of two that are dealt to the ranks in turn."""
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    batches = -(-len(features) // (2 * ranks)) * ranks
    padded = F.pad(features, (0, 0, 0, 2 * batches - len(features)), value=9.0)
    for start in range(2 * rank, 2 * batches, 2 * ranks):
        positions = torch.arange(start, start + 2)
        positions[positions >= len(features)] = -1
        known = {} if labels is None else {"label": torch.tensor([*labels, *[0] * 8])[start : start + 2]}
        batch = Batch(tensors=known, positions=positions, weights=(positions >= 0).float())
        metric.update(Pooled(padded[start : start + 2]), batch)
    metric.reduce()
    return metric.compute() if rank == 0 else None


def on_this_rank(neighbours: int, labels: Sequence[int] | None = tuple(LABELS)) -> Any:
    return evaluated(NeighbourMetric(CPU, neighbours=neighbours), labels, random(len(LABELS), 5))


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_any_number_of_ranks_gives_the_share_of_the_hits(ranks: int) -> None:
    rows = [i for i, label in enumerate(LABELS) if label != NO_LABEL]
    labels = [LABELS[i] for i in rows]
    chosen = by_loops(random(len(LABELS), 5)[rows], labels, 3)
    hits = sum(a == b for a, b in zip(chosen, labels, strict=True))
    assert 0 < hits < len(rows)
    assert run_on_ranks(on_this_rank, ranks, 3)[0] == {"knn": hits / len(rows), "images": 11}


@pytest.mark.parametrize(
    "labels", [None, [NO_LABEL] * 11, [1] * 11], ids=["not read", "none in the split", "one class"]
)
def test_images_without_labels_have_no_share(labels: Sequence[int] | None) -> None:
    values = on_this_rank(20, labels)
    assert values == {"images": 11}
    assert NeighbourMetric(CPU).line(values) == "no k-NN (11 images without labels of two classes)"


def test_features_that_are_not_finite_have_no_share_but_are_seen() -> None:
    features = random(len(LABELS), 5)
    features[3, 1] = torch.inf
    assert math.isnan(evaluated(NeighbourMetric(CPU), LABELS, features)["knn"])


def test_records_do_not_keep_the_batch() -> None:
    batch = Batch(
        tensors={"label": torch.tensor([1, NO_LABEL])}, positions=torch.arange(2), weights=torch.ones(2)
    )
    first, second = NeighbourMetric(CPU).records(Pooled(random(2, 5).bfloat16()), batch)
    assert first.features.base is None
    assert first.features.tolist() == random(2, 5).bfloat16()[0].tolist()
    assert (second.label, second.features.size) == (NO_LABEL, 0)


class Mean(SumMetric):
    """The mean of the first channel, with a table and a file."""

    primary, higher_is_better = "mean", False

    def sums(self, prediction: Pooled, batch: Batch) -> Tensor:
        return torch.stack([prediction.features[:, 0] * batch.weights, batch.weights]).double().sum(1)

    def values(self, sums: Tensor) -> dict[str, Any]:
        return {"mean": float(sums[0] / sums[1]), "images": int(sums[1])}

    def line(self, values: Mapping[str, Any]) -> str:
        return f"mean {values['mean']:.1f}"

    def tables(self, values: Mapping[str, Any], classes: Sequence[str]) -> Mapping[str, MetricTable]:
        return {"means": MetricTable(("mean",), [(values["mean"],)])}

    def write(self, directory: Path, manifest: Manifest) -> Sequence[Path]:
        (directory / "mean.txt").write_text("")
        return [directory / "mean.txt"]


def both() -> Any:
    metric = JoinedMetric(Mean(CPU), NeighbourMetric(CPU, neighbours=3))
    return evaluated(metric, LABELS, random(len(LABELS), 5))


def test_metrics_together_have_the_values_of_each(tmp_path: Path) -> None:
    joined = JoinedMetric(Mean(CPU), NeighbourMetric(CPU, neighbours=3))
    values = run_on_ranks(both, 2)[0]
    mean = random(len(LABELS), 5)[:, 0].double().mean()
    assert values == {**on_this_rank(3), "mean": pytest.approx(float(mean))}
    assert (joined.primary, joined.higher_is_better) == ("mean", False)
    assert joined.line({"mean": 0.5, "knn": 0.25, "images": 4}) == "mean 0.5; 3-NN top-1 25.00% on 4 images"
    assert joined.tables({"mean": 0.5}, ())["means"].rows == [(0.5,)]
    assert joined.write(tmp_path, None) == [tmp_path / "mean.txt"]  # type: ignore[arg-type]
