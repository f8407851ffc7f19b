"""What a configuration derives, and the exact words of its errors."""

import re
from dataclasses import replace

import pytest

from swin_moe import ModelConfig, ModelError, MoEConfig


def moe(**options: object) -> MoEConfig:
    return MoEConfig(**({"blocks": ((), (), (1,), (1,)), "num_experts": 4} | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_experts": 0}, "model.moe.num_experts (0) must be at least 1"),
        ({"top_k": 0}, "model.moe.top_k (0) must lie in 1..model.moe.num_experts (4)"),
        ({"top_k": 5}, "model.moe.top_k (5) must lie in 1..model.moe.num_experts (4)"),
        ({"z_loss_weight": -1.0}, "model.moe.z_loss_weight (-1.0) must be at least 0"),
        (
            {"gate_noise": 0.0},
            "model.moe.balance_loss=importance_load needs model.moe.gate_noise (0.0) of at least "
            "1e-06: its load term is a probability under that noise; set balance_loss to importance or "
            "gshard",
        ),
        (
            {"router": "sigmoid", "balance_loss": "importance_load"},
            "model.moe.balance_loss (importance_load) is not for model.moe.router=sigmoid: set auto or none "
            "or gshard",
        ),
        (
            {"router": "hash", "z_loss_weight": 0.1},
            "model.moe.z_loss_weight (0.1) means nothing for model.moe.router=hash: set it to 0.0",
        ),
        (
            {"router": "soft", "normalize_gates": True},
            "model.moe.normalize_gates (True) means nothing for model.moe.router=soft: set it to False",
        ),
        (
            {"router": "expert_choice"},
            "model.moe.router=expert_choice needs model.moe.eval_capacity_factor other than 0: it is how "
            "many tokens an expert chooses, as a multiple of its even share; 1.0 would do",
        ),
        (
            {"router": "soft", "top_k": 2},
            "model.moe.router=soft has no choices: leave model.moe.top_k (2) at 1",
        ),
        (
            {"backend": "tutel", "router": "sigmoid"},
            "model.moe.backend=tutel has the routers linear and cosine, not sigmoid: set "
            "model.moe.backend=native",
        ),
        (
            {"backend": "tutel"},
            "model.moe.backend=tutel with model.moe.batch_prioritized and model.moe.eval_capacity_factor "
            "(0.0) <= 0 would drop tokens silently: Tutel takes the capacity from the last token; set a "
            "factor above 0, batch_prioritized=false or backend=native",
        ),
        ({"expert_dropout": 1.0}, "model.moe.expert_dropout (1.0) must lie in [0, 1)"),
        ({"routing_group_images": 0}, "model.moe.routing_group_images (0) must be at least 1"),
    ],
)
def test_moe_errors(options: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=f"^{re.escape(message)}$"):
        moe(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"num_heads": (3, 6, 12)},
            "model.num_heads has 3 entries, model.depths has 4: one a stage each",
        ),
        (
            {"num_heads": (3, 6, 12, 25)},
            "model.num_heads[3] (25) must divide the width of stage 3 (768)",
        ),
        ({"num_heads": (0, 6, 12, 24)}, "model.num_heads[0] (0) must divide the width of stage 0 (96)"),
        ({"window_size": 0}, "model.window_size (0) must be at least 1"),
        ({"image_size": 0}, "model.image_size (0) must be at least 1"),
        ({"extra_norm_period": -1}, "model.extra_norm_period (-1) must be at least 0"),
        ({"activation_checkpoint_every": -1}, "model.activation_checkpoint_every (-1) must be at least 0"),
        ({"attention_chunk": -1}, "model.attention_chunk (-1) must be at least 0"),
        (
            {"pretrained_window_sizes": (12, 12, 6)},
            "model.pretrained_window_sizes has 3 entries, model.depths has 4: one a stage each",
        ),
        (
            {"attention": "cosine"},
            "model.attention (cosine) needs model.position_bias=log_cpb (got table)",
        ),
        ({"depths": ()}, "model.depths ([]) must give every stage at least one block"),
        ({"mlp_ratio": 0}, "model.embed_dim (96) x model.mlp_ratio (0) must be at least 1"),
        ({"init_std": 0}, "model.init_std (0) must be above 0"),
        (
            {"attention": "mlp", "window_padding": "visible"},
            "model.window_padding=visible is for windows that attend; model.attention=mlp (Swin-MLP) has "
            "padding of its own: set model.window_padding=hidden",
        ),
        ({"drop_path_rate": 1.0}, "model.drop_path_rate (1.0) must lie in [0, 1)"),
        ({"head_dropout": 1.0}, "model.head_dropout (1.0) must lie in [0, 1)"),
        ({"frames": -1}, "model.frames (-1) must be at least 0"),
        ({"frames": 2, "patch_frames": 3}, "model.patch_frames (3) must be at most model.frames (2)"),
        ({"window_frames": 0}, "model.window_frames (0) must be at least 1"),
        (
            {"window_padding": "fitted"},
            "model.window_padding=fitted is for clips: set model.frames (0) above 0, or "
            "model.window_padding=hidden or visible",
        ),
        (
            {"frames": 8, "attention": "mlp", "window_padding": "fitted"},
            "model.window_padding=fitted is for windows that attend; model.attention=mlp (Swin-MLP) has "
            "padding of its own: set model.window_padding=hidden",
        ),
        (
            {"pretrained_window_sizes": (0, 0, 0, (2, 7, 7))},
            "model.pretrained_window_sizes[3] ([2, 7, 7]) must be one number, of a square, or two: "
            "[height, width]",
        ),
        (
            {"frames": 8, "pretrained_window_sizes": (0, 0, 0, (7,))},
            "model.pretrained_window_sizes[3] ([7]) must be one number, of a square, or two: "
            "[height, width], or three: [time, height, width]",
        ),
        (
            {"frames": 8, "pretrained_window_sizes": (0, 0, 0, (2, -1, 7))},
            "model.pretrained_window_sizes[3] ([2, -1, 7]) must be at least 0",
        ),
        (
            {"moe": moe(blocks=((), (1,)))},
            "model.moe.blocks has 2 entries, model.depths has 4: one a stage each",
        ),
        (
            {"moe": moe(blocks=((), (), (1, 6), ()))},
            "model.moe.blocks[2] names block 6; stage 2 has blocks 0..5",
        ),
        (
            {"moe": moe(blocks=((-1,), (), (), ()))},
            "model.moe.blocks[0] names block -1; stage 0 has blocks 0..1",
        ),
    ],
)
def test_model_errors(options: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=f"^{re.escape(message)}$"):
        ModelConfig(**options)


