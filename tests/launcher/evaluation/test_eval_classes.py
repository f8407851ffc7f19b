"""`swin-moe eval` on data with other classes than the run's: refused, or mapped by name to equal figures."""

import csv
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist

from launcher.config.load import ConfigError
from launcher.evaluation.labels import FORMAT
from launcher.evaluation.support import check_bank, check_neighbours, check_shots
from parallel.checkpoint.manifest import read_manifest, with_checksum
from tests.data_shards.relabelled import relabelled
from tests.data_shards.streams import eval_stream
from tests.distributed import run_on_ranks
from tests.launcher.packed import pack_synthetic
from tests.launcher.running import CONFIG, command, commands, overrides, run_alone
from tests.messages import assert_each_names, assert_names

CHECKPOINT = "step-00000012"
CLASSES = tuple(f"grating-{label}" for label in range(6))
TURNED = ("grating-4", "grating-0", "grating-5", "grating-2", "grating-1", "grating-3")
FEWER = ("grating-3", "grating-1", "grating-5")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 and 41 images of 6 classes, and the same with other lists of classes; only read."""
    out = tmp_path_factory.mktemp("data")
    pack_synthetic(out, 96, 41, num_classes=6, image_size=16, samples_per_shard=32)
    others: dict[str, tuple[Sequence[str], dict[str, str], dict[str, int]]] = {
        "turned": (TURNED, {}, {}),
        "fewer": (FEWER, {}, {}),
        "more": ((*CLASSES, "plaid"), {"grating-2": "plaid"}, {}),
        "renamed": ((*CLASSES[:5], "plaid"), {"grating-5": "plaid"}, {}),
        "numbers": (tuple("012345"), {name: name[-1] for name in CLASSES}, {}),
    }
    for name, (names, called, images) in others.items():
        relabelled(out / "val", out / name, names, called=called, images=images)
    relabelled(out / "train", out / "scarce", CLASSES, images={"grating-2": 2, "grating-4": 1})
    relabelled(out / "train", out / "without", CLASSES, images={"grating-5": 0})
    relabelled(out / "train", out / "turned_train", TURNED)
    return out


def trained(data: Path, path: Path, *more: str) -> Path:
    options = ("model.num_classes=6", "model.init_std=0.1", "optim.base_lr=5e-2", "data.augment=null")
    duration = ("train.duration=12 steps", "optim.warmup=4 steps", "train.eval_every=null")
    line = ["train", str(CONFIG), *overrides(data, path, *options, *duration, *more)]
    run_alone(*line)
    return path


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned a little."""
    return trained(data, tmp_path_factory.mktemp("run") / "run")


