"""Every layout's checkpoint at every other: each number of ranks, experts a rank and slices, each ZeRO stage.

pytest tests/parallel/zero/test_matrix.py -m slow -s        # some minutes
"""

from pathlib import Path

import pytest

from tests.distributed import run_on_ranks
from tests.parallel.resuming import Outcome, differing, load_and_go_on, load_each, save_and_go_on
from tests.parallel.training import BATCH, Layout

pytestmark = pytest.mark.slow

THEN = 5  # steps after the checkpoint
WHOLE = Layout(world=4, ep=4, stage=1, micro=4)
SLICED = Layout(world=4, ep=4, slices=2, stage=1, micro=4)
SIZES = [(world, ep, slices) for world in (1, 2, 4) for ep in (1, 2, 4) for slices in (1, 2, 4)]
LAYOUTS = [
    Layout(world=world, ep=ep, slices=slices, stage=stage, micro=BATCH // world)
    for world, ep, slices in SIZES
    if world % ep == 0 and ep % slices == 0
    for stage in (0, 1, 2, 3)
]
TOLERANCE = 1e-6  # of losses, relative: what the order of fp32 sums leaves


@pytest.fixture(scope="module")
def origins(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Outcome]]:
    """One run with whole experts and one with slices, saved in directories 0 and 1."""
    directory = tmp_path_factory.mktemp("origins")
    return directory, run_on_ranks(save_and_go_on, 4, directory, [WHOLE, SLICED], THEN)[0]


def at(directory: Path, number: int) -> Path:
    return directory / str(number) / "step-00000003"


def worst(found: Outcome, expected: Outcome) -> float:
    """The largest relative deviation of a loss after the checkpoint."""
    pairs = zip(found.trace.losses, expected.trace.losses, strict=True)
    return max(abs(a - b) / abs(b) for a, b in pairs)


@pytest.mark.parametrize("origin", [0, 1], ids=["from whole experts", "from slices"])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_checkpoint_loads_at_every_layout(
    origin: int, world: int, origins: tuple[Path, list[Outcome]]
) -> None:
    directory, outcomes = origins
    layouts = [layout for layout in LAYOUTS if layout.world == world]
    found = run_on_ranks(load_and_go_on, world, at(directory, origin), layouts, THEN, timeout_s=600)[0]
    for layout, outcome in zip(layouts, found, strict=True):
        print(f"{layout}: losses after loading differ by {worst(outcome, outcomes[origin]):.1e}")
        assert differing(outcome, outcomes[origin]) == [], layout
        assert worst(outcome, outcomes[origin]) < TOLERANCE, layout
        assert outcome.trace.loads == outcomes[origin].trace.loads, layout


@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_layouts_checkpoint_loads_at_the_first(tmp_path: Path, world: int) -> None:
    layouts = [layout for layout in LAYOUTS if layout.world == world]
    saved = run_on_ranks(save_and_go_on, world, tmp_path, layouts, THEN, timeout_s=600)[0]
    paths = [at(tmp_path, number) for number in range(len(layouts))]
    found = run_on_ranks(load_each, 4, paths, WHOLE, THEN, timeout_s=600)[0]
    for layout, outcome, before in zip(layouts, found, saved, strict=True):
        print(f"{layout} and back: losses differ by {worst(outcome, before):.1e}")
        assert differing(outcome, before) == [], layout
        assert worst(outcome, before) < TOLERANCE, layout
