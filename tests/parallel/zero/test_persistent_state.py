"""State of a task: exact through a checkpoint onto any number of ranks, and the same on all of them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from parallel.checkpoint.async_saver import CheckpointSaver
from parallel.checkpoint.commit import path_of
from parallel.checkpoint.load import load_checkpoint, load_weights
from parallel.checkpoint.manifest import CheckpointError
from parallel.ranks.collectives import gather_objects
from parallel.ranks.mesh import ParallelDims, build_mesh
from parallel.zero.errors import StateError
from parallel.zero.persistent_state import PersistentState
from tests.distributed import run_on_ranks
from tests.models import randn
from tests.parallel.checkpoint.saving import PlainMasterWeights


class WithStatistics(PlainMasterWeights):
    """A model with a buffer, which every rank holds too."""

    def __init__(self, fill: float) -> None:
        super().__init__()
        self.module.register_buffer("running_mean", torch.full((3,), fill))


def fresh() -> PersistentState:
    return PersistentState(
        {
            "queue": torch.zeros(8, 5),
            "queue.next": torch.zeros((), dtype=torch.int64),
            "centre": torch.ones(2),
        }
    )


def values() -> dict[str, Tensor]:
    """Numbers that neither bf16 nor, the integer, fp32 could hold."""
    return {
        "queue": randn(8, 5),
        "queue.next": torch.tensor(2**40 + 1),
        "centre": torch.tensor([1e-30, 1 / 3]),
    }


def save(directory: Path) -> list[str]:
    """Save values; then be refused state, and a buffer, that rank 1 has changed."""
    mesh, state, masters = build_mesh(ParallelDims(world_size=2)), fresh(), WithStatistics(1 / 3)
    for name, value in values().items():
        state[name].copy_(value)
    saver = CheckpointSaver(directory, mesh)
    saver.start(1, masters, {}, state)  # type: ignore[arg-type]
    state["queue"].zero_()  # the save has its copy
    (result,) = saver.finish()
    assert result.error is None
    errors = []
    for tensor in (state["centre"], masters.module.running_mean):
        kept = tensor.clone()
        tensor += mesh.rank
        with pytest.raises(StateError) as error:
            saver.start(2, masters, {}, state)  # type: ignore[arg-type]
        errors.append(str(error.value))
        tensor.copy_(kept)
    assert gather_objects(errors) == [errors, errors]
    return errors


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    directory = tmp_path_factory.mktemp("checkpoints")
    return path_of(directory, 1), run_on_ranks(save, 2, directory)[0]


def test_it_is_exact_on_another_number_of_ranks(saved: tuple[Path, list[str]]) -> None:
    state, masters = fresh(), WithStatistics(0.0)
    places = {name: tensor.data_ptr() for name, tensor in state.items()}
    load_checkpoint(saved[0], masters, 0, state=state)  # type: ignore[arg-type]
    for name, value in values().items():
        assert state[name].dtype == value.dtype
        assert torch.equal(state[name], value)
        assert state[name].data_ptr() == places[name]
    assert masters.module.running_mean.tolist() == [pytest.approx(1 / 3)] * 3


def test_what_differs_between_ranks_is_not_saved(saved: tuple[Path, list[str]]) -> None:
    of_state, of_buffer = saved[1]
    assert of_state.startswith(
        "state/centre: every rank must hold the same values; ranks [1] differ from rank 0"
    )
    assert of_buffer.startswith("buffer/running_mean: every rank must hold the same values; ranks [1] differ")
    assert not path_of(saved[0].parent, 2).exists()


def test_a_checkpoint_must_hold_exactly_the_state(saved: tuple[Path, list[str]]) -> None:
    masters = WithStatistics(0.0)
    with pytest.raises(
        CheckpointError, match=r"0 tensors missing \[\], 3 unknown \['state/centre', 'state/queue"
    ):
        load_checkpoint(saved[0], masters, 0)  # type: ignore[arg-type]
    state = PersistentState({**fresh(), "centre": torch.ones(3), "more": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"1 tensors missing \['state/more'\], .*1 of another shape"):
        load_checkpoint(saved[0], masters, 0, state=state)  # type: ignore[arg-type]
    load_weights(saved[0], masters.module, 0)  # the model alone, for evaluation
    assert torch.equal(
        next(masters.module.parameters()), masters.state[next(masters.module.parameters())]["master"]
    )


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("queue", torch.zeros(1, dtype=torch.bfloat16), "state queue is torch.bfloat16: a checkpoint keeps"),
        ("count", torch.zeros(1, dtype=torch.int32), "state count is torch.int32: a checkpoint keeps"),
        ("../queue", torch.zeros(1), "state '../queue': a name consists of letters, digits, _ and ."),
    ],
)
def test_what_no_checkpoint_keeps_is_refused(name: str, tensor: Tensor, message: str) -> None:
    with pytest.raises(StateError) as error:
        PersistentState({name: tensor})
    assert str(error.value).startswith(message)


def test_it_does_not_belong_to_the_graph() -> None:
    weight = nn.Parameter(torch.ones(2))
    assert not PersistentState({"centre": weight * 2})["centre"].requires_grad