def test_a_map_smaller_than_the_window_is_one_window() -> None:
    """Image 64: maps of 16, 8, 4, 2 tokens; a window of 8 shrinks to 4 and 2 in the last stages."""
    config = ModelConfig(image_size=64, window_size=8)
    assert [config.stage_window(stage) for stage in range(4)] == [(8, 8), (8, 8), (4, 4), (2, 2)]


def test_visible_padding_keeps_the_window() -> None:
    config = ModelConfig(image_size=64, window_size=8, window_padding="visible")
    assert [config.stage_window(stage) for stage in range(4)] == [(8, 8)] * 4
    assert [config.pretrained_window(stage) for stage in range(4)] == [(8, 8)] * 4


def test_windows_of_clips() -> None:
    """5 frames in patches of 2 are 3 times in every stage; image 32: maps of 8, 4, 2, 1 tokens."""
    config = ModelConfig(image_size=32, frames=5, window_frames=4, window_size=4)
    assert (config.input_sides, config.patch_sides) == ((5, 32, 32), (2, 4, 4))
    maps = [(3, 8, 8), (3, 4, 4), (3, 2, 2), (3, 1, 1)]
    assert [config.stage_resolution(stage) for stage in range(4)] == maps
    assert [config.stage_tokens(stage) for stage in range(4)] == [192, 48, 12, 3]
    assert [config.stage_window(stage) for stage in range(4)] == [(3, 4, 4), (3, 4, 4), (3, 2, 2), (3, 1, 1)]
    for padding in ("visible", "fitted"):  # attention fits the window to the map
        whole = replace(config, window_padding=padding)
        assert [whole.stage_window(stage) for stage in range(4)] == [(4, 4, 4)] * 4
    learned = replace(config, pretrained_window_sizes=(0, 7, (6, 5), (8, 0, 7)))
    expected = [(3, 4, 4), (3, 7, 7), (3, 6, 5), (8, 1, 7)]
    assert [learned.pretrained_window(stage) for stage in range(4)] == expected
    images = ModelConfig(patch_frames=9, window_frames=3)  # of an image they say nothing
    assert (images.input_sides, images.patch_sides) == ((224, 224), (4, 4))
    assert images.stage_window(0) == (7, 7)


def test_maps_of_any_size_round_up() -> None:
    """Image 203, patch 4: ceil(50.75) = 51 tokens, then 26, 13, 7; a window of 8 shrinks to 7 at the end."""
    config = ModelConfig(image_size=203, window_size=8)
    assert [config.stage_resolution(stage) for stage in range(4)] == [(51, 51), (26, 26), (13, 13), (7, 7)]
    assert [config.stage_window(stage) for stage in range(4)] == [(8, 8), (8, 8), (8, 8), (7, 7)]
