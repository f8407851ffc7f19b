"""The checkout that the tests belong to, as Git lists it."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def files_of_checkout() -> list[str]:
    """The files that are tracked or could be, relative to the root; skips the test where Git cannot say."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("needs a checkout with its .git, and git: apt-get install git")
    return [name for name in done.stdout.splitlines() if (ROOT / name).is_file()]
