"""Damage of any kind is found before anything is read, and the checkpoint before takes over."""

import contextlib
import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from parallel.checkpoint.commit import committed, latest
from parallel.checkpoint.latest import latest_intact
from parallel.checkpoint.load import load_weights
from parallel.checkpoint.manifest import CheckpointError, read_manifest, with_checksum
from parallel.checkpoint.verify import read_verified
from tests.distributed import run_on_ranks
from tests.messages import assert_each_names, assert_names
from tests.parallel.checkpoint.saving import PlainMasterWeights, names, resumed_step, save

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
FLIPS = 200


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """The checkpoints of steps 1, 2 and 3."""
    for step in (1, 2, 3):
        save(tmp_path, step)
    return tmp_path


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def flip_in_the_middle(path: Path) -> None:
    flip(path, path.stat().st_size // 2 * 8)


def test_every_flipped_bit_is_refused(tmp_path: Path) -> None:
    """Random bits of all files together, and at least some of each."""
    path, draw = save(tmp_path, 1), random.Random(7)
    files = sorted(path.iterdir())
    bits = [(file, bit) for file in files for bit in range(8 * file.stat().st_size)]
    chosen = draw.sample(bits, FLIPS - 20 * len(files))
    for file in files:
        chosen += [(file, bit) for bit in draw.sample(range(8 * file.stat().st_size), 20)]
    assert len(chosen) == FLIPS
    harmless = []
    for file, bit in chosen:
        flip(file, bit)
        try:
            read_verified(path)
            harmless.append((file.name, bit))
        except CheckpointError:
            pass
        flip(file, bit)
    read_verified(path)
    assert harmless == []


def test_every_thirteenth_bit_of_a_manifest_counts(tmp_path: Path) -> None:
    """A flip is refused, or the manifest still says the very same (`\\u00e9` as `\\u00E9`)."""
    path = save(tmp_path, 1)
    manifest, whole = path / "manifest.json", read_verified(path)
    for bit in range(0, 8 * manifest.stat().st_size, 13):
        flip(manifest, bit)
        with contextlib.suppress(CheckpointError):
            assert read_manifest(path) == whole
        flip(manifest, bit)


def test_every_bit_of_the_pointer_is_harmless(three: Path) -> None:
    """The newest that is whole is taken, or, where the name is now an older one's, that is said."""
    pointer = three / "latest"
    for bit in range(8 * pointer.stat().st_size):
        flip(pointer, bit)
        found = latest_intact(three)
        assert found is not None
        if found.path.name != "step-00000003":
            assert_each_names(found.notices, ("`latest` ", found.path.name, "step-00000003"))
        flip(pointer, bit)
    assert resumed_step(three) == (3, [])


# --- falling back


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def refill(text: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(text) and None  # type: ignore[func-returns-value]


DAMAGES: list[tuple[str, Callable[[Path], Any], str]] = [
    ("__0_0.distcp", flip_in_the_middle, "__0_0.distcp is damaged: its sha256 is not the manifest's"),
    ("__0_0.distcp", cut, "__0_0.distcp is damaged: {cut} bytes instead of {size}"),
    (".metadata", flip_in_the_middle, ".metadata is damaged: its sha256 is not the manifest's"),
    (".metadata", Path.unlink, "[Errno 2] No such file or directory: '{path}/.metadata'"),
    ("manifest.json", flip_in_the_middle, "manifest.json is damaged: its sha256 is not what it says"),
    ("manifest.json", cut, "is not a checkpoint: its manifest.json cannot be read ("),
    ("manifest.json", refill("[1]"), "is not a checkpoint: its manifest.json is no JSON object"),
    ("manifest.json", refill("[" * 100_000), "is not a checkpoint: its manifest.json cannot be read ("),
    ("manifest.json", refill("{}"), "is not a checkpoint: its manifest.json is that of something else"),
    ("manifest.json", refill('{"format": 2}'), "manifest.json is damaged: its sha256 is not what it says"),
    (
        "manifest.json",
        refill(json.dumps(with_checksum({"files": {}}))),
        "is not a checkpoint: manifest.json has no valid entry for step",
    ),
    (
        "manifest.json",
        refill(json.dumps(with_checksum({"step": 3, "files": {"../secret": {"bytes": 1, "sha256": ""}}}))),
        "is not a checkpoint: manifest.json has no valid entry for files",
    ),
    (
        "manifest.json",
        refill(json.dumps(with_checksum({"step": 3, "files": {"a": {"bytes": 1}}}))),
        "is not a checkpoint: manifest.json has no valid entry for sha256 of a file",
    ),
    (
        "manifest.json",
        refill(json.dumps(with_checksum({"step": 3, "files": {}, "tensors": {"a": "b"}}))),
        "is not a checkpoint: manifest.json has no valid entry for tensors",
    ),
    (
        "manifest.json",
        refill(json.dumps(with_checksum({"step": 3, "files": {}}))),
        "is not a checkpoint: its manifest describes no tensors",
    ),
]


@pytest.mark.parametrize(("name", "damage", "reason"), DAMAGES)
def test_a_damaged_one_is_named_and_the_one_before_is_taken(
    three: Path, name: str, damage: Callable[[Path], Any], reason: str
) -> None:
    path = three / "step-00000003"
    size = (path / name).stat().st_size
    damage(path / name)
    left = {file: file.read_bytes() for file in path.iterdir()}
    step, notices = resumed_step(three)
    assert step == 2
    (notice,) = notices
    assert notice.startswith(f"step-00000003 is damaged: {reason.format(path=path, size=size, cut=size - 1)}")
    assert notice.endswith("; it stays where it is, step-00000002 takes its place")
    assert {file: file.read_bytes() for file in path.iterdir()} == left
    with pytest.raises(CheckpointError):  # asked for by name there is no other
        load_weights(path, PlainMasterWeights().module, 0)


def test_several_damaged_ones_are_passed_over(three: Path) -> None:
    flip_in_the_middle(three / "step-00000003" / "__0_0.distcp")
    cut(three / "step-00000002" / ".metadata")
    step, notices = resumed_step(three)
    assert step == 1
    assert [notice.split(" ", 1)[0] for notice in notices] == ["step-00000003", "step-00000002"]


def test_without_a_whole_one_every_reason_is_told(three: Path) -> None:
    for path in committed(three):
        flip_in_the_middle(path / "__0_0.distcp")
    with pytest.raises(CheckpointError) as error:
        latest_intact(three)
    message = str(error.value)
    assert_names(message, str(three), "run_dir")
    for step in (3, 2, 1):
        assert re.search(rf"step-{step:08d} [^;]*__0_0\.distcp [^;]*sha256", message), message


def test_nothing_at_all_is_a_fresh_start(tmp_path: Path) -> None:
    assert latest_intact(tmp_path) is None
    assert latest_intact(tmp_path / "not there") is None


@pytest.mark.parametrize(
    "content", [None, b"", b"step-00000009\n", b"../elsewhere\n", b"\xff\xfe", b"step-00000003"]
)
def test_a_pointer_that_is_lost_or_wrong(three: Path, content: bytes | None) -> None:
    (three / "latest").unlink()
    if content is not None:
        (three / "latest").write_bytes(content)
    step, notices = resumed_step(three)
    assert step == 3
    assert len(notices) == (content != b"step-00000003")
    assert all("latest" in notice for notice in notices)


def test_a_person_may_go_back(three: Path) -> None:
    (three / "latest").write_text("step-00000002\n")
    step, notices = resumed_step(three)
    assert step == 2
    assert_each_names(notices, ("`latest` ", "step-00000002", "step-00000003"))
    flip_in_the_middle(three / "step-00000002" / "__0_0.distcp")
    assert resumed_step(three)[0] == 1  # never one that the run has turned its back on


def test_the_run_replaces_a_damaged_step_when_it_comes_there_again(three: Path) -> None:
    flip_in_the_middle(three / "step-00000003" / "__0_0.distcp")
    assert resumed_step(three)[0] == 2
    save(three, 3)
    assert resumed_step(three) == (3, [])
    assert names(three) == ["latest", "step-00000001", "step-00000002", "step-00000003"]


def newest_of_two(directory: Path) -> tuple[str, list[str]]:
    found = latest_intact(directory)
    assert found is not None
    assert dist.get_world_size() == 2
    return found.path.name, found.notices


def test_two_ranks_agree_on_the_one_before(three: Path) -> None:
    flip_in_the_middle(
        three / "step-00000003" / "__0_0.distcp"
    )  # of .metadata and this, rank 1 verifies this
    (first, notices), (second, same) = run_on_ranks(newest_of_two, 2, three)
    assert (first, notices) == (second, same)
    assert first == "step-00000002"
    assert notices[0].startswith("step-00000003 is damaged: rank 1: __0_0.distcp is damaged")


def test_a_copied_run_is_whole(three: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(three, tmp_path / "copy")
    assert resumed_step(copy) == (3, [])
    assert latest(copy) == copy / "step-00000003"
