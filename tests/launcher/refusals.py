"""Commands that are refused before any rank starts."""

import pytest

from launcher.cli.program import main


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a command that is refused before any rank starts."""
    assert main(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err
