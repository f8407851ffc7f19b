"""What all tests share: a working directory of their own, and the answers of a processor."""

import gc
import os
import re
import tempfile
from collections.abc import Generator, Iterator
from contextlib import chdir, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from parallel.ranks.logs import set_up_logging
from parallel.zero.extensions import OFFLOADED, prepare_extensions
from tests.accelerator import answering

STARTS = re.compile(r"\b(?:run_on_ranks|run_alone|run_ranks|start|subprocess\.run|subprocess\.Popen)\(")
FIRST = {  # that start little: tests of others, engines of many layouts, a compiler, many runs or requests
    "test_instruction_sets.py",
    "test_layout.py",
    "test_targets.py",
    "test_check_fuzz.py",
    "test_openapi.py",
    "test_staging.py",
}
# of one worker, as their files share a report, and pandas and matplotlib, which take seconds to import
TOGETHER = Path(__file__).parent / "launcher" / "study"


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Take what is imported and collected out of the garbage collection, which would go through it often."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of several workers, let none begin a long file last: those that start most processes come first.

    It takes --no-loadscope-reorder, or xdist leaves the files of the fewest tests for the end: the longest.
    """
    if hasattr(config, "workerinput"):
        paths = {item.path for item in items}
        starts = {path: len(STARTS.findall(path.read_text())) for path in paths}
        # stable: a file stays in one piece
        items.sort(key=lambda item: (not _is_first(item.path), -starts[item.path]))


def _is_first(path: Path) -> bool:
    return path.name in FIRST or path.parent == TOGETHER


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give a worker all tests of a file, and all files of TOGETHER."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            parent = (config.rootpath / file).parent
            return str(parent) if parent == TOGETHER else file

    return Scheduling(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.fixture(scope="session", autouse=True)
def directories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the working directories of the tests are made, and fixtures of modules work.

    One for all, as pytest's own numbering of directories slows down with each.
    """
    path = tmp_path_factory.mktemp("cwd")
    with chdir(path):
        yield path


@pytest.fixture
def tmp_path(directories: Path) -> Path:
    """As pytest's own, without a number, for which it looks at the directories of all tests before."""
    return Path(tempfile.mkdtemp(dir=directories))


@pytest.fixture(autouse=True)
def log_to_stderr() -> None:
    """Set the log up as a command does, for tests that call less than a command."""
    set_up_logging()


@pytest.fixture(autouse=True)
def own_directory(directories: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test in an empty directory, so that none sees what a command left in the checkout."""
    monkeypatch.chdir(tempfile.mkdtemp(dir=directories))


@pytest.fixture(autouse=True)
def same_scheduling() -> Iterator[None]:
    """Let no test leave its worker in real time, where all other processes would wait for it."""
    before = os.sched_getscheduler(0)
    yield
    assert os.sched_getscheduler(0) == before


@pytest.fixture(autouse=True)
def processor_of_mark(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run a test that is marked `fp16_instructions(answer)` on such a processor, as DeepSpeed sees it."""
    mark = request.node.get_closest_marker("fp16_instructions")
    with answering(*mark.args) if mark else nullcontext():
        yield


@pytest.fixture(scope="module", params=[True, False], ids=["fp16", "without-fp16"])
def either_processor(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Run a test twice: on a processor with fp16 instructions, and on one without, as DeepSpeed sees it."""
    with answering(request.param) as fp16:
        yield fp16


@pytest.fixture(scope="session")
def cpu_adam() -> None:
    """Build DeepSpeed's optimizer for host memory ahead of the tests that need it: it takes minutes once."""
    with mock.patch.dict(os.environ):
        prepare_extensions(OFFLOADED, deadline_s=900)


@pytest.fixture(scope="module")
def fp16_processor() -> Iterator[bool]:
    """Let DeepSpeed run fp16 on any processor, where torch computes it without the instructions for it."""
    with answering(True) as fp16:
        yield fp16
