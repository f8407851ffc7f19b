"""Files that a person wrote: a byte order mark is no text, and another encoding is one line."""

import codecs
from pathlib import Path

import pytest

from launcher.cli.shards_source import read_classes
from launcher.config.load import ConfigError, load_config
from launcher.slurm.array import read_tasks
from launcher.slurm.site import load_site
from launcher.study.grid.file import load_study_file
from swin_moe.text_files import TextError, read_text
from swin_moe.weights import ClassMap
from swin_moe.yaml_files import YamlError, read_yaml

TEXT = "name: Zebra\nother: Äpfel\n"
OTHERS = {
    "utf-16": "is UTF-16 text; save it as UTF-8",
    "utf-32": "is UTF-32 text; save it as UTF-8",
    "utf-16-le": "is UTF-16 text without a byte order mark; save it as UTF-8",
    "utf-16-be": "is UTF-16 text without a byte order mark; save it as UTF-8",
    "latin-1": "is not UTF-8 text: line 2 holds the byte 0xc4, as in Latin-1 or Windows-1252 text; save it "
    "as UTF-8",
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_utf_8(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(TEXT, encoding=encoding)
    assert read_text(file) == TEXT
    assert read_yaml(file)[0] == {"name": "Zebra", "other": "Äpfel"}


@pytest.mark.parametrize(("encoding", "message"), OTHERS.items())
def test_other_encodings(tmp_path: Path, encoding: str, message: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(TEXT.encode(encoding))
    with pytest.raises(TextError) as refused:
        read_text(file)
    assert str(refused.value) == f"{file} {message}"
    with pytest.raises(YamlError, match=r"^cannot read .*save it as UTF-8$"):
        read_yaml(file)


@pytest.mark.parametrize(
    "body", [b"PK\3\4\0\0\0\x08\x00", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\0" * 3 + b"a" * 90]
)
def test_binary_files(tmp_path: Path, body: bytes) -> None:
    file = tmp_path / "model.pth"
    file.write_bytes(body)
    with pytest.raises(TextError, match="is a binary file, not text$"):
        read_text(file)


def test_a_file_of_weights_is_not_read_whole(tmp_path: Path) -> None:
    file = tmp_path / "large.pth"
    with file.open("wb") as sparse:
        sparse.truncate(2**27)
    with pytest.raises(TextError, match="is no text file: it is larger than 64 MiB$"):
        read_text(file)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("model:\n\tdepths: [2]\n", "found character '\\t' that cannot start any token"),
        ("seed: 1\nseed: 2\n", "the key 'seed' stands twice, first in line 1"),
        ("- seed\n- run_dir\n", "must hold a mapping of options"),
        ("just words\n", "must hold a mapping of options"),
        ("seed: !!python/object/apply:os.system [ls]\n", "could not determine a constructor for the tag"),
        ("seed: !mine 1\n", "could not determine a constructor for the tag"),
        ("seed: &a [*a]\n", "Circular reference"),
        ("seed: [1\n", "expected ',' or ']'"),
        ("seed: *missing\n", "found undefined alias 'missing'"),
        ("seed: 1\n---\nseed: 2\n", "expected a single document"),
        (
            "a: &a [1,2,3,4,5,6,7,8]\n"
            + "".join(
                f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n"
                for a, b in zip("abcdefgh", "bcdefghi", strict=True)
            ),
            "its aliases stand for",
        ),
    ],
)
def test_yaml_that_is_no_configuration(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_config(file)
    message = str(refused.value)
    assert str(file) in message
    assert reason in message
    assert "\n" not in message


def test_anchors_are_allowed(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}\n")
    assert read_yaml(file)[0] == {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}}


def test_an_empty_file_and_a_folder(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").touch()
    (tmp_path / "marked.yaml").write_bytes(codecs.BOM_UTF8)
    for name in ("empty.yaml", "marked.yaml"):
        with pytest.raises(ConfigError, match=rf"{name} is empty; a RunConfig needs at least run_dir"):
            load_config(tmp_path / name)
    with pytest.raises(ConfigError, match=r"^cannot read .*: Is a directory; it holds empty\.yaml"):
        load_config(tmp_path)


def write(file: Path, text: str, encoding: str) -> Path:
    file.write_text(text, encoding=encoding)
    return file


READERS = {  # every kind of file that a person writes: its name, its text, how it is read
    "class map": ("map.txt", "3\n5\n", lambda file: ClassMap.read(file).indices),
    "classes": ("classes.txt", "cat\ndog\n", read_classes),
    "tasks": ("tasks.txt", "seed=1\nseed=2\n", read_tasks),
    "tasks in YAML": ("tasks.yaml", "- {seed: 1}\n", read_tasks),
    "site": ("site.yaml", "account: vision\n", lambda file: load_site({"SWIN_MOE_SITE": str(file)})),
    "study": ("study.yaml", "study_dir: s\nconfig: c.yaml\n", load_study_file),
}


@pytest.mark.parametrize("kind", READERS)
def test_every_file_of_a_person(tmp_path: Path, kind: str) -> None:
    name, text, read = READERS[kind]
    plain = read(write(tmp_path / name, text, "utf-8"))
    assert read(write(tmp_path / name, text, "utf-8-sig")) == plain
    for encoding in ("utf-16", "utf-16-le"):
        with pytest.raises(ValueError, match=r"is UTF-16 text.*; save it as UTF-8") as refused:
            read(write(tmp_path / name, text, encoding))
        assert str(tmp_path / name) in str(refused.value)
        assert "\n" not in str(refused.value)
