"""Operators are built once, by one process, within a deadline, whatever a killed build left behind."""

import os
import sys
import time
from pathlib import Path

import pytest

from parallel.durable import lock_file
from parallel.zero import extensions
from parallel.zero.extensions import CACHE, ExtensionError, prepare_extensions
from tests.faults import stale_lock


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE, "")
    monkeypatch.setenv("PATH", os.environ["PATH"])


def write_builds(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Instead of a compiler."""
    monkeypatch.setattr(extensions, "BUILD", code)


def test_built_once_and_a_stale_lock_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_builds(monkeypatch, f"open('{tmp_path}/log', 'a').write('built')")
    lock = stale_lock(tmp_path / "cache", "cpu_adam")
    for _ in range(2):
        prepare_extensions(["CPUAdamBuilder"], tmp_path / "cache", 30)
    assert (tmp_path / "log").read_text() == "built"
    assert not lock.exists()
    removed, building, built = capsys.readouterr().err.splitlines()
    assert removed == f"removed {lock}, which a killed process left"
    assert building.startswith(f"building CPUAdamBuilder, once for this machine, in {tmp_path}/cache (")
    assert built.startswith("built CPUAdamBuilder in ")
    assert os.environ[CACHE] == str(tmp_path / "cache")
    assert os.environ["PATH"].startswith(str(Path(sys.executable).parent))

    lock.touch()  # of a process that is just loading it, so it seems
    os.utime(lock, (time.time() - 29, time.time() - 29))
    prepare_extensions(["CPUAdamBuilder"], tmp_path / "cache", 30)
    assert not lock.exists()


def test_a_build_that_fails_or_takes_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_builds(monkeypatch, "import sys; print('fatal error: no such file'); sys.exit(1)")
    with pytest.raises(ExtensionError, match="X cannot be built: fatal error: no such file; it needs a C"):
        prepare_extensions(["X"], tmp_path, 30)
    write_builds(monkeypatch, "import time; time.sleep(60)")
    with pytest.raises(ExtensionError, match="X took longer than 1 s to build"):
        prepare_extensions(["X"], tmp_path, 0.6)


def test_another_process_that_builds_is_waited_for(tmp_path: Path) -> None:
    with (tmp_path / "builder").open("a") as other:
        assert lock_file(other)
        with pytest.raises(ExtensionError, match="another process has been building X for 0 s"):
            prepare_extensions(["X"], tmp_path, 0.3)


@pytest.mark.slow
def test_the_cpu_adam_is_built_and_found(tmp_path: Path) -> None:
    prepare_extensions(["CPUAdamBuilder"], tmp_path, 540)
    assert list(tmp_path.glob("*/cpu_adam*.so"))
