"""Experts in uneven slices: the same initial weights and the same files, whoever holds which columns."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.checkpoint.load import load_checkpoint
from parallel.experts.names import KINDS, persistent_buffers
from parallel.experts.placement import ExpertParallel, ExpertSlice, experts_of, sliced_of
from parallel.ranks.mesh import Mesh, ParallelDims, build_mesh
from swin_moe import SwinTransformer, WeightsError, build_model, load_weights, save_weights
from swin_moe.backbone.initialize import initialize
from tests.distributed import run_on_ranks
from tests.parallel.checkpoint.saving import save_checkpoint
from tests.parallel.experts.exchanging import held_weights, whole_weights
from tests.parallel.training import EXPERTS, model_config

SLICES = 5  # of 96 hidden channels and 24 channels: 19 19 19 19 20, and 4 5 5 5 5


def sliced_model(number: int, router: str = "linear") -> SwinTransformer:
    """One slice of a model, on no mesh at all."""
    part = ExpertSlice(number, number + 1, SLICES)
    placement = ExpertParallel(num_experts=EXPERTS, local_experts=range(EXPERTS), part=part, ep_size=SLICES)
    config = model_config(router=router)  # type: ignore[arg-type]
    model = SwinTransformer(config, placement)
    initialize(model, seed=3, std=config.init_std)
    return model


def assert_slices_of(models: list[SwinTransformer], whole: SwinTransformer) -> None:
    """Put together, the slices are the whole model."""
    parts = [dict(model.named_parameters()) for model in models]
    uneven = 0
    for name, expected in whole.named_parameters():
        pieces = [part[name] for part in parts]
        if experts_of(expected) is None:
            assert all(torch.equal(piece, expected) for piece in pieces), name
            continue
        sliced = sliced_of(pieces[0])
        assert sliced is not None
        uneven += len({piece.shape for piece in pieces}) > 1
        assert torch.equal(torch.cat(pieces, dim=sliced.dim), expected), name
    assert uneven


def test_slices_of_the_initial_weights_are_those_of_the_whole_model() -> None:
    models = [sliced_model(number) for number in range(SLICES)]
    assert_slices_of(models, build_model(model_config(), seed=3))


def test_weights_from_a_file_reach_every_slice_and_only_whole_models_are_exported(tmp_path: Path) -> None:
    whole = build_model(model_config(router="sigmoid"), seed=8)
    for buffer in persistent_buffers(whole).values():
        buffer.copy_(torch.arange(EXPERTS) - 2)
    save_weights(whole, tmp_path / "model.safetensors", "native")
    models = [sliced_model(number, "sigmoid") for number in range(SLICES)]
    for model in models:
        load_weights(model, tmp_path / "model.safetensors")
        found = [buffer.tolist() for buffer in persistent_buffers(model).values()]
        assert found == [[-2, -1, 0, 1, 2, 3, 4, 5]] * 2
    assert_slices_of(models, whole)
    with pytest.raises(
        WeightsError, match=r"holds experts 0\.\.7 of 8 in slices; export its checkpoint instead"
    ):
        save_weights(models[1], tmp_path / "other.safetensors", "native")


class Held(nn.Module):
    """The parameters of a rank, a dense one and a buffer beside them."""

    def __init__(self, placement: ExpertParallel, scale: float) -> None:
        super().__init__()
        whole = [weight * scale for weight in whole_weights(placement.num_experts, torch.float32)]
        self.experts = nn.Module()
        for name, parameter in zip("abcd", held_weights(whole, placement), strict=True):
            self.experts.register_parameter(name, parameter)
        self.dense = nn.Parameter(torch.arange(3) * scale)
        self.register_buffer("steps", (torch.arange(3) * scale).long())


class TwiceAsMuch:
    """MasterWeights without an engine: expects to be given twice what the module holds."""

    kinds, adam_steps = KINDS, 1

    def __init__(self, module: Held) -> None:
        self.module, self.written = module, 0

    def read_local(self, parameter: nn.Parameter) -> None:
        """Nothing is partitioned."""

    def read(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        return {kind: parameter.detach() + number for number, kind in enumerate(KINDS)}

    def write(self, parameter: nn.Parameter, values: dict[str, Tensor]) -> None:
        for number, kind in enumerate(KINDS):
            assert values[kind].is_contiguous()
            assert torch.equal(values[kind], parameter.detach() * 2 + number)
        self.written += 1

    def set_step(self, step: int) -> None:
        assert step == 1


def masters_of(experts: int, slices: int, scale: float) -> tuple[Any, Mesh]:
    """Experts spread over all the ranks that there are, in so many slices."""
    world = dist.get_world_size()
    mesh = build_mesh(ParallelDims(world_size=world, ep_size=world, expert_tensor_parallel_size=slices))
    return TwiceAsMuch(Held(ExpertParallel.over(mesh, experts), scale)), mesh


def save_slices(path: Path, experts: int, slices: int) -> None:
    masters, mesh = masters_of(experts, slices, 2.0)
    save_checkpoint(path, 1, masters, mesh, {})


def load_slices(path: Path, experts: int, slices: int) -> tuple[int, list[int]]:
    """How many parameters were as they should be, and the buffer."""
    masters, _ = masters_of(experts, slices, 1.0)
    load_checkpoint(path / "step-00000001", masters, experts)
    return masters.written, masters.module.steps.tolist()


# 7 hidden channels and 5 channels are never divisible; neither are 5 experts by 2 blocks or 3 ranks
@pytest.mark.parametrize(("world", "slices"), [(3, 3), (3, 1), (4, 2)])
def test_uneven_slices_and_experts_are_saved_whole_and_loaded_by_any_layout(
    tmp_path: Path, world: int, slices: int
) -> None:
    experts = 5
    run_on_ranks(save_slices, world, tmp_path, experts, slices)
    for other, cut in ((1, 1), (2, 2), (3, 3), (4, 2)):
        assert run_on_ranks(load_slices, other, tmp_path, experts, cut) == [(5, [0, 2, 4])] * other
