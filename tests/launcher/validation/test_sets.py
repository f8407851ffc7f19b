"""What `check` says of several training and validation sets; what it accepts, trains."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_shards.format.fields import Field
from data_shards.format.index import Manifest
from data_shards.image.encode import encode_jpeg
from data_shards.order.sets import TrainSet
from data_shards.pack.sources.members import MemberFolder, member_folders
from data_shards.pack.write import pack
from launcher.config.load import ConfigError, dump_config, load_config
from launcher.preflight.data import places
from launcher.slurm.absolute_paths import with_absolute_paths
from launcher.training.banner import banner
from launcher.validation.label_spaces import class_notes
from launcher.validation.rules import problems
from launcher.validation.train_sets import images_per_epoch
from tests.data_shards.relabelled import relabelled
from tests.launcher.running import CONFIG, evaluations, overrides, run_alone, steps

GRATINGS = tuple(f"grating-{label}" for label in range(10))


def sets(**paths: Path | str) -> str:
    """The option data.train with sets of equal shares."""
    return f"data.train={{{', '.join(f'{name}: {{path: {path}}}' for name, path in paths.items())}}}"


def checked(shards: Path, *options: str) -> list[str]:
    return problems(load_config(CONFIG, overrides(shards, "run", *options)))


@pytest.fixture(scope="module")
def turned(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training images with the classes in reverse order."""
    return relabelled(shards / "train", tmp_path_factory.mktemp("turned") / "train", GRATINGS[::-1])


