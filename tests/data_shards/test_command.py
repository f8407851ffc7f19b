"""`swin-moe shards ...` from its arguments to what it prints."""

from pathlib import Path

import pytest

from data_shards.errors import DataError
from data_shards.format.index import Manifest
from data_shards.pack.sources.registry import SOURCES
from launcher.cli.parsers.shards_pack import parse_bytes
from launcher.cli.program import run
from launcher.cli.shards_source import OF_FASHION
from launcher.console.progress import duration, line
from tests.data_shards.image_folders import contents, make_folder


def command(*words: str | Path) -> int:
    return run(["shards", *map(str, words)])


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    pack_into(tmp_path)
    return tmp_path


def pack_into(out: Path) -> int:
    options = {"train": 30, "val": 7, "classes": 3, "size": 8}
    sizes = [word for name, value in options.items() for word in (f"--synthetic-{name}", str(value))]
    return command("pack", "--source", "synthetic", *sizes, "--samples-per-shard", "10", "--out", out)


def test_pack_writes_both_splits_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = tmp_path
    assert pack_into(packed) == 0
    assert Manifest.load(packed / "train").samples_per_shard.tolist() == [10, 10, 10]
    assert Manifest.load(packed / "val").samples == 7
    out, err = capsys.readouterr()
    digest = Manifest.load(packed / "train").digest[:12]
    assert f"{packed}/train: synthetic, 30 samples in 3 shards, manifest {digest}" in out
    assert "train [########################] 100% 30/30 samples" in err


