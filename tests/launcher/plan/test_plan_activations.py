"""Activations of a step: what autograd saves of the real model, and the peak that the allocator records."""

import gc
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from benchmarks.allocator import cpu_peak_bytes
from launcher.config.schema import RunConfig
from launcher.plan.memory.activations import activations_of
from launcher.tasks.image_data import normalize_images
from launcher.tasks.video.shapes import inputs as clip_inputs
from swin_moe.heads.classification import classification_loss
from swin_moe.heads.simmim_config import SimMIMConfig
from swin_moe.random.keyed import sample_keys
from tests.launcher.plan.memory_models import IMAGES, MOE, SMALL, real_model, run_config
from tests.models import V2

SMALL_V2 = replace(SMALL, **V2, extra_norm_period=2)
MODELS = {
    "v1": SMALL,
    "v2": SMALL_V2,
    "mlp": replace(SMALL, attention="mlp"),
    "windows": replace(SMALL_V2, attention_chunk=2),
    "checkpoint-1": replace(SMALL, activation_checkpoint_every=1),
    "checkpoint-2": replace(SMALL_V2, activation_checkpoint_every=2),
    "dropless": replace(SMALL, moe=MOE),
    "full": replace(SMALL, moe=replace(MOE, capacity_factor=0.25)),  # every expert has more tokens than slots
    "soft": replace(SMALL, moe=replace(MOE, router="soft", top_k=1)),
    "wide": replace(SMALL, image_size=(24, 40), moe=MOE),  # maps of 6 x 10 and 3 x 5
    # maps of 10 x 2 and 5 x 1, so windows of 3 x 2 and 3 x 1
    "tall": replace(SMALL_V2, image_size=(40, 8), attention_chunk=3),
    "cosine": replace(SMALL_V2, moe=replace(MOE, router="cosine")),
    "sigmoid": replace(SMALL, moe=replace(MOE, router="sigmoid", shared_expert=True)),
    "recompute": replace(SMALL, moe=replace(MOE, recompute_activation=True, expert_activation="swiglu")),
    "moe-checkpoint": replace(SMALL_V2, moe=MOE, activation_checkpoint_every=1),
}
# bytes that only the hooks of the test keep: a token's highest score, whose graph is dropped, is saved by the
# node that made it, and the hook closes a cycle
LEAKED = {"sigmoid": 4 * IMAGES * (8 * 8 + 4 * 4)}


class _Kept:
    """What autograd holds of one saved tensor, for as long as it holds it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def kept_for_backward(config: RunConfig) -> int:
    """Bytes of distinct storages that are alive between a real forward and backward pass, on the CPU."""
    model = real_model(config)
    raw = pixels_of(config)
    labels = torch.arange(IMAGES)  # of the host, as the stream's batch
    held = *model.parameters(), *model.buffers(), labels
    own = {tensor.untyped_storage().data_ptr() for tensor in held}
    saved: weakref.WeakSet[_Kept] = weakref.WeakSet()

    def pack(tensor: Tensor) -> _Kept:
        kept = _Kept(tensor)
        saved.add(kept)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        kept = loss_of(model, config, raw, labels)
    gc.collect()
    alive = [kept.tensor for kept in saved] + [x for x in tree_leaves(kept) if isinstance(x, Tensor)]
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in alive}
    return sum(size for pointer, size in storages.items() if pointer not in own)


def pixels_of(config: RunConfig) -> Tensor:
    """What is decoded: images (B, 3, h, w), or clips (B, D, 3, h, w)."""
    frames = [config.model.frames] if config.model.frames else []
    return torch.randint(0, 255, (IMAGES, *frames, 3, *config.model.image_sides), dtype=torch.uint8)


def loss_of(model: nn.Module, config: RunConfig, raw: Tensor, labels: Tensor) -> tuple[Tensor, Any]:
    """The loss of a micro-batch as launcher/tasks/classification/task.py has it, and what a step keeps."""
    if config.task == "video":
        images, _ = clip_inputs(config, {"clip": raw, "label": labels})
    else:
        images = normalize_images(raw, config.data, torch.device("cpu"))
    output = model(images, sample_keys(0, torch.arange(IMAGES)))
    if config.task == "simmim":
        return output.loss + output.aux_loss, (output.loss, output.moe)
    loss = classification_loss(output.logits, labels, config.optim.label_smoothing)
    return loss + output.aux_loss, (loss, output.moe)


# Kinds that differ from one of the others in a single part; the others cover all parts together.
ALIKE = {"windows", "tall", "soft", "cosine", "sigmoid", "full", "recompute"}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] if kind in ALIKE else []) for kind in MODELS]
)
def test_activations_are_what_autograd_saves(kind: str) -> None:
    config = run_config(MODELS[kind])
    predicted = activations_of(config, config.parallel.dims(1), "cpu")
    assert predicted.total + LEAKED.get(kind, 0) == kept_for_backward(config)
    assert [name for name, _ in predicted.saved][2:4] == ["stage 0", "stage 1"]


@pytest.mark.parametrize("image_size", [(24, 40), pytest.param(32, marks=pytest.mark.slow)])
def test_activations_of_simmim(image_size: int | tuple[int, int]) -> None:
    model = replace(SMALL_V2, image_size=image_size)
    config = run_config(model, task="simmim", simmim=SimMIMConfig(mask_patch_size=8))
    assert activations_of(config, config.parallel.dims(1), "cpu").total == kept_for_backward(config)


CLIPS = replace(SMALL, frames=6, window_frames=2, window_padding="fitted", head_dropout=0.5)
CLIP_KINDS = {"v1": CLIPS, "v2": replace(CLIPS, **V2, attention_chunk=2), "moe": replace(CLIPS, moe=MOE)}


@pytest.mark.parametrize(
    "kind", [pytest.param("v1", marks=pytest.mark.slow), pytest.param("v2", marks=pytest.mark.long), "moe"]
)
def test_activations_of_clips(kind: str) -> None:
    """Windows attend pattern by pattern, and what each of them saves is counted.

    So are the masks that the first pass makes and each stage keeps: 8 of 18 x 18 tokens in fp32.
    """
    config = run_config(CLIP_KINDS[kind], task="video")
    predicted = activations_of(config, config.parallel.dims(1), "cpu")
    assert predicted.total == kept_for_backward(config) + 2 * 8 * 18 * 18 * 4


@pytest.mark.parametrize("kind", ["v1", "v2", "dropless", "checkpoint-2", "wide"])
def test_peak_of_activations(kind: str) -> None:
    """Against the memory events of torch's allocator, over both passes, with gradients taken away."""
    config = run_config(MODELS[kind])
    predicted = activations_of(config, config.parallel.dims(1), "cpu")
    model = real_model(config)
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    raw = pixels_of(config)

    def work() -> None:
        loss, _ = loss_of(model, config, raw, torch.arange(IMAGES))
        loss.backward()

    peak = cpu_peak_bytes(work)
    found = max(moment.peak for moment in (*predicted.forward, *predicted.backward))
    assert found == pytest.approx(peak, rel=0.02)  # what operators allocate inside is not predicted
