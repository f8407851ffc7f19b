"""Synthetic shards, packed once for all tests of the launcher; runs that are nothing but checkpoints."""

from pathlib import Path

import pytest

from launcher.cli.program import main
from parallel.checkpoint.write import write_tensors
from tests.faults import run
from tests.launcher.fake_slurm import FakeSlurm
from tests.launcher.packed import pack_synthetic
from tests.launcher.short_run import line
from tests.launcher.stored_runs import Say, record, tensors


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """256 images to train on in four shards, and 64 in one; only read."""
    return pack_synthetic(tmp_path_factory.mktemp("shards"), 256, 64, image_size=32, samples_per_shard=64)


@pytest.fixture(scope="session")
def reference(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a short run on two ranks that nothing befell; only read."""
    path = tmp_path_factory.mktemp("reference") / "run"
    ended = run(2, line(shards, path))
    assert [rank.code for rank in ended] == [0, 0], ended[0].err
    return path


@pytest.fixture
def stored_run(tmp_path: Path) -> Path:
    """A run with checkpoints at 10, 20 and 30, the tensors of each its own."""
    for step in (10, 20, 30):
        write_tensors(tmp_path / "run" / "checkpoints", step, tensors(step), record(step * 32))
    return tmp_path / "run"


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Run a `swin-moe checkpoint` command."""

    def command(*arguments: str | Path) -> tuple[int, str, str]:
        code = main(["checkpoint", *map(str, arguments)])
        return (code, *capsys.readouterr())

    return command


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> FakeSlurm:
    """A login node whose Slurm only writes down what it is told."""
    fake = FakeSlurm(tmp_path, capsys)
    fake.install(monkeypatch)
    fake.site()
    return fake
