"""Label spaces in check and train: names are compared, mapped when that is asked for, and recorded."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_shards.format.index import Manifest
from launcher.cli.program import main
from launcher.config.load import ConfigError, load_config
from launcher.validation.label_spaces import Classes, LabelFit, fit, trained_classes
from parallel.checkpoint.manifest import read_manifest, with_checksum
from tests.data_shards.relabelled import relabelled
from tests.distributed import run_on_ranks
from tests.launcher.running import (
    CONFIG,
    EXACT,
    EXACT_EVAL,
    command,
    evaluations,
    only,
    overrides,
    run_alone,
    steps,
)
from tests.messages import assert_names

FRUIT = ("apple", "banana", "cherry")
GRATINGS = tuple(f"grating-{label}" for label in range(10))
TURNED = GRATINGS[::-1]
SHORT = ("train.duration=2 steps", "train.eval_every=1 steps", "checkpoint.asynchronous=false")


def classes(*names: str, of: str = "X", unnamed: str = "") -> Classes:
    return Classes(of=of, names=names, unnamed=unnamed)


WANTED = classes(*FRUIT, of="Y")
REFUSED: list[tuple[Classes, bool, str]] = [
    (classes("banana", "apple", "cherry"), False, "label 0 is 'banana' instead of 'apple'; label 1"),
    (classes("apple", "cherry"), False, "missing: 'banana'; --match-classes (data.match_classes=true) "),
    (classes(*FRUIT, "date"), False, "4 classes instead of 3; unknown: 'date'; leave them out"),
    (classes(*FRUIT, "date"), True, "to those of Y: no class of that name for 'date'; leave them out"),
    (classes("apple", "apple", "cherry"), True, "'apple' stands for several labels"),
    (classes("0", "1"), False, "2 classes instead of 3 (X has numbers for names)"),
    (classes("0", "1", "2"), True, "no class of that name for '0', '1', '2'"),
    (classes("0", "1", "2", unnamed="so"), True, "so; leave out --match-classes (data.match_classes)"),
    (classes("0", "1", "2", "3", unnamed="so"), False, "4 classes instead of 3 (so)"),
]


@pytest.mark.parametrize(("found", "match", "words"), REFUSED, ids=range(len(REFUSED)))
def test_label_spaces_that_do_not_fit(found: Classes, match: bool, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        fit(found, WANTED, match=match, otherwise="leave them out")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "X" in str(caught.value)


def test_two_lists_of_numbers_are_compared_as_names() -> None:
    """Tars indexed apart, of which one lacks images of the last class."""
    found, wanted = classes("0", "1"), classes("0", "1", "2", of="Y")
    with pytest.raises(ConfigError, match="2 classes instead of 3; missing: '2'; --match-classes "):
        fit(found, wanted, match=False, otherwise="")
    assert fit(found, wanted, match=True, otherwise="").mapped_to == ("0", "1", "2")


@pytest.mark.parametrize("match", [False, True])
def test_the_same_names_need_no_map(match: bool) -> None:
    assert fit(classes(*FRUIT), WANTED, match=match, otherwise="") == LabelFit()
    twice = classes("crane", "crane")
    assert fit(twice, twice, match=match, otherwise="") == LabelFit()


@pytest.mark.parametrize(
    ("found", "wanted", "words"),
    [
        (classes("0", "1", "2"), WANTED, "(X has numbers for names)"),
        (classes(*FRUIT), classes("0", "1", "2", of="Y"), "(Y has numbers for names)"),
        (classes(*FRUIT), classes("0", "1", "2", of="Y", unnamed="so"), "(so)"),
    ],
)
def test_numbers_are_compared_by_number_and_a_note_says_so(
    found: Classes, wanted: Classes, words: str
) -> None:
    taken = fit(found, wanted, match=False, otherwise="")
    assert taken.mapped_to is None
    assert_names(taken.note, " X ", " Y ", words)


def test_a_map_says_what_it_lacks() -> None:
    taken = fit(classes("cherry", "apple"), WANTED, match=True, otherwise="")
    assert taken.mapped_to == FRUIT
    assert taken.note.endswith("to the 3 classes of Y; it lacks 1 of these classes: 'banana'")


# --- check -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def splits(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The validation split with other classes; only read."""
    base, val = tmp_path_factory.mktemp("splits"), shards / "val"
    lists: dict[str, tuple[Sequence[str], dict[str, str]]] = {
        "turned": (TURNED, {}),
        "fewer": (("grating-7", "grating-2", "grating-4"), {}),
        "renamed": ((*GRATINGS[:9], "other"), {"grating-9": "other"}),
        "numbers": (tuple(map(str, range(10))), {name: str(i) for i, name in enumerate(GRATINGS)}),
        "more": ((*GRATINGS, "another"), {}),
    }
    for name, (names, called) in lists.items():
        relabelled(val, base / name, names, called=called)
    return {name: base / name for name in lists}