def table(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def results(run: Path, lines: list[list[str]]) -> list[dict[str, Any]]:
    """Everything that `eval` writes with each of these options, as rank 0 finds it, and what it says."""
    found = []
    for options in lines:
        outcome = command("eval", str(run), *options)
        assert outcome.code == 0, outcome.err
        files: dict[str, Any] = {"err": outcome.err}
        for path in (run / "eval" / CHECKPOINT).iterdir() if dist.get_rank() == 0 else ():
            if path.suffix == ".json":
                files[path.stem] = without_speed(json.loads(path.read_text()))
            elif path.suffix == ".csv":
                files[path.stem] = table(path)
            path.unlink()
        found.append(files)
        dist.barrier()
    return found


def without_speed(record: Any) -> Any:
    """A record without what differs from one evaluation to the next."""
    if isinstance(record, Mapping):
        left = {name: value for name, value in record.items() if name not in ("images_s", "ranks")}
        return {name: without_speed(value) for name, value in left.items()}
    return list(map(without_speed, record)) if isinstance(record, list) else record


def near(record: Any) -> Any:
    """What equals the same record, but for the last digits of its sums."""
    if isinstance(record, Mapping):
        return {name: near(value) for name, value in record.items()}
    if isinstance(record, list):
        return list(map(near, record))
    return pytest.approx(record, abs=1e-6) if isinstance(record, float) else record


EVERYTHING = ["--confusion", "--affinity", "--sweep-capacity", "0.5,0", "--sweep-top-k", "1"]
EVERYTHING += ["--few-shot", "3", "--knn", "5", "train.eval_batch_size=8"]
FILES = {"evaluation", "confusion", "classes", "sweep", "few_shot", "knn", "affinity-layers.1.blocks.1"}


@pytest.fixture(scope="module")
def plain(run: Path) -> dict[str, Any]:
    """All figures on the run's own data."""
    return run_on_ranks(results, 1, run, [EVERYTHING])[0][0]


@pytest.mark.long
@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_labels_mapped_by_name_change_no_figure(
    run: Path, data: Path, plain: dict[str, Any], ranks: int
) -> None:
    """Top-1, top-5, loss, capacity, confusion, affinity, sweep, few-shot and k-NN of the same images."""
    assert plain.keys() == {"err", *FILES}
    lines = [[*EVERYTHING, "--match-classes", f"data.val={data}/turned"], EVERYTHING]
    mapped, again = run_on_ranks(results, ranks, run, lines)[0]
    for name in FILES:
        assert mapped[name] == again[name], name
        assert mapped[name] == near(plain[name]), name
    assert again["err"] == plain["err"] == ""
    assert_each_names(
        mapped["err"].splitlines(),
        (f"data.val ({data}/turned)", "6 classes", str(run)),
        (f"data.val ({data}/turned)", "6 classes", f"data.train ({data}/train)"),
    )


def test_fewer_classes_are_rows_of_the_whole(run: Path, data: Path, plain: dict[str, Any]) -> None:
    """Each image is judged among all classes of the model, so that a class has the row that it had."""
    line = ["--confusion", "data.match_classes=true", f"data.val={data}/fewer"]
    (found,) = run_on_ranks(results, 1, run, [line])[0]
    header, *rows = found["confusion"]
    zero = ["0"] * len(CLASSES)
    wanted = [[row[0], *(row[1:] if row[0] in FEWER else zero)] for row in plain["confusion"][1:]]
    assert header == ["class", *CLASSES]
    assert rows == wanted
    counts = np.array([[int(count) for count in row[1:]] for row in rows])
    assert found["evaluation"]["modes"][0]["images"] == counts.sum()
    assert found["evaluation"]["modes"][0]["top1"] == pytest.approx(counts.trace() / counts.sum())
    assert found["err"].endswith("it lacks 3 of these classes: 'grating-0', 'grating-2', 'grating-4'\n")


def test_the_right_classes_of_each_image_are_mapped(run: Path, data: Path, tmp_path: Path) -> None:
    """A file of `--labels` has the numbers of data.val, whatever their order."""
    lines = []
    for name in ("val", "turned"):
        with eval_stream(data / name, batch_size=8, image_size=16) as stream:
            first = [stream.classes[label] for label in stream.labels()]
            images = [[stream.classes.index(one), stream.classes.index("grating-1")] for one in first]
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({"format": FORMAT, "images": images}))
        lines.append(["--labels", str(path), "--confusion", f"data.val={data}/{name}"])
    plain, mapped = run_on_ranks(results, 1, run, [lines[0], [*lines[1], "--match-classes"]])[0]
    assert plain["evaluation"] == mapped["evaluation"]
    assert plain["confusion"] == mapped["confusion"]
    assert plain["evaluation"]["modes"][0]["top1"] > 0
    (refused,) = run_on_ranks(command, 1, "eval", str(run), *lines[1])
    assert refused.code == 2
    assert "label 0 is 'grating-4' instead of 'grating-0'" in refused.err


def test_few_shot_on_data_of_its_own(run: Path, data: Path, plain: dict[str, Any]) -> None:
    """The classifier has no say: data.train and data.val have to agree, and not with the run."""
    options = ["--few-shot", "3", "--knn", "5", f"data.train={data}/turned_train"]
    lines = [[*options, f"data.val={data}/turned"], [*options, "--match-classes"]]
    for found in run_on_ranks(results, 1, run, lines)[0]:
        assert found["knn"]["top1"] == plain["knn"]["top1"]  # top-5 breaks ties by the order of classes
        assert found["few_shot"]["images"] == 41
    (refused,) = run_on_ranks(command, 1, "eval", str(run), *options)
    assert refused.code == 2
    assert f"data.val ({data}/val) must be those of data.train ({data}/turned_train): label 0" in refused.err


