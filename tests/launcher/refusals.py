"""Commands that are refused before any rank starts, and data of which no figure would be right."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from launcher.cli.program import main
from tests.distributed import run_on_ranks
from tests.launcher.running import CONFIG, command


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a command that is refused before any rank starts."""
    assert main(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err


def assert_other_classes_are_refused(run: Path, val: Path, options: Sequence[str], message: str) -> None:
    """`eval` of a run refuses data of other classes, or of another order of them; so does `check`.

    Args:
        run: a finished run.
        val: the data.
        options: of a new run with these data.
        message: what both say; `check` does so up to where the run is named.
    """
    (outcome,) = run_on_ranks(command, 1, "eval", str(run), f"data.val={val}")
    assert outcome.code == 2
    assert message in outcome.err
    assert_check_refuses(options, message.partition("the run")[0])


def assert_check_refuses(options: Sequence[str], message: str) -> None:
    """`check` refuses a run of the tests' recipe with these options."""
    (outcome,) = run_on_ranks(command, 1, "check", str(CONFIG), *options)
    assert outcome.code == 2
    assert message in outcome.err
