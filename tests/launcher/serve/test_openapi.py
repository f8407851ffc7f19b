"""The interface does what its OpenAPI description says, for requests that schemathesis makes up from it."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launcher.serve.conftest import Started

pytestmark = pytest.mark.long

if (
    importlib.util.find_spec("schemathesis") is None
):  # its import takes seconds, and a process of its own needs it
    pytest.skip("needs schemathesis: pip install schemathesis", allow_module_level=True)

# Any string is a valid image by the description, and most are none: those are refused with 422.
CHECKS = ["--checks", "all", "--exclude-checks", "positive_data_acceptance"]
QUICK = ["--phases", "examples,coverage,fuzzing", "--max-examples", "15", "--seed", "1"]


@pytest.mark.parametrize(("fixture", "operations"), [("server", 5), ("segment_server", 4)])
def test_every_answer_is_as_described(
    request: pytest.FixtureRequest, fixture: str, operations: int, tmp_path: Path
) -> None:
    one: Started = request.getfixturevalue(fixture)
    program = [sys.executable, "-m", "schemathesis.cli", "run", f"{one[1]}/openapi.json"]
    done = subprocess.run([*program, *CHECKS, *QUICK], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert f"{operations} passed" in done.stdout
