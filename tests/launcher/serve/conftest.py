"""Servers in processes of their own, with models whose answers are known."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
from launcher.serve.batcher import BatchOptions
from launcher.serve.classify import ClassifyInterface
from launcher.serve.options import ServeOptions
from launcher.serve.server import listen, serve
from tests.launcher.serve.known import KnownModel
options = ServeOptions(port=0, batches=BatchOptions(max_wait_s=0.02))
serve(ClassifyInterface(KnownModel()), options, listen("127.0.0.1", 0))
"""
SEGMENTS = (
    PROGRAM.replace("serve.classify", "serve.segment")
    .replace("ClassifyInterface", "SegmentInterface")
    .replace("KnownModel", "KnownSegmenter")
)
Started = tuple[subprocess.Popen[str], str]


@pytest.fixture
def server() -> Iterator[Started]:
    with started(PROGRAM) as one:
        yield one


@pytest.fixture
def segment_server() -> Iterator[Started]:
    with started(SEGMENTS) as one:
        yield one


@contextmanager
def started(program: str) -> Iterator[Started]:
    """The process of a server, and its URL."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "serving known on http://127.0.0.1:" in line
        yield process, line.split()[-1]
    finally:
        process.kill()
        process.wait()