@pytest.fixture(scope="module")
def numbered(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training images with numbers for names."""
    out = tmp_path_factory.mktemp("numbered") / "train"
    relabelled(shards / "train", out, GRATINGS)
    replace(Manifest.load(out), classes=tuple(map(str, range(10)))).save(out)
    return out


REFUSED = [
    (
        ("data.train={a: {path: x, proportion: 0.8}, b: {path: y}}",),
        ["data.train.b.proportion (None) and b.repeat (None), while a has a proportion: give every set a "],
    ),
    (("data.train={a: {path: x, repeat: 0}}",), ["data.train.a.repeat (0.0) must lie in [1e-06, 1000]"]),
    (
        ("data.train={a: {path: x, proportoin: 1}}",),
        ["data.train.a.proportoin: no such option; did you mean data.train.a.proportion?"],
    ),
    (("data.train={a: {repeat: 1}}",), ["data.train.a.path: required, but not given"]),
    (
        ("data.train={a: {path: x, repeat: often}}", "data.val=[v]"),
        [
            "data.train.a.repeat: Input should be a valid number, unable to parse string as a number",
            "data.val: Input should be a valid string, or a mapping of names (got ['v'])",
        ],
    ),
    (("data.train={a: x}",), ["data.train.a: Input should be a mapping of options (got 'x')"]),
    (("data.val={a: 3}",), ["data.val.a: Input should be a valid string (got 3)"]),
    (("data.train={}",), ["data.train ({}) must name at least one set"]),
    (("data.val={}",), ["data.val ({}) must name at least one set"]),
    (("data.val={a.b: v}",), ["data.val ('a.b'): a set's name has letters, digits, - and _ alone"]),
    (("data.val={ema: v}",), ["data.val ('ema'): a set's name has letters"]),
    (
        ("data.train={a: {path: '{0..9}.tar'}}",),
        ["data.train.a ({0..9}.tar) must be shards with a manifest, as a mixture has exact shares"],
    ),
    (("data.val={a: v.tar}",), ["data.val.a (v.tar) must be shards with a manifest, as evaluation counts"]),
    (("data.train.b.path=x",), ["data.train holds no options (got 'data/synthetic/train')"]),
]


@pytest.mark.parametrize(("options", "lines"), REFUSED, ids=[options[0] for options, _ in REFUSED])
def test_each_mistake_is_a_line_that_names_the_set(options: tuple[str, ...], lines: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(CONFIG, options)
    found = str(caught.value).splitlines()[1:]
    assert len(found) == len(lines)
    assert all(line in text for line, text in zip(lines, found, strict=True)), found


def test_options_of_a_set_and_the_file_that_is_written(tmp_path: Path) -> None:
    config = load_config(
        CONFIG,
        (
            "data.train={a: {path: x, proportion: 4}, b: {path: y, proportion: 1}}",
            "data.train.b.proportion=2",
        ),
    )
    assert config.data.train == {
        "a": TrainSet(path="x", proportion=4),
        "b": TrainSet(path="y", proportion=2),
    }
    (tmp_path / "written.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "written.yaml") == config
    moved = with_absolute_paths(load_config(CONFIG, [sets(a="x", b="https://x/y"), "data.val={v: w}"]))
    assert list(moved.data.train_places.values()) == [f"{Path.cwd()}/x", "https://x/y"]
    assert moved.data.val_places == {"data.val.v": f"{Path.cwd()}/w"}


def test_every_set_must_be_there(shards: Path) -> None:
    found = checked(shards, sets(a=shards / "train", b="none"), f"data.val={{v: {shards}/val, w: nowhere}}")
    assert [line.partition(":")[0] for line in found] == ["data.train.b", "data.val.w"]
    assert images_per_epoch(load_config(CONFIG, [sets(a=shards / "train", b=shards / "val")]).data) == 320


def test_classes_of_sets(shards: Path, turned: Path) -> None:
    """The error names both sets; labels are mapped by name where that is asked for."""
    both = sets(right=shards / "train", turned=turned)
    (line,) = checked(shards, both)
    assert line.startswith(
        f"the classes of data.train.turned ({turned}) must be those of data.train.right ({shards}/train): "
        "label 0 is 'grating-9' instead of 'grating-0'; "
    )
    assert "data.match_classes=true" in line
    assert checked(shards, both, "data.match_classes=true") == []
    assert checked(shards, both, "task=simmim", "data.augment=null", "simmim.mask_patch_size=8") == []
    of_val = checked(shards, f"data.val={{usual: {shards}/val, turned: {turned}}}")
    assert [line.partition(" must be")[0] for line in of_val] == [
        f"the classes of data.val.turned ({turned})"
    ]


def test_members_of_sets(shards: Path, tmp_path: Path) -> None:
    """A label that is a number in one set and JSON in the other cannot stand in one batch."""
    files = {"labels/{}.json": b"3", "images/{}.jpg": encode_jpeg(np.zeros((8, 8), np.uint8), 95, "444")}
    for name, body in files.items():
        (tmp_path / name).parent.mkdir()
        for number in range(3):
            (tmp_path / name.format(number)).write_bytes(body)
    members = [
        MemberFolder(Field("image", "image"), "images"),
        MemberFolder(Field("label", "json"), "labels"),
    ]
    pack(member_folders(tmp_path, members), "train", tmp_path / "packed")
    found = checked(shards, sets(right=shards / "train", other=tmp_path / "packed"))
    assert any(
        line.startswith(
            "data.train: data.train.right and data.train.other: the member 'label' is int in one and json"
        )
        for line in found
    ), found


def test_the_cache_holds_a_shard_of_every_set(shards: Path) -> None:
    both = sets(a=shards / "train", b=shards / "val")
    found = checked(shards, both, "data.cache=cache", "data.cache_gib=1e-4")
    assert [line.rpartition(" of ")[2] for line in found] == ["data.train.a", "data.train.b", "data.val"]


def test_preflight_reads_a_sample_of_every_set(shards: Path) -> None:
    config = load_config(CONFIG, [sets(a=shards / "train", b=shards / "val"), "data.val={v: w, x: y}"])
    found = [(place.option, place.is_val) for place in places(config)]
    assert found == [
        ("data.train.a", False),
        ("data.train.b", False),
        ("data.val.v", True),
        ("data.val.x", True),
    ]


def test_what_is_accepted_trains(shards: Path, turned: Path, numbered: Path, tmp_path: Path) -> None:
    """Mapped by name, a set with the classes in another order is the set itself; so is one with numbers."""
    losses = {}
    for name, second, more in (
        ("same", relabelled(shards / "train", tmp_path / "same", GRATINGS), ()),
        ("turned", turned, ("data.match_classes=true",)),
        ("numbered", numbered, ()),
    ):
        options = (
            sets(first=shards / "train", second=second),
            f"data.val={{usual: {shards}/val, second: {second}}}",
            "train.duration=2 steps",
            *more,
        )
        line = overrides(shards, tmp_path / name, *options)
        config = load_config(CONFIG, line)
        assert problems(config) == []
        assert len(class_notes(config)) == {"same": 0, "turned": 2, "numbered": 2}[name]
        assert any("2 sets, 512 images an epoch" in text for text in banner(config))
        run_alone("train", str(CONFIG), *line)
        losses[name] = (
            [one["loss"] for one in steps(tmp_path / name)],
            [(one["eval_loss"], one["eval_second_loss"]) for one in evaluations(tmp_path / name)],
        )
    assert losses["turned"] == losses["same"]
    assert losses["numbered"] == losses["same"]
