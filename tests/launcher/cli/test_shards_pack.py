"""`shards pack --source fashion-mnist` installs the Debian package where it may."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from data_shards.pack.sources import fashion_mnist
from launcher.cli.program import main
from tests.data_shards.pack.sources.fashion_files import write_files


@pytest.mark.parametrize(("user", "installs"), [(0, True), (1000, False)])
def test_the_package_is_installed_by_root_alone(
    user: int,
    installs: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    commands = []

    def install(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        write_files(tmp_path / "package", {"train": 4, "t10k": 1})
        return subprocess.CompletedProcess(command, 0, "", "")

    def refuse(*args: object, **options: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(fashion_mnist, "PACKAGE_DIRECTORY", tmp_path / "package")
    monkeypatch.setattr(fashion_mnist, "default_cache", lambda: tmp_path / "cache")
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr(shutil, "which", lambda program: f"/usr/bin/{program}")
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(subprocess, "run", install)
    status = main(["shards", "pack", "--source", "fashion-mnist", "--out", str(tmp_path / "out")])
    err = capsys.readouterr().err
    assert status == (0 if installs else 2)
    assert [command[:2] for command in commands] == ([["apt-get", "install"]] if installs else [])
    assert ("running: apt-get install -y" in err) == installs
    assert installs or "sudo apt-get install" in err
    assert (tmp_path / "out" / "train" / "manifest.json").exists() == installs
