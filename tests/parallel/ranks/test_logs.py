"""The lines of the log: with the rank in front on several ranks, from the level that is set."""

import logging
from collections.abc import Iterator

import pytest

from parallel.ranks.discover import early_rank
from parallel.ranks.logs import ONCE, PACKAGES, VARIABLE, set_up_logging
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


def test_the_level_is_that_of_the_variable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("data_shards.stream")
    monkeypatch.setenv(VARIABLE, "warning")
    set_up_logging()
    logger.info("no")
    logger.warning("yes")
    monkeypatch.setenv(VARIABLE, "DEBUG")
    set_up_logging()
    logger.debug("now")
    assert capsys.readouterr().err == "yes\nnow\n"


def test_what_all_ranks_log_alike_is_shown_by_rank_0(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("swin_moe.renamed")
    for rank in range(3):
        set_up_logging(rank, 3)
        logger.warning("alike", extra=ONCE)
        logger.warning("own")
    assert capsys.readouterr().err == "[rank 0] alike\n[rank 0] own\n[rank 1] own\n[rank 2] own\n"


@pytest.mark.parametrize(
    ("env", "rank"),
    [
        ({}, 0),
        ({"RANK": "3", "WORLD_SIZE": "4"}, 3),
        ({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4"}, 2),
        ({"PMI_RANK": "1", "PMI_SIZE": "4"}, 1),
        ({"SLURM_PROCID": "5", "SLURM_STEP_ID": "0"}, 5),
        ({"SLURM_PROCID": "x", "SLURM_STEP_ID": "0"}, 0),  # garbled: `discover` refuses it later
        ({"RANK": "", "WORLD_SIZE": "4"}, 0),
    ],
)
def test_the_rank_is_known_before_the_environment_is_checked(env: dict[str, str], rank: int) -> None:
    assert early_rank(env) == rank


def test_a_level_that_there_is_not_is_one_line() -> None:
    check_process({VARIABLE: "info"})
    with pytest.raises(LaunchError, match=rf"{VARIABLE} \('loud'\) must be one of DEBUG, INFO"):
        check_process({VARIABLE: "loud"})