MAPS = "--match-classes (data.match_classes=true) maps labels by name"
REFUSED = [
    ("turned", [], "label 0 is 'grating-4' instead of 'grating-0'"),
    ("turned", ["--affinity"], MAPS),
    ("turned", ["--confusion"], MAPS),
    ("turned", ["--sweep-capacity", "1"], MAPS),
    ("turned", ["--few-shot", "2"], MAPS),
    ("turned", ["--knn", "2"], MAPS),
    ("fewer", [], "3 classes instead of 6; label 0 is 'grating-3' instead of 'grating-0'"),
    ("more", [], "unknown: 'plaid'; a model knows no classes but those"),
    ("more", ["--match-classes"], "no class of that name for 'plaid'; a model knows no classes but those"),
    ("renamed", [], "label 5 is 'plaid' instead of 'grating-5'; unknown: 'plaid'; missing: 'grating-5'"),
    ("renamed", ["--match-classes"], "no class of that name for 'plaid'"),
    ("renamed", ["--match-classes", "--knn", "2"], "few-shot and k-NN need images of every class"),
    ("numbers", ["--match-classes"], "no class of that name for '0', '1', '2' and 3 more"),
]
FILES_OF_LABELS = {
    "mapping": {"model_classes": [0, 1, 2, 0, 1, 2]},
    "fewer": {"model_classes": [0, 1, 2, 0, 1, 2], "images": [[1]] * 41},
}
SUPPORT = [
    (
        ["--few-shot", "3", "data.train={data}/scarce"],
        "--few-shot (3) needs 3 images of every class in data.train ({data}/scarce), but 'grating-2' has 2, "
        "'grating-4' has 1; --few-shot 1 would do",
    ),
    (
        ["--few-shot", "1", "data.train={data}/without"],
        "but 'grating-5' has 0; add images of it, or take other data.train",
    ),
    (["--knn", "1", "data.train={data}/without"], "but there are none for 1: 'grating-5' has 6; add some"),
    (
        ["--knn", "97"],
        "--knn (97) must be at most the 96 images of data.train ({data}/train); --knn 96 would",
    ),
    (["--knn", "20", "--bank", "10"], "--knn (20) must be at most --bank (10); --knn 10 would do"),
    (
        ["--knn", "5", "--bank", "97"],
        "--bank (97) must be at most the 96 images of data.train ({data}/train)",
    ),
]


def test_what_does_not_fit_is_refused_in_one_line(run: Path, data: Path) -> None:
    lines = [(["eval", str(run), f"data.val={data}/{name}", *more], words) for name, more, words in REFUSED]
    lines += [
        (["eval", str(run), *(option.format(data=data) for option in options)], words.format(data=data))
        for options, words in SUPPORT
    ]
    outcomes = run_on_ranks(commands, 1, [line for line, _ in lines])[0]
    for outcome, (line, words) in zip(outcomes, lines, strict=True):
        assert (outcome.code, outcome.out) == (2, ""), line
        assert outcome.err.count("\n") == 1
        assert words in outcome.err


def test_a_map_of_classes_says_itself_which_is_which(run: Path, data: Path, tmp_path: Path) -> None:
    """With --labels FILE names are not compared: model_classes are the numbers of data.val."""
    for name, said in FILES_OF_LABELS.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"format": FORMAT, **said}))
    mapping, fewer = (f"--labels={tmp_path}/{name}.json" for name in FILES_OF_LABELS)
    lines = [
        ["eval", str(run), mapping, f"data.val={data}/fewer", "--confusion"],
        ["eval", str(run), mapping, f"data.val={data}/fewer", "--match-classes"],
        ["eval", str(run), fewer],
        ["eval", str(run), fewer, "--confusion"],
    ]
    outcomes = run_on_ranks(commands, 1, lines)[0]
    assert [outcome.code for outcome in outcomes] == [0, 2, 0, 2]
    assert [row[0] for row in table(run / "eval" / CHECKPOINT / "confusion.csv")] == ["class", *FEWER]
    assert "model_classes already says which class is which: leave out --match-classes" in outcomes[1].err
    assert "--confusion has no row for the last of the 6 classes of data.val" in outcomes[3].err


def test_all_ranks_refuse_together(run: Path, data: Path) -> None:
    line = ["eval", str(run), "--few-shot", "3", f"data.train={data}/scarce"]
    first, second = run_on_ranks(command, 2, *line)
    assert (first.code, second.code) == (2, 2)
    assert second.err == ""
    assert first.err.startswith("ConfigError: --few-shot (3) needs 3 images of every class")


def test_numbers_are_taken_by_number(run: Path, data: Path, plain: dict[str, Any]) -> None:
    """Indexed tars with numbers for labels: their class i is the model's class i, and a note says so."""
    (found,) = run_on_ranks(results, 1, run, [["--confusion", f"data.val={data}/numbers"]])[0]
    assert found["evaluation"] == near(plain["evaluation"])
    assert [row[1:] for row in found["confusion"][1:]] == [row[1:] for row in plain["confusion"][1:]]
    assert "could not be compared" in found["err"]
    assert f"data.val ({data}/numbers) has numbers for names" in found["err"]