def test_verify_exits_1_and_names_the_sample(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("verify", packed, "--decode", "--workers", "2") == 0
    path = packed / "train" / "000001.tar"
    body = bytearray(path.read_bytes())
    body[512 + 20] ^= 1  # the first JPEG of the shard: key 10
    path.write_bytes(body)
    capsys.readouterr()
    assert command("verify", packed) == 1
    assert f"{path}: 00000010: image: checksum differs" in capsys.readouterr().out


def test_info_counts_each_class(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("info", packed / "val") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:] == [f"    {n:8d}  grating-{i}" for i, n in enumerate((3, 2, 2))]  # 7 mod 3


def test_errors_reach_main(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such directory"):
        command("info", tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"--workers \(0\)"):
        command("verify", tmp_path, "--workers", "0")


def test_info_shows_sizes(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert command("info", packed / "train", "--classes", "1") == 0
    text = capsys.readouterr().out
    assert "30 samples, 3 shards" in text
    assert "shards: 0.02539 MiB, 10 samples" in text
    assert "512 B ...    1 KiB         30  " + 40 * "#" in text
    assert "the 1 smallest:\n" + 10 * " " + "10  grating-0" in text


def test_a_folder_by_tasks_with_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folder(tmp_path / "in", {"train": 30, "val": 6})
    (tmp_path / "in" / "train" / "class-1" / "0001.jpg").write_bytes(b"x")
    line = ["pack", "--source", "folder", "--directory", tmp_path / "in", "--bytes-per-shard", "20kB"]
    assert command(*line, "--out", tmp_path / "a") == 0
    for i in range(3):
        assert command(*line, "--out", tmp_path / "b", "--task", f"{i}/3") == 0
    assert "this task is done, others are not" in capsys.readouterr().out
    assert command("pack", "--out", tmp_path / "b", "--task", "merge") == 0
    for split in ("train", "val"):
        assert contents(tmp_path / "a" / split) == contents(tmp_path / "b" / split)
    assert (
        f"1 damaged sources were left out, see {tmp_path}/b/train/bad_sources.tsv" in capsys.readouterr().out
    )


def test_notes_and_allow_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_folder(tmp_path / "in", {"train": 6, "valid": 6})
    for name in ("train/.ipynb_checkpoints", "train/empty", "valid/empty"):
        (root / name).mkdir()
    line = ["pack", "--source", "folder", "--directory", root, "--out", tmp_path / "out"]
    with pytest.raises(DataError, match="1 of 4 classes have no images: empty; .* --allow-empty"):
        command(*line)
    with pytest.raises(DataError, match="--splits vall"):
        command(*line, "--allow-empty", "--splits", "train", "vall")
    assert not (tmp_path / "out").exists()
    assert command(*line, "--allow-empty") == 0
    said = capsys.readouterr().err
    for note in (
        "valid: used as the split val",
        "train: skipped hidden",
        "val: 1 of 4 classes have no images",
    ):
        assert note in said
    assert Manifest.load(tmp_path / "out" / "val").classes == ("class-0", "class-1", "class-2", "empty")


def test_an_empty_split_is_refused_before_another_is_packed(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "in", {"train": 6})
    (root / "val" / "class-0").mkdir(parents=True)
    with pytest.raises(DataError, match="split: val of folder has no samples; leave it out of --splits"):
        command("pack", "--source", "folder", "--directory", root, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_repair_says_what_it_did(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = packed / "train"
    (train / "000001.idx").unlink()
    body = bytearray((train / "000002.tar").read_bytes())
    body[600] ^= 1
    (train / "000002.tar").write_bytes(body)
    assert command("repair", train) == 1
    out = capsys.readouterr().out
    assert f"{train}/000001.idx: made again from its tar" in out
    assert f"{train}/000002.tar: 00000020: image: checksum" in out
    assert "2 problems remain: pass --source (and --directory), or --drop-to NEW" in out
    assert command("repair", train, "--drop-to", packed / "new") == 0
    assert "00000020: left out (label" in capsys.readouterr().out
    sizes = ["--synthetic-train", 30, "--synthetic-val", 7, "--synthetic-classes", 3, "--synthetic-size", 8]
    assert command("repair", train, "--source", "synthetic", *sizes) == 0
    assert "000002.tar: made again from source" in capsys.readouterr().out
    assert command("verify", train) == 0
    assert command("repair", train) == 0
    assert "nothing is damaged, nothing to repair" in capsys.readouterr().out


def test_index_split_and_pack_again(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = packed / "indexed"
    (packed / "names").write_text("one\ntwo\nthree\n")
    assert (
        command("index", packed / "train", "--out", out, "--classes", packed / "names", "--workers", "2") == 0
    )
    text = capsys.readouterr().out
    assert "30 samples of 3 classes in 3 tars" in text
    assert "this is not guaranteed" in text
    assert command("split", out, "--val-per-class", "2", "--out", packed / "carved") == 0
    assert f"{packed}/carved/val: 6 samples in 1 shard," in capsys.readouterr().out
    assert Manifest.load(packed / "carved" / "val").classes == ("one", "two", "three")
    assert command("pack", "--source", "shards", "--directory", out, "--out", packed / "again") == 0
    assert Manifest.load(packed / "again" / "train").samples == 30


@pytest.mark.parametrize(("text", "size"), [("100MB", 10**8), ("64MiB", 2**26), ("1.5kb", 1500), ("7", 7)])
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("words", [("--bytes-per-shard", "ten"), ("--task", "3/3"), ("--task", "x")])
def test_bad_arguments_are_named(words: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command("pack", "--source", "synthetic", "--out", "x", *words)
    assert f"argument {words[0]}" in capsys.readouterr().err


def test_sources_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--source is needed"):
        command("pack", "--out", tmp_path)
    with pytest.raises(DataError, match="no such directory"):
        command("pack", "--out", tmp_path / "none", "--task", "merge")
    with pytest.raises(DataError, match="--source imagenet22k needs --directory"):
        command("pack", "--source", "imagenet22k", "--out", tmp_path)


@pytest.mark.parametrize("source", sorted(set(SOURCES) - {"synthetic", *OF_FASHION}))
def test_a_source_without_a_directory_is_one_line(source: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"--source {source} needs --directory: "):
        command("pack", "--source", source, "--out", tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("synthetic", "--directory", "."), "--directory is for .*; leave it out with --source synthetic"),
        (("folder", "--synthetic-size", "3"), "--synthetic-size is for --source synthetic; leave it out"),
        (
            ("shards", "--allow-empty"),
            "--allow-empty is for --source folder, imagenet, imagenet-zip and imagenet22k",
        ),
        (("imagenet-zip", "--as-split", "val"), "--as-split is for --source folder; leave it out"),
        (("folder", "--member", "image=a"), "--member is for --source members; leave it out"),
        (("os:sep", "--directory", "."), "--source os:sep must be a function"),
        (
            ("os:getcwd", "--directory", "."),
            "--source os:getcwd must be a function of the directory alone: too",
        ),
        (("os:listdir", "--directory", "."), "--source os:listdir gave a list; it must return a Source"),
        (("synthetic", "--name", " "), r"--name ' ': write a name of printable characters"),
        (("synthetic", "--name", "a\nb"), r"--name 'a\\nb': write a name of printable characters"),
    ],
)
def test_what_a_source_cannot_use_is_refused(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        command("pack", "--source", *words, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_set_has_the_name_that_it_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Packed anew from these shards it keeps the name, and it is repaired from its source as any other."""
    make_folder(tmp_path / "in", {"train": 12})
    from_folder = ("--source", "folder", "--directory", tmp_path / "in")
    assert command("pack", *from_folder, "--name", "pets", "--out", tmp_path / "out") == 0
    assert f"{tmp_path}/out/train: pets, 12 samples in 1 shard" in capsys.readouterr().out
    again = ("--source", "shards", "--directory", tmp_path / "out")
    assert command("pack", *again, "--out", tmp_path / "again") == 0
    assert Manifest.load(tmp_path / "again/train").name == "pets"
    before = contents(tmp_path / "out/train")
    (tmp_path / "out/train/000000.tar").write_bytes(b"")
    assert command("repair", tmp_path / "out/train", *from_folder) == 0
    assert contents(tmp_path / "out/train") == before
    capsys.readouterr()
    assert command("info", tmp_path / "out") == 0
    assert "source image folder; shuffled with seed 0; manifest" in capsys.readouterr().out


def test_a_folder_of_classes_is_the_split_that_it_is_called(tmp_path: Path) -> None:
    """The same shards, byte for byte, as from a folder with the split's own directory."""
    make_folder(tmp_path / "in", {"val": 12})
    whole = ("--source", "folder", "--directory", tmp_path / "in")
    assert command("pack", *whole, "--out", tmp_path / "a") == 0
    with pytest.raises(DataError, match="of a folder of classes without splits: --as-split train"):
        command("pack", "--source", "folder", "--directory", tmp_path / "in/val", "--out", tmp_path / "b")
    one = ("--source", "folder", "--directory", tmp_path / "in/val", "--as-split", "val")
    assert command("pack", *one, "--out", tmp_path / "b") == 0
    assert contents(tmp_path / "a/val") == contents(tmp_path / "b/val")
    with pytest.raises(DataError, match=r"in: holds val/, which are splits; use --source folder, no --as"):
        command("pack", *whole, "--as-split", "val", "--out", tmp_path / "c")


def test_the_progress_line() -> None:
    assert line(250, 1000, 50.0, "samples") == (
        "[######..................] 25% 250/1000 samples, 50 a second, 0:15 left"
    )
    assert line(10, 10, 2.5, "tars") == "[########################] 100% 10/10 tars, 2.5 a second"
    assert duration(3723) == "1:02:03"