def checked(
    capsys: pytest.CaptureFixture[str], shards: Path, val: Path, *options: str
) -> tuple[int, str, str]:
    line = ["check", str(CONFIG), "--nproc", "1", *overrides(shards, "run", f"data.val={val}")]
    return (main([*line, "data.augment=null", *options]), *capsys.readouterr())


TARS = "data.train={shards}/train/{{000000..000003}}.tar"
OF_VAL = "data.val ({val}) must be those of data.train ({shards}/train): "
MAPS = "--match-classes (data.match_classes=true) maps labels by name"
CHECKS = [
    ("turned", (), "label 0 is 'grating-9' instead of 'grating-0'"),
    ("turned", (), MAPS),
    ("fewer", (), "3 classes instead of 10; "),
    ("renamed", (), "label 9 is 'other' instead of 'grating-9'; unknown: 'other'; missing: 'grating"),
    ("renamed", ("--match-classes",), "no class of that name for 'other'; pack both splits"),
    ("more", (), "unknown: 'another'; pack both splits with the same classes"),
    ("more", ("data.match_classes=true",), "no class of that name for 'another'"),
    ("numbers", ("--match-classes",), "no class of that name for '0', '1', '2' and 7 more"),
    ("turned", (TARS, "--match-classes"), "have numbers alone; leave out --match-classes"),
]


@pytest.mark.parametrize(("name", "options", "words"), CHECKS, ids=range(len(CHECKS)))
def test_check_refuses(
    capsys: pytest.CaptureFixture[str],
    shards: Path,
    splits: dict[str, Path],
    name: str,
    options: tuple[str, ...],
    words: str,
) -> None:
    more = [option.format(shards=shards) for option in options]
    duration = ("train.duration=2 steps", "checkpoint.every=1 steps", "optim.warmup=1 steps")
    code, out, err = checked(capsys, shards, splits[name], *more, *duration)
    assert (code, out) == (2, "")
    assert err.count("\n") == 2  # "one thing to correct" and the thing
    assert words in err
    if not options:
        assert OF_VAL.format(val=splits[name], shards=shards) in err


@pytest.mark.parametrize(
    ("name", "options", "note"),
    [
        ("turned", ("--match-classes",), "mapped by name to the 10 classes of data.train ({shards}/train)\n"),
        ("fewer", ("data.match_classes=true",), "it lacks 7 of these classes: 'grating-0', 'grating-1'"),
        ("numbers", (), "compared (data.val ({val}) has numbers for names): label i is taken for label i"),
        ("renamed", ("task=simmim", "simmim.mask_patch_size=8"), ""),
        ("more", ("task=simmim", "simmim.mask_patch_size=8", "model.num_classes=3"), ""),
    ],
)
def test_check_accepts_and_says(
    capsys: pytest.CaptureFixture[str],
    shards: Path,
    splits: dict[str, Path],
    name: str,
    options: tuple[str, ...],
    note: str,
) -> None:
    code, out, err = checked(capsys, shards, splits[name], *options)
    assert (code, err) == (0, "")
    assert note.format(shards=shards, val=splits[name]) in out
    assert (" label" in out) == bool(note)


def test_check_says_that_tars_have_no_names(capsys: pytest.CaptureFixture[str], shards: Path) -> None:
    tars = TARS.format(shards=shards)
    options = ("train.duration=2 steps", "checkpoint.every=1 steps", "optim.warmup=1 steps")
    code, out, _ = checked(capsys, shards, shards / "val", tars, *options)
    assert code == 0
    assert "could not be compared (tars without a manifest have numbers alone): label i is taken for" in out
    code, _, err = checked(capsys, shards, shards / "val", tars, *options, "model.num_classes=7")
    assert code == 2
    assert f"model.num_classes (7) must be the classes of data.val (10 in {shards}/val)" in err


# --- train and resume --------------------------------------------------------------------------------


def line(shards: Path, run: Path, *more: str) -> list[str]:
    return ["train", str(CONFIG), "--resume", "auto", *overrides(shards, run, *SHORT, *more)]


