"""Members that a transform reads where a split has them: labels of images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_shards.format.fields import Field
from data_shards.format.rng import Purpose, permutation
from data_shards.format.samples import Source
from data_shards.image.geometry import EvalTransform
from data_shards.pack.write import pack
from data_shards.stream.eval import EvalStream
from data_shards.stream.options import EvalSampling
from data_shards.stream.transform import NO_LABEL, Images, LabelledImages, PerhapsLabelled
from tests.data_shards.image_folders import jpeg
from tests.data_shards.made_samples import MadeSamples
from tests.data_shards.member_sets import member_source

COUNT, SEED = 7, 1
CROP = EvalTransform(image_size=8)


def image_alone(number: int) -> dict[str, Any]:
    return {"image": jpeg(number)}


def packed(out: Path, *, labelled: bool) -> Path:
    rows = MadeSamples(image_alone, np.arange(COUNT))
    images = Source("images", "made up", (), {"train": rows}, fields=(Field("image", "image"),))
    pack(member_source(COUNT) if labelled else images, "train", out, samples_per_shard=3, seed=SEED)
    return out


def batches(split: Path, transform: Images, classes: Sequence[str] | None = None) -> list[Any]:
    """Two, the second of which is padded."""
    with EvalStream(split, EvalSampling(batch_size=4), transform, classes=classes) as stream:
        return [{name: one[name].clone() for name in one.tensors} for one in stream]


@pytest.mark.parametrize("labelled", [True, False])
def test_labels_are_read_where_there_are_any(tmp_path: Path, labelled: bool) -> None:
    split = packed(tmp_path / "split", labelled=labelled)
    found = batches(split, PerhapsLabelled(Images(CROP)))
    others = batches(split, (LabelledImages if labelled else Images)(CROP))
    for one, other in zip(found, others, strict=True):
        assert torch.equal(one["image"], other["image"])
    in_order = permutation(COUNT, Purpose.PACK, SEED)
    wanted = (in_order % 3).tolist() if labelled else [NO_LABEL] * COUNT
    assert torch.cat([one["label"] for one in found]).tolist()[:COUNT] == wanted


def test_labels_are_mapped_by_name(tmp_path: Path) -> None:
    split = packed(tmp_path / "split", labelled=True)
    found = batches(split, PerhapsLabelled(Images(CROP)), classes=("c", "x", "b", "a"))
    in_order = permutation(COUNT, Purpose.PACK, SEED)
    wanted = [{0: 3, 1: 2, 2: 0}[int(number) % 3] for number in in_order]
    assert torch.cat([one["label"] for one in found]).tolist()[:COUNT] == wanted
