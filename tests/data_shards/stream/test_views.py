"""Streams of views: view 0 is the image of a stream with one view, each view has draws of its own."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from data_shards.errors import DataError
from data_shards.format.rng import DrawKey
from data_shards.image.geometry import EvalTransform, TrainTransform
from data_shards.order.sampling import TrainSampling
from data_shards.stream.batch import Batch
from data_shards.stream.eval import EvalStream
from data_shards.stream.options import EvalSampling, StreamOptions
from data_shards.stream.train import TrainStream
from data_shards.stream.transform import Images, LabelledImages, PerhapsLabelled, Transform
from data_shards.stream.views import ImageViews

CROP = TrainTransform(image_size=8)
SAMPLING = TrainSampling(seed=3, global_batch_size=8, micro_batch_size=4)


def batches(split: Path, transform: Transform, rank: int = 0, ranks: int = 1) -> list[Batch]:
    with TrainStream(split, SAMPLING, transform, StreamOptions(dp_rank=rank, dp_size=ranks)) as stream:
        return list(islice(stream, 4 // ranks))


def test_view_0_is_the_single_image_and_the_others_are_drawn_by_themselves(shards: Path) -> None:
    single, views = (batches(shards, one) for one in (Images(CROP), ImageViews((CROP, CROP))))
    for one, both in zip(single, views, strict=True):
        assert both["image"].shape == (4, 2, 3, 8, 8)
        assert both["image"].movedim(2, -1).is_contiguous()  # channels last
        assert torch.equal(both["image"][:, 0], one["image"])
        assert not torch.equal(both["image"][:, 1], one["image"])
        assert torch.equal(both.positions, one.positions)
    crops = [CROP.geometry(100, 90, DrawKey(3, 17, view)) for view in range(2)]
    assert crops[0] == CROP.geometry(100, 90, DrawKey(3, 17))
    assert crops[0] != crops[1]


def test_two_ranks_give_the_views_of_one(shards: Path) -> None:
    transform = ImageViews((CROP, CROP))
    alone = batches(shards, transform)
    ranks = [batches(shards, transform, rank, 2) for rank in range(2)]
    rows = {
        position: views
        for batch in alone
        for position, views in zip(batch.positions.tolist(), batch["image"], strict=True)
    }
    found = [
        (position, views)
        for of_rank in ranks
        for batch in of_rank
        for position, views in zip(batch.positions.tolist(), batch["image"], strict=True)
    ]
    assert len(found) == len(rows) == 16
    assert all(torch.equal(rows[position], views) for position, views in found)


def test_labelled_views_in_evaluation(shards: Path) -> None:
    """Views of different kinds: the centre, and a random crop that every evaluation has alike."""
    central = EvalTransform(image_size=8)
    with (
        EvalStream(shards, EvalSampling(batch_size=5), LabelledImages(central)) as single,
        EvalStream(shards, EvalSampling(batch_size=3), PerhapsLabelled(ImageViews((central, CROP)))) as views,
    ):
        one, both = ([*stream] for stream in (single, views))
        again = [*views]
    n = single.num_samples

    def rows(of: list[Batch], name: str) -> np.ndarray:
        return torch.cat([batch[name] for batch in of])[:n].numpy()

    np.testing.assert_array_equal(rows(both, "image")[:, 0], rows(one, "image"))
    np.testing.assert_array_equal(rows(both, "label"), rows(one, "label"))
    np.testing.assert_array_equal(rows(both, "image"), rows(again, "image"))


def test_views_of_several_sizes_are_refused() -> None:
    with pytest.raises(DataError, match=r"views of 2 sizes \[\(8, 8\), \(16, 16\)\] cannot be stacked"):
        ImageViews((CROP, TrainTransform(image_size=16)))
    with pytest.raises(DataError, match="views of 0 sizes"):
        ImageViews(())