@pytest.fixture(scope="module")
def plain(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, evaluated after each; only read."""
    run = tmp_path_factory.mktemp("plain") / "run"
    run_alone(*line(shards, run))
    return run


def manifest_of(run: Path) -> dict[str, Any]:
    return read_manifest(run / "checkpoints" / "step-00000002")


def test_a_mapped_validation_split_is_evaluated_as_the_same_images(
    plain: Path, shards: Path, splits: dict[str, Path], tmp_path: Path
) -> None:
    more = (f"data.val={splits['turned']}", "data.match_classes=true")
    outcome = run_alone(*line(shards, tmp_path / "run", *more))
    assert f"the labels of data.val ({splits['turned']}) are mapped by name" in outcome.out
    for read, names in ((steps, EXACT), (evaluations, EXACT_EVAL)):
        found, wanted = ([only(record, names) for record in read(run)] for run in (tmp_path / "run", plain))
        assert found == wanted
    assert len(evaluations(plain)) == 2
    assert manifest_of(tmp_path / "run")["classes"] == list(GRATINGS)


def test_a_run_records_its_classes(plain: Path, shards: Path) -> None:
    assert manifest_of(plain)["classes"] == list(GRATINGS)
    config = load_config(CONFIG, overrides(shards, "run"))
    assert trained_classes(config, None, FRUIT) == list(FRUIT)  # of tars: what evaluation takes numbers for
    assert trained_classes(replace(config, task="simmim"), GRATINGS, GRATINGS) is None
    assert trained_classes(replace(config, task="segmentation"), FRUIT, None) == list(FRUIT)  # of pixels


def renamed(shards: Path, out: Path, names: Sequence[str]) -> Path:
    """The same data set, whose classes have other names."""
    for split in ("train", "val"):
        (out / split).mkdir(parents=True)
        for file in (shards / split).iterdir():
            (out / split / file.name).symlink_to(file)
        (out / split / "manifest.json").unlink()
        replace(Manifest.load(shards / split), classes=tuple(names)).save(out / split)
    return out


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (TURNED, "label 0 is 'grating-9' instead of 'grating-0'"),
        ((*GRATINGS[:9], "other"), "label 9 is 'other' instead of 'grating-9'; unknown: 'other'"),
    ],
)
def test_a_resume_on_other_classes_is_refused(
    plain: Path, shards: Path, tmp_path: Path, names: Sequence[str], words: str
) -> None:
    other = renamed(shards, tmp_path / "other", names)
    run = shutil.copytree(plain, tmp_path / "run")
    (outcome,) = run_on_ranks(command, 1, *line(other, run, "train.duration=3 steps"), "--allow-change")
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert (
        f"is of another run: the classes of data.train ({other}/train) are not those of the ch" in outcome.err
    )
    assert words in outcome.err
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["latest", "step-00000002"]


def without_names(run: Path, out: Path) -> Path:
    """A copy of a run as an older version wrote it."""
    shutil.copytree(run, out)
    said = {key: value for key, value in manifest_of(run).items() if key not in ("classes", "sha256")}
    (out / "checkpoints" / "step-00000002" / "manifest.json").write_text(json.dumps(with_checksum(said)))
    return out


def test_an_older_run_goes_on(plain: Path, shards: Path, tmp_path: Path) -> None:
    run = without_names(plain, tmp_path / "run")
    options = ("train.duration=3 steps", "train.eval_every=3 steps", "--allow-change")
    run_alone(*line(shards, run, *options))
    assert read_manifest(run / "checkpoints" / "step-00000003")["classes"] == list(GRATINGS)


def test_tars_are_taken_for_the_classes_of_the_validation_split(
    shards: Path, splits: dict[str, Path], tmp_path: Path
) -> None:
    """Their numbers mean what data.val says, so that a resume on another data.val is another run."""
    run, tars = tmp_path / "run", TARS.format(shards=shards)
    durations = ("checkpoint.every=1 steps", "optim.warmup=1 steps")
    outcome = run_alone(*line(shards, run, tars, *durations))
    assert "could not be compared (tars without a manifest have numbers alone)" in outcome.out
    assert manifest_of(run)["classes"] == list(GRATINGS)
    more = ("train.duration=3 steps", f"data.val={splits['renamed']}")
    (refused,) = run_on_ranks(command, 1, *line(shards, run, tars, *durations, *more), "--allow-change")
    assert refused.code == 2
    assert f"the classes of data.val ({splits['renamed']}) are not those of the checkpoint" in refused.err
