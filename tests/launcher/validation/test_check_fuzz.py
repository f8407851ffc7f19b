"""What `check` accepts, trains: every option of the schema, at and beyond the ends of its range."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.distributed import RankError, run_on_ranks
from tests.launcher.packed import pack_synthetic
from tests.launcher.validation.fuzz import (
    COMBINATIONS,
    LAYOUTS,
    SLOW,
    Case,
    Option,
    Report,
    options,
    override,
    pairs,
    single_cases,
    try_cases,
    values_of,
)

pytestmark = pytest.mark.long

BATCH = 80  # cases of a process
PARTS = 6  # of the options; one is a default test


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 images to train on and 8 to evaluate; only read."""
    return pack_synthetic(tmp_path_factory.mktemp("few"), 32, 8, image_size=32, samples_per_shard=64)


def tried(shards: Path, work: Path, cases: Sequence[Case], ranks: int = 1) -> Report:
    """What came of all cases, batch by batch, as rank 0 has it."""
    total = Report()
    for first in range(0, len(cases), BATCH):
        try:
            batch = cases[first : first + BATCH]
            found = run_on_ranks(try_cases, ranks, shards, work, batch, timeout_s=600)[0]
        except RankError as error:
            found = Report(disagreements=[f"{(work / 'case.txt').read_text()}: {error}"])
        total.add(found)
    return total


def assert_agreed(shards: Path, work: Path, cases: Sequence[Case], ranks: int = 1) -> None:
    report, names = (
        tried(shards, work, cases, ranks),
        {item.partition("=")[0] for case in cases for item in case},
    )
    print(
        f"{len(names)} options, {len(cases)} cases: {report.refused} refused, {report.trained} trained, "
        f"{len(report.disagreements)} disagreements"
    )
    assert not report.disagreements, "\n".join(report.disagreements)
    assert report.refused > 0
    assert report.trained > 0


@pytest.mark.parametrize("part", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, PARTS))])
def test_check_and_training_agree(few: Path, tmp_path: Path, part: int) -> None:
    """One value of every option, and a third of the combinations; by default of every sixth option."""
    draw = random.Random(0)
    cases = [(override(one.name, draw.choice(values_of(one))),) for one in options()]
    assert_agreed(few, tmp_path, [*cases[part::PARTS], *COMBINATIONS[part :: 3 * PARTS]])


@pytest.mark.slow
def test_check_and_training_agree_on_every_value(few: Path, tmp_path: Path) -> None:
    assert_agreed(few, tmp_path, [*COMBINATIONS, *single_cases()])


@pytest.mark.slow
def test_check_and_training_agree_on_pairs(few: Path, tmp_path: Path) -> None:
    assert_agreed(few, tmp_path, pairs(400, seed=1))


@pytest.mark.slow
def test_check_and_training_agree_on_layouts(few: Path, tmp_path: Path) -> None:
    assert_agreed(few, tmp_path, LAYOUTS, ranks=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_check_and_training_agree_on_what_is_compiled(few: Path, tmp_path: Path, name: str) -> None:
    assert tried(few, tmp_path, [(override(name, SLOW[name]),)]) == Report(trained=1)


def test_an_option_of_a_new_type_must_be_covered() -> None:
    with pytest.raises(AssertionError, match=r"^model\.new: no values of .* are known"):
        values_of(Option("model.new", complex))
