"""Commands that need no torch start without it, and each command imports its own work alone."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.cli.program import COMMANDS, program_parser
from parallel.plug_ins import imported

ROOT = Path(__file__).parents[3]
HEAVY = ("torch", "torchvision", "deepspeed", "pandas", "matplotlib", "scipy", "transformers", "tensorboard")
PARSERS = list(program_parser().commands())
NAMES = [parser.prog.split()[1:] for parser in PARSERS]


def heavy_imports(*arguments: str, cwd: Path) -> tuple[int, list[str], str]:
    """Run a command in a process of its own.

    Returns:
        The exit status, the heavy packages that it imported, and its output.
    """
    code = (
        "import atexit, sys\n"
        "from launcher.__main__ import main\n"
        f"heavy = {HEAVY}\n"
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
    ],
)
def test_starts_without_torch(tmp_path: Path, arguments: tuple[str, ...], status: int, text: str) -> None:
    code, heavy, out = heavy_imports(*arguments, cwd=tmp_path)
    assert text in out
    assert (code, heavy) == (status, [])


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
