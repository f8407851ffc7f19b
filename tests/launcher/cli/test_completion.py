"""The script of `swin-moe completion`, in bash: what a command line becomes when Tab is pressed."""

import os
import shlex
import subprocess

import pytest

from launcher.cli.completion import script
from launcher.cli.program import COMMANDS, main, program_parser
from swin_moe.recipes import recipe_files

SCRIPT = script(list(program_parser().commands()))


def completed(*words: str) -> list[str]:
    """The candidates for the last of the words."""
    line = ["swin-moe", *words]
    code = f"{SCRIPT}\nCOMP_WORDS=({shlex.join(line)})\nCOMP_CWORD={len(line) - 1}\n_swin_moe\n"
    code += 'for word in "${COMPREPLY[@]}"; do echo "$word"; done\n'
    done = subprocess.run(["bash", "-uc", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("tr",), ["train"]),
        (("sh",), ["shards"]),
        (("shards", "re"), ["repair"]),
        (("shards", "pack", "--short"), ["--short-side"]),
        (("shards", "pack", "--check", "h"), ["header"]),
        (("shards", "pack", "--check", "none", "--bas"), ["--baseline"]),
        (("export", "runs/train", "out", "--to", "h"), ["hf"]),
        (("train", "demo_c"), ["demo_cpu"]),
        (("train", "demo_cpu", "--nproc", "2", "--resume", ""), ["auto", "never"]),
        (("train", "--pretrained", "demo_c"), []),  # a file
        (("check", "configs/demo"), []),  # a file
        (("nothing", "--x"), []),
    ],
)
def test_what_stands_before_decides(words: tuple[str, ...], wanted: list[str]) -> None:
    assert completed(*words) == wanted


def test_all_commands_and_all_recipes() -> None:
    assert set(completed("")) >= set(COMMANDS)
    assert set(completed("train", "")) >= set(recipe_files())


def test_every_option_of_every_command_is_completed() -> None:
    for parser in program_parser().commands():
        options = {option for action in parser._actions for option in action.option_strings}
        words = parser.prog.split()[1:]
        assert set(completed(*words, "--")) == {option for option in options if option.startswith("--")}


def test_the_command_prints_what_a_shell_takes(capsys: pytest.CaptureFixture[str]) -> None:
    """Where nothing fits, bash goes on with the names of files."""
    assert main(["completion"]) == 0
    out = capsys.readouterr().out
    assert out == f"{SCRIPT}\n"
    code = 'eval "$1" && complete -p swin-moe'
    done = subprocess.run(
        ["bash", "-c", code, "bash", out], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.stdout == "complete -o bashdefault -o default -F _swin_moe swin-moe\n"
