"""A recipe is named by its name from any directory, also where the package is installed from a wheel."""

import os
import signal
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from launcher.cli.program import main
from launcher.config.load import ConfigError, config_file, load_config
from parallel.versions import version_of
from swin_moe.recipes import list_models, recipe_files
from tests.checkout import files_of_checkout
from tests.launcher.running import overrides
from tests.launcher.study.study_runs import trial, write_all

ROOT = Path(__file__).parents[3]
NAME = "swinv2_tiny_patch4_window8_256"


def test_every_configuration_of_a_run_is_a_recipe() -> None:
    files = set(ROOT.glob("configs/**/*.yaml"))
    others = {file for file in files if file.relative_to(ROOT).parts[1] in ("base", "hardware", "studies")}
    assert set(recipe_files().values()) == files - others
    assert set(list_models()) < set(recipe_files())
    assert len(recipe_files()) == len(files - others)  # no name stands for two files


@pytest.mark.parametrize("name", sorted(recipe_files()))
def test_a_name_reads_the_file(name: str) -> None:
    assert load_config(name) == load_config(recipe_files()[name])


def test_a_file_of_the_working_directory_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert config_file(NAME) == recipe_files()[NAME]
    Path(NAME).write_text("run_dir: here")
    assert config_file(NAME) == Path(NAME)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("swinv2_tiny_patch4_window8_265", f"did you mean {NAME} or "),
        ("vgg16", "`swin-moe models --names` lists the recipes"),
    ],
)
def test_a_name_that_is_none(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match="there is neither a file nor a recipe of this name") as error:
        load_config(name)
    assert message in str(error.value)


def test_check_and_config_take_a_name(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "debug", *overrides(shards, "run")]) == 0
    assert capsys.readouterr().out.startswith("debug is valid\nrun: ")
    assert main(["config", NAME, "train.duration=7 epochs"]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["train"]["duration"] == "7 epochs"
    Path("printed.yaml").write_text(printed)
    assert load_config("printed.yaml") == load_config(NAME, ["train.duration=7 epochs"])


def test_models_lists_the_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--names"]) == 0
    assert capsys.readouterr().out.split() == list(recipe_files())
    assert main(["models", "--names", "--filter", "fashion_sim"]) == 0
    assert capsys.readouterr().out == "fashion_simmim\n"


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="^0$"):
        main(["--version"])
    assert capsys.readouterr().out.startswith(f"swin-moe {version('swin-moe')} (torch {version('torch')}, ")


def test_what_is_not_installed_has_no_version() -> None:
    """As this package in a checkout that only PYTHONPATH names."""
    assert version_of("torch") == version("torch")
    assert version_of("swin-moe-of-nobody") == "missing"


def test_a_reader_of_the_output_may_end_early(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert main(["models", "--names"]) == 128 + signal.SIGPIPE  # as a shell reports it


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages as a wheel holds them, unpacked outside the checkout."""
    out = tmp_path_factory.mktemp("wheel")
    build = ["bdist_wheel", "-q", f"--bdist-dir={out / 'b'}", f"--dist-dir={out}"]
    bases = ["egg_info", f"--egg-base={out}", "build", f"--build-base={out / 'build'}"]
    subprocess.run(
        [sys.executable, "setup.py", "-q", *bases, *build], cwd=ROOT, check=True, capture_output=True
    )
    with zipfile.ZipFile(next(out.glob("*.whl"))) as wheel:
        wheel.extractall(out / "site")
    return out / "site"


@pytest.mark.long
def test_names_from_an_installed_wheel(installed: Path, shards: Path) -> None:
    recipes = {file.stem for file in (installed / "swin_moe" / "configs").rglob("*.yaml")}
    assert recipes >= set(recipe_files())
    line = [sys.executable, "-P", "-m", "launcher", "check", "debug", *overrides(shards, "run")]
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("debug is valid\nrun: ")


def test_a_wheel_holds_every_file_of_the_packages(installed: Path) -> None:
    """Modules, templates, pages and published values; not what is read in the checkout or compiled."""
    packages = ("data_shards/", "launcher/", "parallel/", "swin_moe/")
    files = [name for name in files_of_checkout() if name.startswith(packages)]
    assert {"launcher/study/report/page.html.jinja", "launcher/serve/page.html"} < set(files)
    missing = [name for name in files if not (installed / name).is_file()]
    assert [name for name in missing if not name.endswith((".md", ".c"))] == []


@pytest.mark.slow
def test_a_report_from_an_installed_wheel(installed: Path, tmp_path: Path) -> None:
    """Its template and the published values are files beside the modules."""
    root = write_all(tmp_path / "study", [trial({"model.moe": None})])
    line = [sys.executable, "-P", "-m", "launcher", "study", "report", str(root)]
    done = subprocess.run(
        line, env={**os.environ, "PYTHONPATH": str(installed)}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (root / "report" / "index.html").read_text().startswith("<!DOCTYPE html>")
