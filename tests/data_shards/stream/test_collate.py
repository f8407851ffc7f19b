"""Collators: the tensors of a batch from the values of its samples, and the memory that is used again."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch

from data_shards.errors import DataError
from data_shards.stream.batch import Batch, BatchPlan, UnfinishedBatch
from data_shards.stream.collate import BufferPool, Collator, Fixed, image_tensor
from data_shards.stream.transform import Example


def batch_of(
    examples: Sequence[Example | None], collators: Mapping[str, Collator], pool: BufferPool | None = None
) -> Batch:
    """The batch of some examples, put in reverse order; None is padding."""
    count = len(examples)
    positions = np.array([-1 if example is None else i for i, example in enumerate(examples)])
    plan = BatchPlan(positions=positions, shards=np.zeros(count), rows=np.zeros(count))
    pools = {name: pool or BufferPool(3, pinned=False) for name in collators}
    batch = UnfinishedBatch(plan, collators, pools)
    for row in reversed(range(count)):
        batch.put(row, examples[row])
    return batch.finished()


def test_the_pool_reuses_a_buffer_only_when_nobody_holds_it() -> None:
    pool, examples = BufferPool(3, pinned=False), [{"image": np.full((3, 4, 4), 7, np.uint8)}, None]

    def batch() -> Batch:
        return batch_of(examples, {"image": image_tensor((4, 4))}, pool)

    first = batch()
    where, view = first["image"].data_ptr(), first["image"][:1, :2]
    first["image"][:] = 9
    del first
    second = batch()
    assert second["image"].data_ptr() != where  # a view is still held
    assert (view[0] == 9).all()
    del view
    third = batch()
    assert third["image"].data_ptr() == where
    assert (third["image"][0] == 7).all()
    assert not third["image"][1].any()  # padding is black again
    assert third.weights.tolist() == [1, 0]
    array = third["image"].numpy()
    del third
    assert batch()["image"].data_ptr() != where
    assert array.shape == (2, 3, 4, 4)


def test_images_are_channels_last_in_memory_also_several_views() -> None:
    views = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)
    batch = batch_of(
        [{"one": views[0], "two": views}] * 2, {"one": image_tensor((4, 5)), "two": image_tensor((4, 5), 2)}
    )
    assert batch["one"].is_contiguous(memory_format=torch.channels_last)
    assert batch["two"].stride() == (120, 60, 1, 15, 3)
    assert (batch["two"].numpy() == views).all()
    assert (batch["one"].numpy() == views[0]).all()


def test_a_value_that_does_not_fit_is_named() -> None:
    collators = {"boxes": Fixed((2,), np.int32)}
    assert batch_of([{"boxes": np.array([1, 2])}], collators)["boxes"].dtype == torch.int32
    with pytest.raises(DataError, match=r"^boxes: the value of a sample has shape \(1,\), not \(2,\)"):
        batch_of([{"boxes": np.array([1])}], collators)
    with pytest.raises(DataError, match="^boxes: the value of a sample is float64, which a int32 tensor"):
        batch_of([{"boxes": np.array([1.5, 2])}], collators)
    with pytest.raises(DataError, match="^the transform gives label, and its collators take boxes"):
        batch_of([{"label": 1}], collators)
