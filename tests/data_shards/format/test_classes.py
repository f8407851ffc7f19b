"""Class lists: how they differ, and labels mapped by name."""

from pathlib import Path

import numpy as np
import pytest

from data_shards.errors import DataError
from data_shards.format.classes import differences, is_numbered, label_map
from data_shards.format.index import MANIFEST_NAME, Manifest, read_json
from data_shards.pack.sources.packed import packed_source
from data_shards.pack.sources.registry import synthetic
from data_shards.pack.write import pack
from tests.data_shards.relabelled import relabelled
from tests.data_shards.streams import QUICK, eval_stream, tiny_stream, train_stream
from tests.data_shards.tiny_splits import bodies_of, write_split

FRUIT = ("apple", "banana", "cherry")


OTHERS = "label 0 is 'a' instead of 'apple'; label 1 is 'b' instead of 'banana'; label 2 is 'c' instead of "
DIFFERENCES = [
    (FRUIT, ""),
    (
        ("banana", "apple", "cherry"),
        "label 0 is 'banana' instead of 'apple'; label 1 is 'apple' instead of 'banana'",
    ),
    (FRUIT[:2], "2 classes instead of 3; missing: 'cherry'"),
    ((*FRUIT, "date"), "4 classes instead of 3; unknown: 'date'"),
    (
        ("apple", "banana", "date"),
        "label 2 is 'date' instead of 'cherry'; unknown: 'date'; missing: 'cherry'",
    ),
    (("apple", "apple", "cherry"), "label 1 is 'apple' instead of 'banana'; missing: 'banana'"),
    (
        tuple("abcdef"),
        f"6 classes instead of 3; {OTHERS}'cherry'; unknown: 'a', 'b', 'c' and 3 more; "
        "missing: 'apple', 'banana', 'cherry'",
    ),
]


@pytest.mark.parametrize(("classes", "text"), DIFFERENCES)
def test_differences(classes: tuple[str, ...], text: str) -> None:
    assert differences(classes, FRUIT) == text


def test_many_differences_are_counted() -> None:
    turned = tuple("fedcba")
    assert differences(turned, tuple("abcdef")).endswith(
        "label 2 is 'd' instead of 'c'; 3 more labels differ"
    )
    assert len(differences(["x" * 10_000], ["y" * 10_000])) < 400


def test_labels_by_name() -> None:
    assert label_map(("cherry", "apple"), FRUIT).tolist() == [2, 0]
    assert label_map(FRUIT, FRUIT).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("classes", "wanted", "words"),
    [
        (("apple", "date", "fig"), FRUIT, "no class of that name for 'date', 'fig'"),
        (("apple", "apple"), FRUIT, "class names must differ, but 'apple' stands for several labels"),
        (FRUIT, (*FRUIT, "apple"), "class names must differ, but 'apple' stands for several labels"),
    ],
)
def test_names_that_cannot_be_mapped(classes: tuple[str, ...], wanted: tuple[str, ...], words: str) -> None:
    with pytest.raises(DataError, match=words):
        label_map(classes, wanted)


