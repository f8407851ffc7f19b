"""A server in a process of its own, with a model whose answers are known."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
from launcher.serve.batcher import BatchOptions
from launcher.serve.options import ServeOptions
from launcher.serve.server import listen, serve
from tests.launcher.serve.known import KnownModel
serve(KnownModel(), ServeOptions(port=0, batches=BatchOptions(max_wait_s=0.02)), listen("127.0.0.1", 0))
"""


@pytest.fixture
def server() -> Iterator[tuple[subprocess.Popen[str], str]]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "serving known on http://127.0.0.1:" in line
        yield process, line.split()[-1]
    finally:
        process.kill()
        process.wait()