def test_a_run_of_an_older_version(run: Path, data: Path, plain: dict[str, Any], tmp_path: Path) -> None:
    """Its checkpoint names no classes: their number is compared, which is said."""
    old = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("eval"))
    path = old / "checkpoints" / CHECKPOINT
    said = {name: value for name, value in read_manifest(path).items() if name not in ("classes", "sha256")}
    (path / "manifest.json").write_text(json.dumps(with_checksum(said)))
    lines = [[], [f"data.val={data}/renamed"]]
    for found in run_on_ranks(results, 1, old, lines)[0]:
        assert found["evaluation"]["modes"][0]["images"] == 41
        assert found["err"].count("\n") == 1
        assert "could not be compared (its checkpoints do not record them, as those of older" in found["err"]
    wrong = [
        (["eval", str(old), f"data.val={data}/fewer"], "3 classes instead of 6"),
        (["eval", str(old), f"data.val={data}/more"], "7 classes instead of 6"),
        (["eval", str(old), "--match-classes"], "leave out --match-classes (data.match_classes)"),
    ]
    outcomes = run_on_ranks(commands, 1, [line for line, _ in wrong])[0]
    for outcome, (line, words) in zip(outcomes, wrong, strict=True):
        assert outcome.code == 2, line
        assert outcome.err.count("\n") == 1
        assert words in outcome.err


@pytest.mark.parametrize("names", [3, ["a", 1], {"a": 0}])
def test_names_that_are_no_names(run: Path, tmp_path: Path, names: Any) -> None:
    bad = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("eval"))
    path = bad / "checkpoints" / CHECKPOINT
    said = {name: value for name, value in read_manifest(path).items() if name != "sha256"}
    (path / "manifest.json").write_text(json.dumps(with_checksum(said | {"classes": names})))
    (outcome,) = run_on_ranks(command, 1, "eval", str(bad))
    assert outcome.code == 2
    assert_names(outcome.err, "CheckpointError: ", "classes", "manifest")


def test_simmim_compares_no_labels(data: Path, tmp_path: Path) -> None:
    """But few-shot does, between the images to learn from and those to judge."""
    options = ("task=simmim", "simmim.mask_patch_size=8", f"data.val={data}/renamed", "model.num_classes=3")
    run = trained(data, tmp_path / "run", *options)
    assert read_manifest(run / "checkpoints" / CHECKPOINT)["classes"] is None
    lines = [
        ["eval", str(run)],
        ["eval", str(run), "--affinity"],
        ["eval", str(run), "--knn", "2"],
        ["eval", str(run), "--knn", "2", "--few-shot", "2", f"data.val={data}/turned", "--match-classes"],
    ]
    outcomes = run_on_ranks(commands, 1, lines)[0]
    assert [outcome.code for outcome in outcomes] == [0, 0, 2, 0], outcomes
    assert f"data.val ({data}/renamed) must be those of data.train ({data}/train)" in outcomes[2].err
    assert [row[0] for row in table(run / "eval" / CHECKPOINT / "affinity-layers.1.blocks.1.csv")[1:]] == [
        *CLASSES[:5],
        "plaid",
    ]


# --- counts, by hand ---------------------------------------------------------------------------------


def test_an_empty_class_that_nobody_asks_for_is_no_hindrance() -> None:
    """Class b has an image in neither; class c has none to be judged, and enough to learn from."""
    support, query = np.array([5, 0, 5]), np.array([3, 0, 0])
    check_shots(5, "x", ("a", "b", "c"), support, query)
    check_neighbours("x", "y", ("a", "b", "c"), support, query)
    with pytest.raises(ConfigError, match=r"'b' has 0; add images of it"):
        check_shots(1, "x", ("a", "b", "c"), support, np.array([3, 1, 0]))
    with pytest.raises(ConfigError, match=r"none for 1: 'b' has 1"):
        check_neighbours("x", "y", ("a", "b", "c"), support, np.array([3, 1, 0]))


def test_many_short_classes_are_counted() -> None:
    names = tuple("abcdefg")
    with pytest.raises(
        ConfigError, match=r"'a' has 1, 'b' has 2, 'c' has 3 and 3 more; --few-shot 1 would do"
    ):
        check_shots(7, "x", names, np.arange(1, 8), np.ones(7, dtype=np.int64))


def test_a_bank_of_all_images_will_do() -> None:
    check_bank(96, None, "x", 96)
    check_bank(96, 96, "x", 96)
