"""What `check` says of segmentation, and which of its parameters decay."""

from dataclasses import replace
from typing import Any

import pytest
from torch import nn

from launcher.config.schema import OptimConfig, RunConfig
from launcher.plan.base.hardware import load_hardware
from launcher.plan.memory.estimate import predict_memory
from launcher.plan.time.compute_cost import compute_cost
from launcher.tasks.param_groups import parameter_groups
from launcher.tasks.registry import model_on_meta, task_spec
from launcher.tasks.segmentation.options import SegmentationOptions
from launcher.validation.rules import problems
from swin_moe.config import ModelConfig
from swin_moe.heads.upernet_config import UPerNetConfig
from tests.models import small_moe, small_run, small_swin

HEAD = UPerNetConfig(
    channels=8, auxiliary_channels=4, auxiliary_stage=1, norm_group_images=2, pool_bins=(1, 2)
)


def run_of(model: ModelConfig | None = None, head: UPerNetConfig = HEAD, **options: Any) -> RunConfig:
    """A small run of two micro-batches of 2."""
    return small_run(
        model or small_swin(),
        micro_batch_size=2,
        grad_accum_steps=2,
        train={"eval_batch_size": 1, "duration": "4 steps"},
        optim=OptimConfig(warmup="0 steps", min_lr=0.0),
        task="segmentation",
        segmentation=SegmentationOptions(head=head, **options),
    )


def errors(config: RunConfig, world_size: int = 1) -> list[str]:
    found = problems(config, world_size, data=False)
    assert len(found) <= 1, found
    return found


def test_a_small_run_is_right() -> None:
    assert errors(run_of()) == []
    assert errors(run_of(head=replace(HEAD, norm_group_images=4)), 2) == []  # spans both ranks


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (run_of(head=replace(HEAD, norm_group_images=3)), "norm_group_images (3) must divide train.micro"),
        (run_of(head=replace(HEAD, norm_group_images=8)), "must divide train.global_batch_size (4)"),
        (run_of(head=replace(HEAD, norm_group_images=4)), "spans 2 ranks of train.micro_batch_size (2)"),
        (
            run_of(head=replace(HEAD, auxiliary_stage=2)),
            "auxiliary_stage (2) must be a stage of model.depths",
        ),
        (run_of(small_swin(num_classes=256)), "model.num_classes (256) must be at most 255"),
        (run_of(eval_mode="slide", eval_crop=16, eval_stride=17), "segmentation.eval_stride (17) must be"),
        (
            run_of(small_swin(moe=small_moe(blocks=((0,), ()), routing_group_images=2))),
            "model.moe.routing_group_images (2) must be 1",
        ),
    ],
)
def test_what_cannot_be(config: RunConfig, message: str) -> None:
    (error,) = errors(config)
    assert message in error


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("train", {"eval_batch_size": 2}, "train.eval_batch_size (2) must be 1"),
        ("data", {"crop_scale": (0.5, 1.0)}, "data.crop_scale ((0.5, 1.0)) does nothing"),
        ("data", {"match_classes": True}, "data.match_classes (True)"),
    ],
)
def test_options_of_other_sections(section: str, changes: dict[str, Any], message: str) -> None:
    config = run_of()
    config = replace(config, **{section: replace(getattr(config, section), **changes)})
    (error,) = errors(config)
    assert message in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"short_side": 600, "long_side": 500}, r"short_side .600. must be at most"),
        ({"ratio_range": (2.0, 0.5)}, "low <= high"),
        ({"max_class_share": 0.0}, r"max_class_share .0.0. must lie in"),
        ({"eval_ratios": ()}, "one or more different numbers"),
        ({"eval_crop": 0}, "segmentation.eval_crop"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegmentationOptions(**options)


def test_frozen_norms_need_no_groups() -> None:
    assert errors(run_of(head=replace(HEAD, norm_group_images=3, norm_frozen=True))) == []


def names_of(model: nn.Module, group: dict[str, Any]) -> set[str]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[parameter] for parameter in group["params"]}


def test_what_decays_by_the_published_rule() -> None:
    """Only position biases and norms of the backbone and of its maps are spared; heads decay whole."""
    config = run_of(small_swin(depths=(1, 1), num_heads=(2, 4)))
    model = model_on_meta(config)
    optim = OptimConfig(decay_rule="dense", weight_decay=0.01)
    decay, spared = parameter_groups(model, optim, task_spec("segmentation").parameters)
    blocks = [f"encoder.layers.{stage}.blocks.0" for stage in (0, 1)]
    norms = [
        "encoder.patch_embed.norm",
        "encoder.layers.1.merge.norm",
        "stage_norms.0",
        "stage_norms.1",
        *(f"{block}.norm{i}" for block in blocks for i in (1, 2)),
    ]
    tables = {f"{block}.attention.position_bias.relative_position_bias_table" for block in blocks}
    wanted = {f"{norm}.{part}" for norm in norms for part in ("weight", "bias")} | tables
    assert names_of(model, spared) == wanted
    heads = {name for name, _ in model.named_parameters() if name.startswith(("decode", "auxiliary"))}
    assert {"decode_head.bottleneck.bn.bias", "auxiliary_head.conv_seg.bias"} <= heads
    assert heads <= names_of(model, decay)
    assert {"encoder.patch_embed.proj.bias", f"{blocks[0]}.mlp.fc1.bias"} <= names_of(model, decay)


@pytest.mark.parametrize("experts", [False, True])
def test_the_planner_counts_its_heads(experts: bool) -> None:
    moe = small_moe(blocks=((0,), ()), routing_group_images=1) if experts else None
    config, hardware = run_of(small_swin(moe=moe)), load_hardware("a100-40")
    cost = compute_cost(config, hardware)
    parts = {part.name for part in cost.work.parts if part.stage == "head"}
    assert parts == {"decode head", "auxiliary head"}
    assert cost.multiply_adds > 0
    items = dict(predict_memory(config, [1], "cpu").items)
    assert items["dense optimizer states"] > 0
