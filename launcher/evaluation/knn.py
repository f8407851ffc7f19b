"""k nearest neighbours on frozen features, as DINO evaluates: the bank is of training images."""

from collections.abc import Sequence

import numpy as np
import torch

from data_shards.format.rng import Purpose, permutation
from launcher.evaluation.context import EvalContext
from launcher.evaluation.features import split_features
from launcher.evaluation.loop import eval_stream, support_split, validation_split
from launcher.metrics.neighbours import CHUNK, TEMPERATURE, votes
from parallel.ranks.collectives import sum_over


def evaluate_knn(
    context: EvalContext,
    neighbours: int,
    bank_size: int | None,
    seed: int,
    mapped_to: Sequence[str] | None = None,
) -> None:
    """Evaluate k-NN with a bank of training images, print it and write knn.json; the ranks share the test.

    Args:
        context: the checkpoint.
        neighbours: k.
        bank_size: images in the bank, drawn by `seed`; None is all of the training split.
        seed: of the draw.
        mapped_to: the classes of data.train, where labels of data.val are mapped to them by name.
    """
    data, mesh = context.config.data, context.mesh
    place = support_split(data)
    with eval_stream(context.config, mesh, grouped=False, place=place) as stream:
        found, num_classes = stream.num_samples, stream.num_classes
    drawn = np.sort(permutation(found, Purpose.SHOTS, seed)[:bank_size]) if bank_size else None
    bank = split_features(context, place, drawn)
    test = split_features(context, validation_split(data), mapped_to=mapped_to)
    mine = slice(mesh.rank, None, mesh.dims.world_size)
    hits = torch.zeros(2, dtype=torch.float64, device=context.device)
    for values, labels in zip(test.values[mine].split(CHUNK), test.labels[mine].split(CHUNK), strict=True):
        scores = votes(bank.values, bank.labels, values, neighbours=neighbours, num_classes=num_classes)
        right = scores.topk(min(5, num_classes), dim=1).indices == labels[:, None]
        hits += torch.stack([right[:, 0].sum(), right.sum()])
        context.heartbeat()
    top1, top5 = (sum_over(hits) / len(test.labels)).tolist()
    context.say(
        f"{context.name}: {neighbours}-NN top-1 {top1:.2%}, top-5 {top5:.2%} on {len(test.labels)} "
        f"{context.samples}, bank of {len(bank.labels)}"
    )
    record = {"neighbours": neighbours, "temperature": TEMPERATURE, "bank": len(bank.labels), "seed": seed}
    context.write_json("knn", record | {"top1": top1, "top5": top5, "images": len(test.labels)})
