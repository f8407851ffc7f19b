"""A cascade on two ranks is that on one: a group of its batch norms spans them, and one has no object."""

import torch
from torch import Tensor

from parallel.ranks.collectives import sum_over
from parallel.ranks.mesh import ParallelDims, build_mesh
from swin_moe.backbone.group_batch_norm import span_ranks, update_running_statistics
from tests.distributed import run_on_ranks
from tests.swin_moe.detection.small_detectors import KEYS, SIZES, detector, images, targets

PAIR = [0, 2]  # three objects, and none


def step(numbers: list[int], ranks: int) -> dict[str, Tensor]:
    """Losses, gradients and running statistics of a step over some images on each rank, all averaged."""
    model = detector("cascade_mask_rcnn", norm_group_images=2)
    if ranks > 1:
        mesh = build_mesh(ParallelDims(world_size=ranks))
        span_ranks(model, mesh, micro_batch_size=len(numbers), grad_accum_steps=1)
    losses = model(images()[numbers], SIZES[numbers], KEYS[numbers], targets(numbers))
    losses.total.backward()
    update_running_statistics(model)
    found = {f"loss {name}": sum_over(loss.detach()) / ranks for name, loss in losses.terms.items()}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        found[name] = sum_over(parameter.grad) / ranks
    return found | {name: buffer for name, buffer in model.named_buffers() if "running" in name}


def on_rank() -> dict[str, Tensor]:
    return step([PAIR[torch.distributed.get_rank()]], 2)


def test_two_ranks_are_one() -> None:
    alone = step(PAIR, 1)
    assert sum("running" in name for name in alone) == 24
    for rank in run_on_ranks(on_rank, 2):
        assert rank.keys() == alone.keys()
        for name, expected in alone.items():
            torch.testing.assert_close(
                rank[name], expected, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name} {text}"
            )
