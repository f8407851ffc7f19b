"""`swin-moe checkpoint ls | verify | prune`: what is listed, found damaged, deleted, and what stays."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from launcher.rundir.directory import RunDirectory
from parallel.checkpoint.commit import commit, latest
from parallel.checkpoint.manifest import describe
from parallel.checkpoint.reader import CheckpointReader
from parallel.checkpoint.write import write_tensors
from tests.launcher.stored_runs import Say, at, flip, record, tensors

# --- ls and verify -----------------------------------------------------------------------------------


def test_ls_has_a_line_each(stored_run: Path, say: Say) -> None:
    (stored_run / "checkpoints" / "step-00000040.tmp").mkdir()
    (at(stored_run, 10) / "__0_0.distcp").write_bytes(b"cut")
    code, out, _ = say("ls", stored_run)
    ten, twenty, thirty, forty = out.splitlines()
    assert code == 0
    assert "damaged: __0_0.distcp is damaged: 3 bytes instead of" in ten
    assert twenty.startswith("step-00000020 ")
    assert "1 rank, ep 1, ZeRO 1" in twenty
    assert twenty.endswith(" ok")
    assert thirty.endswith(" ok, latest")
    assert forty.endswith(" partial")


def test_ls_as_json_reads_every_byte_when_asked(stored_run: Path, say: Say) -> None:
    flip(at(stored_run, 20) / "__0_0.distcp")
    for options, sound in (([], True), (["--verify"], False)):
        entries = {row["step"]: row for row in json.loads(say("ls", stored_run, "--json", *options)[1])}
        assert list(entries) == [10, 20, 30]
        assert (entries[20]["problems"] == []) == sound
        assert [entry["latest"] for entry in entries.values()] == [False, False, True]
    assert entries[10]["layout"] == {
        "world_size": 1,
        "ep_size": 1,
        "expert_slices": 1,
        "zero_stage": 1,
    }


def test_verify_of_sound_ones(stored_run: Path, say: Say) -> None:
    code, out, _ = say("verify", stored_run)
    assert code == 0
    assert out.count("complete, 10 tensors in 2 files") == 3
    assert say("verify", at(stored_run, 20))[1].count("\n") == 1


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (
            lambda path: flip(path / "__0_0.distcp"),
            "__0_0.distcp is damaged: its sha256 is not the manifest's",
        ),
        (lambda path: flip(path / ".metadata"), ".metadata is damaged: its sha256 is not the manifest's"),
        (lambda path: (path / "__0_0.distcp").unlink(), "__0_0.distcp is missing"),
        (lambda path: (path / "manifest.json").write_text("{"), "its manifest.json cannot be read"),
    ],
)
def test_verify_names_file_and_reason(
    stored_run: Path, say: Say, spoil: Callable[[Path], Any], reason: str
) -> None:
    spoil(at(stored_run, 20))
    code, out, _ = say("verify", stored_run)
    assert code == 1
    assert f"{at(stored_run, 20)}: " in out
    assert reason in out
    assert out.count(": complete") == 2


def test_verify_holds_the_tensors_against_the_manifest(tmp_path: Path, say: Say) -> None:
    held = tensors()
    listed = {name: list(tensor.shape) for name, tensor in held.items()}
    listed["master/a.weight"] = [3, 4]
    listed["master/ghost"] = listed.pop("master/b.weight")
    write_tensors(tmp_path / "checkpoints", 1, held, record(tensors=listed))
    code, out, _ = say("verify", tmp_path)
    assert code == 1
    for reason in (
        "the tensor master/ghost is in no file",
        "the tensor master/b.weight is unknown",
        "master/a.weight has shape [4, 3], the manifest says [3, 4]",
    ):
        assert reason in out
    write_tensors(tmp_path / "other", 1, {"master/half": torch.zeros(2).half()}, record())
    assert "names torch.float16, which no checkpoint needs: refused" in say("verify", tmp_path / "other")[1]


class Evil:
    def __reduce__(self) -> Any:
        return (os.mkdir, ("executed",))


def test_a_hostile_description_is_refused_unread(
    tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    partial = tmp_path / "checkpoints" / "step-00000001.tmp"
    partial.mkdir(parents=True)
    (partial / ".metadata").write_bytes(pickle.dumps(Evil()))
    files = describe([partial / ".metadata"])
    commit(partial, partial.with_suffix(""), {"step": 1, "files": files, "tensors": {"master/a": [1]}})
    code, out, _ = say("verify", tmp_path)
    assert code == 1
    assert "names posix.mkdir, which no checkpoint needs: refused" in out
    assert say("diff", tmp_path, tmp_path)[0] == 2
    assert not (tmp_path / "executed").exists()


def test_a_pointer_to_nothing_is_damage(stored_run: Path, say: Say) -> None:
    (stored_run / "checkpoints" / "latest").write_text("step-00000099\n")
    code, out, _ = say("verify", stored_run)
    assert code == 1
    assert "names step-00000099, which is not a checkpoint" in out


# --- prune -------------------------------------------------------------------------------------------


def names(run: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (run / "checkpoints").glob("step-" + "[0-9]" * 8))


def test_prune_keeps_the_last_and_every_so_many(stored_run: Path, say: Say) -> None:
    stale = stored_run / "checkpoints" / "step-00000040.tmp"
    stale.mkdir()
    code, out, _ = say("prune", stored_run, "--keep-last", "1", "--keep-every", "20", "--dry-run")
    assert code == 0
    assert out.splitlines() == [
        f"would delete {at(stored_run, 10)}",
        f"would delete {stale}",
        "step-00000020, step-00000030 stay",
    ]
    assert names(stored_run) == [10, 20, 30]
    assert say("prune", stored_run, "--keep-last", "1", "--keep-every", "20")[0] == 0
    assert names(stored_run) == [20, 30]
    assert not stale.exists()
    assert CheckpointReader(at(stored_run, 20))["buffer/router.bias_steps"].tolist() == [20, 21, 22, 23]


def test_prune_keeps_what_latest_names_and_counts_no_damaged_one(stored_run: Path, say: Say) -> None:
    (stored_run / "checkpoints" / "latest").write_text("step-00000020\n")
    say("prune", stored_run, "--keep-last", "1")
    assert names(stored_run) == [20]
    for step in (30, 40):
        write_tensors(stored_run / "checkpoints", step, tensors(step), record())
    (at(stored_run, 40) / ".metadata").unlink()
    say("prune", stored_run, "--keep-last", "2")
    assert names(stored_run) == [20, 30, 40]


def test_prune_is_refused_while_the_run_is_at_work(stored_run: Path, say: Say) -> None:
    training = RunDirectory(stored_run)
    training.lock(resume=True)
    (stored_run / "checkpoints" / "step-00000040.tmp").mkdir()  # its save under way
    code, _, error = say("prune", stored_run, "--keep-last", "1")
    assert code == 2
    assert "is in use by" in error
    training.unlock()
    assert names(stored_run) == [10, 20, 30]
    assert (stored_run / "checkpoints" / "step-00000040.tmp").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["ls", "{tmp}/nowhere"], "is no run with checkpoints"),
        (["verify", "{stored_run}/lock"], "is no run with checkpoints"),
        (["diff", "{stored_run}"], "takes A B or RUN STEP STEP, not 1 arguments"),
        (["diff", "{stored_run}", "10", "11"], "has no checkpoint 11; it has step-00000010, step-00000020"),
        (
            ["prune", "{stored_run}/checkpoints/step-00000010", "--keep-last", "1"],
            "is no run with checkpoints",
        ),
        (["export", "{tmp}", "{tmp}/out"], "is no run with a checkpoint"),
        (
            ["export", "{stored_run}", "{tmp}/out", "--checkpoint", "step-1"],
            "has no checkpoint step-1; it has",
        ),
    ],
)
def test_mistakes_are_said_in_one_line(stored_run: Path, say: Say, line: list[str], message: str) -> None:
    code, _, error = say(*(part.format(stored_run=stored_run, tmp=stored_run.parent) for part in line))
    assert code == 2
    assert message in error
    assert error.count("\n") == 1
    assert latest(stored_run / "checkpoints") == at(stored_run, 30)