def test_numbers_are_no_names() -> None:
    assert is_numbered(("0", "1", "2"))
    assert not is_numbered(("0", "1", "10"))  # sorted as text: the label 2 stands for "10"
    assert not is_numbered(FRUIT)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 images of 5 classes."""
    out = tmp_path_factory.mktemp("classes") / "val"
    pack(synthetic(1, 23, num_classes=5, image_size=8), "val", out, samples_per_shard=9)
    return out


def names_by_position(place: Path, rank: int, ranks: int, classes: tuple[str, ...] | None) -> dict[int, str]:
    with eval_stream(place, batch_size=4, dp_rank=rank, dp_size=ranks, classes=classes, read=QUICK) as stream:
        return {
            position: stream.classes[label]
            for batch in stream
            for position, label, weight in zip(
                batch.positions.tolist(), batch["label"].tolist(), batch.weights.tolist(), strict=True
            )
            if weight
        }


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("order", [[4, 2, 0, 1, 3], [4, 2, 0, 1, 3, 5, 6]])
def test_every_image_keeps_its_name(split: Path, tmp_path: Path, ranks: int, order: list[int]) -> None:
    """The labels of a split in terms of other classes are places of the same names."""
    wanted = tuple(f"grating-{label}" for label in order)
    plain, mapped = (
        {k: v for rank in range(ranks) for k, v in names_by_position(split, rank, ranks, classes).items()}
        for classes in (None, wanted)
    )
    assert mapped == plain
    assert len(mapped) == 23
    with eval_stream(split, batch_size=4, classes=wanted) as stream:
        assert stream.num_classes == len(wanted)
        inverse = {old: new for new, old in enumerate(order)}
        with eval_stream(split, batch_size=4) as other:
            np.testing.assert_array_equal(stream.labels(), [inverse[old] for old in other.labels().tolist()])


def test_the_helper_of_the_tests_keeps_names(split: Path, tmp_path: Path) -> None:
    turned = relabelled(split, tmp_path / "turned", [f"grating-{label}" for label in (3, 1, 0, 2, 4)])
    assert names_by_position(turned, 0, 1, None) == names_by_position(split, 0, 1, None)


def test_a_class_that_is_unknown(split: Path) -> None:
    wanted = ["grating-2", "grating-0", "grating-1"]
    with pytest.raises(DataError, match=r"manifest.json: no class of that name for 'grating-3', 'grating-4'"):
        eval_stream(split, batch_size=4, classes=wanted)


def test_a_label_beyond_the_names_is_a_bad_sample(split: Path, tmp_path: Path) -> None:
    """A manifest that lists fewer names than its indices have labels; not a wrong index into anything."""
    write_split(tmp_path / "x", bodies_of(split)[0][:4], [0, 1, 2, 1], per_shard=4)
    manifest = read_json(tmp_path / "x" / MANIFEST_NAME)
    Manifest.from_dict(manifest | {"classes": ["a", "b"]}, tmp_path).save(tmp_path / "x")
    with eval_stream(tmp_path / "x", batch_size=4) as stream:
        with pytest.raises(DataError, match="label 2 is none of the 2 classes of the manifest"):
            stream.labels()
        with pytest.raises(DataError, match="label 2 is none of the 2 classes of the manifest"):
            list(stream)
    with (
        tiny_stream(tmp_path / "x", global_batch_size=4, micro_batch_size=4) as train,
        pytest.raises(DataError, match="label 2 is none of the 2 classes of the manifest"),
    ):
        next(iter(train))


@pytest.mark.parametrize("classes", ["ab", [0, 1], {"a": 0}, None])
def test_names_are_texts(split: Path, tmp_path: Path, classes: object) -> None:
    with pytest.raises(DataError, match="not a manifest"):
        Manifest.from_dict(read_json(split / MANIFEST_NAME) | {"classes": classes}, tmp_path)


def test_an_empty_split_says_so(split: Path, tmp_path: Path) -> None:
    said = read_json(split / MANIFEST_NAME) | {"samples": 0, "shards": []}
    with pytest.raises(DataError, match="the split holds no images"):
        Manifest.from_dict(said, tmp_path)


def test_a_training_stream_has_its_own_classes(split: Path) -> None:
    with train_stream(split, seed=0, global_batch_size=4, micro_batch_size=4) as stream:
        assert stream.classes == Manifest.load(split).classes


def test_splits_that_are_packed_together_have_the_same_classes(split: Path, tmp_path: Path) -> None:
    relabelled(split, tmp_path / "train", [f"grating-{label}" for label in (3, 1, 0, 2, 4)])
    (tmp_path / "val").symlink_to(split)
    with pytest.raises(DataError, match=r"val must have the classes of .*train: label 0 is 'grating-0' inst"):
        packed_source(tmp_path)
