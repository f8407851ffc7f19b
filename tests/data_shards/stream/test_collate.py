"""Collators: the tensors of a batch from the values of its samples, and the memory that is used again."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch

from data_shards.errors import DataError
from data_shards.stream.batch import Batch, BatchPlan, UnfinishedBatch
from data_shards.stream.collate import (
    BufferPool,
    Collator,
    Fixed,
    MultipleOf,
    Padded,
    Ragged,
    image_tensor,
    ring_size,
)
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


def test_padded_images_lie_at_the_top_left_of_their_canvas() -> None:
    """Two colours of 2 x 3 and 3 x 2 pixels on 4 x 4, and padding; by hand."""
    collators = {"image": Padded((4, 4), 9, np.uint8, leading=(2,), channels_last=True)}
    values = [np.full((2, 2, 3), 1, np.uint8), None, np.full((2, 3, 2), 2, np.uint8)]
    batch = batch_of([None if value is None else {"image": value} for value in values], collators)
    assert batch["image_size"].tolist() == [[2, 3], [0, 0], [3, 2]]
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    first, padding, last = batch["image"][:, 1].tolist()
    assert first == [[1, 1, 1, 9], [1, 1, 1, 9], [9] * 4, [9] * 4]
    assert padding == [[9] * 4] * 4
    assert last == [[2, 2, 9, 9]] * 3 + [[9] * 4]
    assert batch.weights.tolist() == [1, 0, 1]
    with pytest.raises(
        DataError, match=r"^image: the value of a sample has shape \(3, 4\), not \(2, height, width\)"
    ):
        batch_of([{"image": np.zeros((3, 4), np.uint8)}], collators)
    with pytest.raises(DataError, match="^image: 5 x 1 pixels do not fit 4 x 4 pixels; resize"):
        batch_of([{"image": np.zeros((2, 5, 1), np.uint8)}], collators)


def test_canvases_that_follow_the_content() -> None:
    collators = {"mask": Padded(MultipleOf(4), 255, np.uint8)}
    assert [MultipleOf(32)(*size) for size in ((1, 32), (33, 64))] == [(32, 32), (64, 64)]
    one = batch_of([{"mask": np.ones((5, 4), np.uint8)}], collators)
    assert one["mask"].shape == (1, 8, 4)
    assert batch_of([None], collators)["mask"].shape == (1, 4, 4)
    both = [{"mask": np.ones(shape, np.uint8)} for shape in ((5, 4), (2, 2))]
    with pytest.raises(
        DataError, match="^mask: .* have canvases of 4 x 4 pixels and 8 x 4 pixels; use one canvas"
    ):
        batch_of(both, collators)


def test_ragged_rows_are_joined_in_the_order_of_the_batch() -> None:
    collators = {"boxes": Ragged(np.float32, (2,)), "ids": Ragged(np.int64)}
    boxes = [np.array([[1.0, 2], [3, 4]]), np.zeros((0, 2)), np.array([[5.0, 6]])]
    examples: list[Example | None] = [{"boxes": each, "ids": np.arange(len(each))} for each in boxes]
    batch = batch_of([*examples[:2], None, examples[2]], collators)
    assert batch["boxes"].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert batch["boxes"].dtype == torch.float32
    assert batch["boxes_offsets"].tolist() == [0, 2, 2, 2, 3]
    assert batch["ids"].tolist() == [0, 1, 0]
    nothing = batch_of([None, None], collators)
    assert nothing["boxes"].shape == (0, 2)
    assert nothing["boxes_offsets"].tolist() == [0, 0, 0]
    with pytest.raises(DataError, match=r"^boxes: the value of a sample has shape \(2,\), not \(any, 2\)"):
        batch_of([{"boxes": np.zeros(2), "ids": np.zeros(1, int)}], collators)


def test_the_ring_is_bounded_by_bytes() -> None:
    # 8 clips of 32 x 224 x 224 x 3 bytes and 8 labels of 8 bytes: 38,535,232 bytes a batch
    clips = [Fixed((32, 3, 224, 224), np.uint8), Fixed((), np.int64), Ragged(np.float32)]
    assert ring_size(clips, 8, prefetch=4, limit=2**31) == 6  # 231 MB: four ahead, one in use, one to fill
    assert ring_size(clips, 8, prefetch=4, limit=5 * 38_535_232) == 5
    assert ring_size(clips, 8, prefetch=4, limit=5 * 38_535_232 - 1) == 4
    assert ring_size(clips, 64, prefetch=8, limit=2**31) == 6  # of 10 buffers of 308 MB
    assert ring_size(clips, 64, prefetch=8, limit=1) == 3
    assert ring_size([Ragged(np.float32)], 64, prefetch=8, limit=2**31) == 10
