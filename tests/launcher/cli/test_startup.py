"""Commands that need no torch start without it, and each command imports its own work alone."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.cli.program import COMMANDS, program_parser
from parallel.plug_ins import imported
from tests.launcher.fake_slurm import FakeSlurm
from tests.launcher.running import CONFIG, overrides
from tests.launcher.study.study_runs import write_troubled

ROOT = Path(__file__).parents[3]
HEAVY = ("torch", "torchvision", "deepspeed", "pandas", "matplotlib", "scipy", "transformers", "tensorboard")
PARSERS = list(program_parser().commands())
NAMES = [parser.prog.split()[1:] for parser in PARSERS]


def heavy_imports(*arguments: str, cwd: Path, names: tuple[str, ...] = HEAVY) -> tuple[int, list[str], str]:
    """Run a command in a process of its own.

    Returns:
        The exit status, the heavy packages that it imported, and its output.
    """
    code = (
        "import atexit, sys\n"
        "from launcher.__main__ import main\n"
        f"heavy = {names}\n"
        "atexit.register(lambda: print('IMPORTED', *[name for name in heavy if name in sys.modules]))\n"
        "sys.argv[0] = 'swin-moe'\n"
        "sys.exit(main())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )
    out, _, names = run.stdout.rpartition("IMPORTED")
    return run.returncode, names.split(), out + run.stderr


def test_an_import_of_torch_is_seen(tmp_path: Path) -> None:
    """`models` counts parameters of real models, and cannot do without."""
    code, heavy, out = heavy_imports(
        "models", "--filter", "swin_tiny_patch4_window7_224_22kto1k", cwd=tmp_path
    )
    assert code == 0, out
    assert "torch" in heavy


def test_the_help_of_all_commands_imports_no_torch(tmp_path: Path) -> None:
    """All in one process: a parser may import what its help names, such as the codecs, and nothing heavy."""
    code = (
        "import sys\n"
        "from launcher.cli.program import program_parser\n"
        "texts = [parser.format_help() for parser in program_parser().commands()]\n"
        f"print(len(texts), *[name for name in {HEAVY} if name in sys.modules])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == [str(len(PARSERS))]


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        ((), 2, "which command? See swin-moe --help"),
        (("--help",), 0, "    train               train a model"),
        (("--version",), 0, "swin-moe 0."),
        (("modles",), 2, "no command 'modles'; did you mean models?"),
        (("shards", "veryfi"), 2, "no command 'veryfi'; did you mean verify?"),
        (("train", "--help"), 0, "swin-moe train configs/demo_cpu.yaml"),
        (("train",), 2, "the following arguments are required: CONFIG"),
        (("models", "--names", "--filter", "swinv2_tiny"), 0, "swinv2_tiny_patch4_window8_256"),
        (("options", "lr"), 0, "optim.base_lr"),
        (("config", "swinv2_tiny_patch4_window8_256", "seed=3"), 0, "seed: 3"),
        (("config", "swinv2_tiny_patch4_window8_256", "--diff", "demo_cpu"), 0, "model.image_size: 256 in"),
        (("config", "demo_cpu", "task=simmim", "simmim.mask_ratio=2"), 2, "simmim.mask_ratio (2.0)"),
        (("check", "demo_cpu", "optim.base_lr=-1"), 2, "optim.base_lr (-1.0) must be at least 0"),
        (("train", "demo_cpu", "optim.bse_lr=1", "--nproc", "2"), 2, "did you mean optim.base_lr?"),
        (("shards", "info", "nowhere"), 2, "nowhere"),
        (("slurm", "status", "nowhere"), 2, "nowhere"),
        (("study", "status", "nowhere"), 2, "nowhere"),
        (("checkpoint", "ls", "nowhere"), 2, "nowhere"),
    ],
)
def test_starts_without_torch(tmp_path: Path, arguments: tuple[str, ...], status: int, text: str) -> None:
    check_light(tmp_path, arguments, status, text)


def check_light(cwd: Path, arguments: tuple[object, ...], status: int, text: str) -> None:
    """A command says a text, ends with a status, and imports nothing heavy."""
    code, heavy, out = heavy_imports(*map(str, arguments), cwd=cwd)
    assert text in out
    assert (code, heavy) == (status, []), out


@pytest.mark.parametrize("arguments", [("config", "swin_tiny_patch4_window7_224"), ("options", "lr")])
def test_a_configuration_is_read_without_numpy(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    code, heavy, out = heavy_imports(*arguments, cwd=tmp_path, names=("numpy", *HEAVY))
    assert (code, heavy) == (0, []), out


def test_commands_on_shards_start_without_torch(shards: Path, tmp_path: Path) -> None:
    check_light(tmp_path, ("shards", "info", shards / "val"), 0, "64 samples")
    check_light(tmp_path, ("shards", "verify", shards / "val", "--decode"), 0, "nothing damaged")


def test_commands_on_checkpoints_start_without_torch(stored_run: Path, tmp_path: Path) -> None:
    check_light(tmp_path, ("checkpoint", "ls", stored_run), 0, "step-00000030")
    prune = ("checkpoint", "prune", stored_run, "--keep-last", "2", "--dry-run")
    check_light(tmp_path, prune, 0, "would delete")


def test_commands_on_jobs_start_without_torch(slurm: FakeSlurm, shards: Path) -> None:
    submitted = slurm.say("submit", CONFIG, *overrides(shards, slurm.home / "runs" / "a"))
    assert submitted.code == 0, submitted.err
    (slurm.home / "runs/a/slurm/log.txt").write_text("step 1\n")
    run = slurm.home / "runs" / "a"
    check_light(slurm.home, ("slurm", "list", slurm.home / "runs"), 0, "runs/a")
    check_light(slurm.home, ("slurm", "status", run), 0, "7")
    check_light(slurm.home, ("slurm", "logs", run), 0, "step 1")


def test_the_status_of_a_study_needs_no_torch(tmp_path: Path) -> None:
    check_light(tmp_path, ("study", "status", write_troubled(tmp_path / "study")), 0, "finished")


def test_each_command_has_a_function_that_carries_it_out() -> None:
    """A leaf names MODULE:FUNCTION, of the arguments and the command line."""
    leaves = [parser for parser in PARSERS if "run" in parser._defaults]
    assert {parser.prog.split()[1] for parser in leaves} == set(COMMANDS)
    assert len(leaves) > 30
    for parser in leaves:
        assert len(inspect.signature(imported(parser.get_default("run"))).parameters) == 2, parser.prog


@pytest.mark.parametrize("names", NAMES, ids=" ".join)
def test_each_command_is_in_the_help_of_the_one_above(names: list[str]) -> None:
    by_name = {tuple(parser.prog.split()[1:]): parser for parser in PARSERS}
    if names:
        assert f"    {names[-1]} " in by_name[tuple(names[:-1])].format_help()
