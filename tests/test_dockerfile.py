"""The Dockerfile, checked as far as that goes without Docker; the slow test runs its steps in a directory."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from launcher.exit_codes import ExitCode
from tests.checkout import ROOT, files_of_checkout
from tests.dockerfile import Directory, Step, is_sent, read_steps
from tests.launcher.running import CONFIG, TINY

TEXT, IGNORED = (ROOT / "Dockerfile").read_text(), (ROOT / ".dockerignore").read_text()
STEPS = read_steps(TEXT)
MOVED = ("/opt", "/workspace", "/home/swin")
PIP = "-m pip install"
PINS = {
    canonicalize_name(name): version
    for name, version in re.findall(
        r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE
    )
}


def texts(word: str) -> list[str]:
    """What stands behind a word in the steps that have it."""
    return [step.text for step in STEPS if step.word == word]


def debian_packages() -> list[str]:
    """The packages that the image installs."""
    [install] = [text for text in texts("RUN") if "apt-get install" in text]
    words = shlex.split(re.split(r"&&|;", install.partition("apt-get install")[2])[0])
    return [word for word in words if not word.startswith("-")]


def pip_words(command: str) -> list[str]:
    """The words of a pip command from `-m pip` on."""
    return shlex.split(re.split(r"&&", command[command.index(PIP) :])[0])


# The reader itself.


def test_steps_are_read_as_docker_reads_them() -> None:
    text = (
        'ARG A=1\n# no step\nFROM x:${A}\nRUN a \\\n    # in between\n    && b ${A}\nENTRYPOINT ["t", "--"]\n'
    )
    steps = read_steps(text, A="2")
    assert [(step.word, step.text) for step in steps[1:3]] == [("FROM", "x:2"), ("RUN", "a && b ${A}")]
    assert steps[2].arguments == {"A": "2"}
    assert steps[3].command == ["t", "--"]
    for bad in ("VOLUME /x", "RUN a \\"):
        with pytest.raises(ValueError, match=re.escape(bad.removesuffix(" \\"))):
            read_steps(bad)
    with pytest.raises(ValueError, match="Expecting value"):
        _ = Step("ENTRYPOINT", "swin-moe train", {}).command


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("a/b.py", True),
        ("c.py", False),
        ("a/x.so", False),
        ("a/__pycache__/b.pyc", False),
        ("a/b/c.txt", True),
    ],
)
def test_what_is_sent_is_decided_by_the_last_line_that_matches(path: str, sent: bool) -> None:
    assert is_sent(path, "# all\n*\n!a\n**/*.so\n**/__pycache__\n") is sent


# The file.


def test_the_base_is_pinned_and_has_the_cuda_of_torch() -> None:
    [base] = texts("FROM")
    image, tag = base.split(":")
    assert image == "nvidia/cuda"
    version, kind, system = tag.split("-")
    assert version.split(".")[:2] == PINS["cuda-toolkit"].split(".")[:2]
    assert (kind, system) == ("devel", "ubuntu24.04")  # its python3 is 3.12


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_every_command_is_valid_for_a_shell(shell: str) -> None:
    for text in texts("RUN"):
        done = subprocess.run([shell, "-n"], input=text, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), text


def test_every_file_that_is_copied_exists_and_is_sent() -> None:
    files = files_of_checkout()
    sent = [file for file in files if is_sent(file, IGNORED)]
    for text in texts("COPY"):
        for source in shlex.split(text)[:-1]:
            assert source == "." or source in sent
    packages = [
        file for file in files if file.split("/")[0] in ("launcher", "swin_moe", "parallel", "data_shards")
    ]
    needed = [
        *packages,
        *(file for file in files if file.startswith("configs/")),
        "slurm/job.sbatch",
        "setup.py",
    ]
    assert [file for file in needed if file not in sent] == []


@pytest.mark.parametrize(
    "path",
    [".git/config", ".venv/bin/python", "data/x.tar", "runs/a/config.yaml", "tests/x.py", "build/lib/x.py"]
    + ["launcher/__pycache__/x.pyc", "data_shards/image/_region.cpython-312-x86_64-linux-gnu.so", "a.sif"],
)
def test_nothing_else_is_sent(path: str) -> None:
    assert not is_sent(path, IGNORED)


def test_pip_gets_what_the_makefile_gives_it() -> None:
    """The same options and pins; other extras, no cache in the layer."""
    [theirs] = [line for line in (ROOT / "Makefile").read_text().splitlines() if PIP in line and "-e" in line]
    first, second = (pip_words(text) for text in texts("RUN") if PIP in text)
    wanted = pip_words(theirs)
    assert wanted[-1] == ".[dev,mpi]"
    assert [word for word in first if word != "--no-cache-dir"] == [*wanted[:-1], ".[${EXTRAS}]"]
    assert [word for word in second if word != "--no-cache-dir"] == [*wanted[:-2], "--no-deps", "."]
    [extras] = [text for text in texts("ARG") if text.startswith("EXTRAS=")]
    assert extras == "EXTRAS=mpi"


def test_everything_that_pip_installs_is_pinned() -> None:
    """The requirements of the package and of all that they need, by what is installed here."""
    found, waiting = set[str](), [("swin-moe", {"mpi"})]
    while waiting:
        name, extras = waiting.pop()
        if name in found:
            continue
        found.add(name)
        for text in distribution(name).requires or ():
            requirement = Requirement(text)
            chosen = extras or {""}
            if not requirement.marker or any(
                requirement.marker.evaluate({"extra": extra}) for extra in chosen
            ):
                waiting.append((canonicalize_name(requirement.name), requirement.extras))
    assert len(found) > 30
    assert sorted(found - PINS.keys() - {"swin-moe"}) == []


def test_it_runs_as_a_user_under_an_init_that_gets_the_signals() -> None:
    assert texts("USER")[-1] == "swin"
    assert STEPS.index(next(step for step in STEPS if step.word == "USER")) > max(
        number for number, step in enumerate(STEPS) if step.word == "RUN"
    )
    [entry], [command] = ([step for step in STEPS if step.word == word] for word in ("ENTRYPOINT", "CMD"))
    assert entry.command == ["tini", "--", "swin-moe"]
    assert "tini" in debian_packages()
    assert command.command == ["--help"]
    assert '"swin-moe = launcher' in (ROOT / "setup.py").read_text().replace("[", "")
    assert any(text.startswith("PATH=/opt/venv/bin:${PATH}") for text in texts("ENV"))


def test_its_packages_exist() -> None:
    """In the lists of this machine, which is Debian or Ubuntu; both call them alike."""
    if not shutil.which("apt-cache") or not any(Path("/var/lib/apt/lists").glob("*_Packages*")):
        pytest.skip("needs lists of packages: apt-get update, on Debian or Ubuntu")
    packages = debian_packages()
    assert {"libjpeg-dev", "g++", "python3-dev", "python3-venv"} <= set(packages)
    done = subprocess.run(["apt-cache", "policy", *packages], capture_output=True, text=True, check=True)
    known = {
        block.split(":")[0]
        for block in re.split(r"\n(?=\S)", done.stdout)
        if "Candidate: (none)" not in block
    }
    assert [name for name in packages if name not in known] == []


# Its steps.


@pytest.mark.slow
def test_its_steps_build_a_program_that_stops_on_sigterm(tmp_path: Path) -> None:
    """In a directory in place of an image; what pip would download is taken from this environment.

    apt-get and useradd are not run. SIGTERM ends the training with a checkpoint, under tini if it is there.
    """
    files = [file for file in files_of_checkout() if is_sent(file, IGNORED)]
    image = Directory(tmp_path / "image", ROOT, files, MOVED)
    hidden = ("PYTHONPATH", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment["PATH"] = f"{Path(sys.executable).resolve().parent}:{environment['PATH']}"
    for step in STEPS:
        if "useradd" in step.text or "apt-get" in step.text:
            continue
        (image.root / "home/swin").mkdir(parents=True, exist_ok=True)
        image.take(step, environment)
        if "-m venv" in step.text:
            _share_packages(image.root / "opt/venv")
    program = image.root / "opt/venv/bin/swin-moe"
    assert "swin-moe 0." in _said([program, "--version"], tmp_path, environment)
    where = "import data_shards.image.region as r; print(r.__file__); assert r.decode_in_c"
    assert str(image.root) in _said([program.parent / "python", "-c", where], tmp_path, environment)
    _said(
        [program, "shards", "pack", "--source", "synthetic", "--out", "data/synthetic"], tmp_path, environment
    )
    [entry] = [step.command for step in STEPS if step.word == "ENTRYPOINT"]
    init = entry[:-1] if shutil.which(entry[0]) else []
    _assert_stops([*init, str(program)], tmp_path, environment)


def _said(command: list[str | Path], place: Path, environment: dict[str, str]) -> str:
    """What a command prints, which must succeed."""
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _assert_stops(program: list[str], place: Path, environment: dict[str, str]) -> None:
    """A training on two ranks that gets SIGTERM after some steps."""
    line = [*program, "train", str(CONFIG), "--nproc", "2", *TINY, "run_dir=run", "train.duration=9 epochs"]
    running = subprocess.Popen(line, cwd=place, env=environment, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 240
        while not (place / "run/metrics.jsonl").exists() and time.monotonic() < deadline:
            assert running.poll() is None
            time.sleep(0.2)
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == ExitCode.STOPPED
    finally:
        running.kill()
    assert (place / "run/checkpoints/latest").exists()


def _share_packages(venv: Path) -> None:
    """Let an environment see what is installed in this one."""
    [own] = venv.glob("lib/python*/site-packages")
    theirs = next(path for path in sys.path if path.endswith("site-packages"))
    (own / "shared.pth").write_text(f"{theirs}\n")
