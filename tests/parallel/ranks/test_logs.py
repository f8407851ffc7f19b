"""The lines of the log: with the rank in front on several ranks, from the level that is set."""

import logging
from collections.abc import Iterator

import pytest

from parallel.ranks.logs import PACKAGES, VARIABLE, set_up_logging
from parallel.ranks.variables import LaunchError, check_process


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    loggers = [logging.getLogger(package) for package in PACKAGES]
    before = [(logger.handlers[:], logger.propagate, logger.level) for logger in loggers]
    yield
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


def test_one_rank_has_no_prefix_and_several_have(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("parallel.zero.extensions")
    set_up_logging()
    logger.info("alone")
    set_up_logging(1, 4)
    logger.warning("two\nlines")
    assert capsys.readouterr().err == "alone\n[rank 1] two\n[rank 1] lines\n"


def test_the_level_is_that_of_the_variable_or_the_argument(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("data_shards.stream")
    monkeypatch.setenv(VARIABLE, "warning")
    set_up_logging()
    logger.info("no")
    logger.warning("yes")
    set_up_logging(level="DEBUG")
    logger.debug("now")
    assert capsys.readouterr().err == "yes\nnow\n"


def test_a_level_that_there_is_not_is_one_line() -> None:
    check_process({VARIABLE: "info"})
    with pytest.raises(LaunchError, match=rf"{VARIABLE} \('loud'\) must be one of DEBUG, INFO"):
        check_process({VARIABLE: "loud"})
