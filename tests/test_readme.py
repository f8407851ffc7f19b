"""Every command of README.md runs; the slow tests run them in the page's order, in a copy of the checkout.

The copy has recipes with fewer steps, small images where the page says IMAGES, and Slurm's commands as
scripts that only write down how they are called. A new command on the page is run without a change here.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import yaml

from data_shards.pack.sources.registry import synthetic
from launcher.cli.program import parse
from swin_moe import build_model, save_weights
from tests.checkout import ROOT, files_of_checkout
from tests.launcher.fake_slurm import FakeSlurm
from tests.readme import PAGE, TRANSCRIPT, blocks, commands, scripts

TEXT = PAGE.read_text()
COMMANDS, SCRIPTS = commands(TEXT), scripts(TEXT)
PROGRAMS = ("git", "make", "swin-moe", "tensorboard", "cat", ".", f"{TRANSCRIPT}swin-moe")
PLACEHOLDERS = {"<this repository>": "origin/swin-moe", "NAME": "demo_cpu", "PATTERN": "capacity"}
INSTEAD = {"make test": "make --dry-run test"}  # which this test is a part of
SERVERS = ("tensorboard", "swin-moe serve")  # run until they are stopped
DEADLINE_S = 900
STEPS = "4 steps"


# The page.


def test_commands_are_read_as_a_reader_types_them() -> None:
    page = (
        "text `swin-moe a X` and `other b`\n\n    . x\n    cat > f <<END   # why\n    one # two\n    END\n"
        "    c && d    # e\n\nmore\n\n    .venv/bin/x y\n    output\n\n    .venv/bin/x z\n\n"
        "in Python:\n\n    import q\n\n    q()\n"
    )
    assert blocks(page)[0] == ". x\ncat > f <<END   # why\none # two\nEND\nc && d    # e"
    wanted = [
        ". x",
        "cat > f <<END\none # two\nEND",
        "c && d",
        ".venv/bin/x y",
        ".venv/bin/x z",
        "swin-moe a X",
    ]
    assert commands(page) == wanted
    assert scripts(page) == ["import q\n\nq()"]


def test_programs_of_the_page_are_those_that_are_installed_here() -> None:
    first = {part.split()[0] for command in COMMANDS for part in command.split("\n")[0].split("&&")}
    assert first - {"cd"} == set(PROGRAMS)
    assert len(COMMANDS) > 20
    assert len(SCRIPTS) == 1


def test_the_transcript_shows_what_make_demo_runs() -> None:
    """So that running `make demo` runs the commands of the transcript."""
    line = ["make", "--dry-run", "--assume-old=.venv/.installed", "demo"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown = [command for command in COMMANDS if command.startswith(TRANSCRIPT)]
    assert [row for row in done.stdout.splitlines() if row.startswith(TRANSCRIPT)] == shown


def test_versions_of_the_page_are_those_that_are_installed() -> None:
    """The first of each: what the tests run with."""
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    for name, package in {"torch": "torch", "torchvision": "torchvision", "DeepSpeed": "deepspeed"}.items():
        [version, *_] = re.findall(rf"\b{name} ([\d.]+\d)", TEXT)
        assert version == pins[package]
    assert "`pip install -c constraints.txt -e .`" in TEXT


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake ([a-z-]+)", "\n".join(COMMANDS)))))
def test_targets_of_make_exist(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    "line",
    [
        part.strip()
        for command in COMMANDS
        for part in command.split("&&")
        if "swin-moe " in part and "git" not in part
    ],
)
def test_arguments_of_the_page_exist(line: str) -> None:
    """Without carrying the command out, which the slow tests do."""
    words = shlex.split(line)
    assert words[0].endswith("swin-moe")
    assert parse(words[1:]).run


@pytest.mark.parametrize("path", sorted(set(re.findall(r"configs/[\w/]+\.yaml", TEXT))))
def test_configurations_of_the_page_exist(path: str) -> None:
    assert (ROOT / path).is_file()


# The commands.


class Reader:
    """Somebody who has a checkout and an environment, and follows the page.

    Args:
        place: an empty directory, which gets the copy.
        slurm: where the commands of Slurm are.
    """

    def __init__(self, place: Path, slurm: FakeSlurm) -> None:
        self.checkout = place / "swin-moe"
        own = {"PYTHONPATH": str(self.checkout), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        path = f"{self.checkout}/.venv/bin:{slurm.home}/bin:{os.environ['PATH']}"
        self.environment = {**os.environ, **own, "PATH": path, "SWIN_MOE_SITE": str(slurm.home / "site")}
        (place / "clone/origin").mkdir(parents=True)
        (place / "clone/origin/swin-moe").symlink_to(ROOT)
        self._copy()
        self._shorten()
        self._make_images()

    def type(self, command: str) -> tuple[int | None, str]:
        """Run a command in the checkout.

        Returns:
            Its exit status and what it printed; None for a server, which is stopped once it says where it is.
        """
        for placeholder, value in PLACEHOLDERS.items():
            command = command.replace(placeholder, value)
        command = INSTEAD.get(command, command)
        if command.startswith(SERVERS):
            return self._serve(command)
        place = self.checkout.parent / "clone" if command.startswith("git clone") else self.checkout
        done = self._start(command, place)
        out, _ = done.communicate(timeout=DEADLINE_S)
        return done.returncode, out

    def _start(self, command: str, place: Path) -> "subprocess.Popen[str]":
        options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(["bash", "-ec", command], cwd=place, env=self.environment, **options)

    def _serve(self, command: str) -> tuple[int | None, str]:
        """Start a server on any port, and stop it."""
        server = self._start(f"exec {command} --port 0", self.checkout)
        assert server.stdout is not None
        said = []
        for line in server.stdout:
            said.append(line)
            if "http://" in line:
                server.terminate()
                server.communicate(timeout=60)
                return None, "".join(said)
        return server.wait(), "".join(said)

    def _copy(self) -> None:
        """The files of the checkout, older than the environment, which make would install again."""
        if not Path(sys.prefix, ".installed").exists():
            pytest.skip("needs the environment of the Makefile: make setup")
        for name in files_of_checkout():
            (self.checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.checkout / name)
            os.utime(self.checkout / name, (0, 0))
        (self.checkout / ".venv").symlink_to(sys.prefix)

    def _shorten(self) -> None:
        """Fewer steps in the demo, fewer configurations in the study."""
        with self._edited("configs/demo_cpu.yaml") as demo:
            demo["train"]["duration"] = STEPS
            demo["optim"]["warmup"] = "1 steps"
        with self._edited("configs/studies/fashion_capacity.yaml") as study:
            study["overrides"]["train.duration"] = STEPS
            study["axes"] = {"model.moe.capacity_factor": [0.5, 1.0]}
            study["seeds"] = [0]
            study["evaluate"] = {"capacity_factors": [1.0], "top_k": [1]}

    @contextmanager
    def _edited(self, name: str) -> Iterator[dict[str, Any]]:
        """The options of a YAML file of the copy, which is written again."""
        file = self.checkout / name
        tree = yaml.safe_load(file.read_text())
        yield tree
        file.write_text(yaml.safe_dump(tree))

    def _make_images(self) -> None:
        """IMAGES/{train,val}/CLASS/*.jpg, a picture beside them, weights in a file."""
        source = synthetic(160, 40, 10, 32)
        for split, samples in source.splits.items():
            for number in range(len(samples)):
                sample = samples[number]
                folder = self.checkout / "IMAGES" / split / source.classes[sample["label"]]
                folder.mkdir(parents=True, exist_ok=True)
                PIL.Image.fromarray(sample["image"]).save(folder / f"{number}.jpg")
        shutil.copy(next((self.checkout / "IMAGES/val").rglob("*.jpg")), self.checkout / "cat.jpg")
        [file] = re.findall(r'load_weights\(model, "([\w.]+)"\)', TEXT)
        save_weights(build_model(Path(file).stem), self.checkout / file, "official")


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """One reader for all commands: each goes on from what those before it left."""
    place = tmp_path_factory.mktemp("readme")
    (place / "home").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        slurm = FakeSlurm(place / "home", None)  # type: ignore[arg-type]  # nothing is captured here
        slurm.install(patch)
    slurm.site()
    return Reader(place, slurm)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split("\n")[0])
def test_a_command_of_the_page_runs(command: str, reader: Reader) -> None:
    status, said = reader.type(command)
    assert status in (0, None), said


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=range(len(SCRIPTS)))
def test_a_script_of_the_page_runs(script: str, reader: Reader) -> None:
    """After the commands, which trained the model that it loads."""
    (reader.checkout / "script.py").write_text(script)
    status, said = reader.type(f"{sys.executable} script.py")
    assert status == 0, said
    assert "grating-" in said  # the name of a class
