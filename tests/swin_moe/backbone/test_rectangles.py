"""Images of H x W pixels: timm and transformers, outputs and gradients; weights of every format.

timm has windows axis by axis as we have, but lets padding take part in attention, so its maps are multiples
of their windows here. Padded maps are held by plain loops in test_kinds.py.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from timm.models.swin_transformer import SwinTransformer as TimmSwin
from timm.models.swin_transformer_v2 import SwinTransformerV2 as TimmSwinV2
from torch import nn

from swin_moe import (
    ModelConfig,
    ModelError,
    SwinTransformer,
    WeightsError,
    build_model,
    load_weights,
    save_weights,
)
from swin_moe.backbone.position_bias import log_coordinates
from swin_moe.heads.simmim import SimMIMConfig, build_simmim
from swin_moe.random.keyed import sample_keys
from swin_moe.recipes import load_model_config
from swin_moe.weights.converted import learned_window
from swin_moe.weights.official import export
from tests.models import V2, images_of, randn, randomize_by_fan_in, small_moe, small_swin
from tests.swin_moe.backbone.transformers_models import compare, ours_and_theirs
from tests.swin_moe.weights.official_files import assert_same, cubic

SWIN = small_swin(image_size=(32, 64))
SWIN_V2 = replace(SWIN, **V2)
MOE = small_moe(blocks=((1,), (1,)), top_k=2)


def randomized(config: ModelConfig) -> SwinTransformer:
    """Weights with which every part matters."""
    return randomize_by_fan_in(build_model(config).eval())


def timm_of(config: ModelConfig) -> nn.Module:
    kind = TimmSwinV2 if config.attention == "cosine" else TimmSwin
    learned = config.pretrained_window_sizes
    options = {"pretrained_window_sizes": learned} if learned else {}
    return kind(
        img_size=config.image_sides,
        patch_size=config.patch_size,
        num_classes=config.num_classes,
        embed_dim=config.embed_dim,
        depths=config.depths,
        num_heads=config.num_heads,
        window_size=config.window_size,
        drop_path_rate=0.0,
        **options,
    ).eval()


RECTANGLES = {
    "wide": SWIN,  # maps of 8 x 16 and 4 x 8: the first side of the second is one window, not shifted
    "tall": replace(SWIN, image_size=(64, 32)),
    "wide windows": replace(SWIN, image_size=(16, 64)),  # 4 x 16 and 2 x 8: windows of 2 x 4
    "tall windows": replace(SWIN, image_size=(64, 8), depths=(2, 1)),  # 16 x 2 and 8 x 1
    "merging pads": replace(
        SWIN, image_size=(12, 40), window_size=5
    ),  # 3 x 10 and 2 x 5: windows of 3 x 5, 2 x 5
    "one window": replace(SWIN, image_size=(12, 24), window_size=8),  # 3 x 6 and 2 x 3
    "v2 wide": SWIN_V2,
    "v2 tall windows": replace(SWIN_V2, image_size=(64, 16)),
    "v2 pretrained": replace(SWIN_V2, image_size=(16, 64), pretrained_window_sizes=(3, (3, 6))),
}


@pytest.mark.parametrize("name", RECTANGLES)
def test_timm_gives_the_same_logits_and_gradients(name: str, tmp_path: Path) -> None:
    """Through the exported file, in fp64: only the log-spaced offsets are fp32, in both."""
    config = RECTANGLES[name]
    ours, theirs = randomized(config), timm_of(config)
    written = save_weights(ours, tmp_path / "x.pth", "timm")
    theirs.load_state_dict(torch.load(written, weights_only=True), strict=True)
    ours.double(), theirs.double()
    x, other = images_of(config).double().requires_grad_(), images_of(config).double().requires_grad_()
    got, expected = ours(x).logits, theirs(other)
    assert expected.std(0).mean() > 0.05  # the images matter
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    cotangent = randn(*got.shape, seed=2, dtype=torch.float64)
    got.backward(cotangent)
    expected.backward(cotangent)
    torch.testing.assert_close(x.grad, other.grad, rtol=1e-4, atol=1e-6)
    gradients = export({n: p.grad for n, p in ours.named_parameters()}, config, timm=True)
    for place, parameter in theirs.named_parameters():
        assert parameter.grad.abs().max() > 0, place
        error = (gradients[place] - parameter.grad).abs().max() / parameter.grad.abs().max()
        assert error < 1e-4, place


@pytest.mark.parametrize("config", [SWIN, SWIN_V2], ids=["swin", "v2"])
def test_transformers_gives_the_same_logits_and_gradients(config: ModelConfig) -> None:
    """Where both sides of every map exceed the window, and it divides them."""
    config = replace(config, image_size=(48, 96), window_size=3, embed_dim=12, num_heads=(2, 3))
    compare(*ours_and_theirs(config, clamped=False), config)


def test_images_the_other_way_round_are_other_images() -> None:
    """Windows of 2 x 4 for maps of 2 x 8: the same pixels, turned, have others."""
    config = replace(SWIN, image_size=(16, 64))
    model, x = randomized(config), images_of(config)
    assert not torch.allclose(model(x).logits, model(x.transpose(2, 3)).logits, atol=1e-3)


@pytest.mark.parametrize("options", [{}, V2])
def test_a_square_written_as_two_numbers_is_the_square(options: dict[str, str]) -> None:
    one, two = (replace(SWIN, image_size=size, moe=MOE, **options) for size in (32, (32, 32)))
    models = [build_model(config, seed=3).train() for config in (one, two)]
    x, keys = images_of(one, 4), sample_keys(0, torch.arange(4))
    first, second = (model(x, keys) for model in models)
    assert torch.equal(first.logits, second.logits)
    assert [(n, p.shape) for n, p in models[0].state_dict().items()] == [
        (n, p.shape) for n, p in models[1].state_dict().items()
    ]


def test_stages_by_hand() -> None:
    """40 x 100 pixels, patches of 4: 10 x 25 tokens, then 5 x 13 and 3 x 7, each merging rounding up."""
    config = replace(SWIN, image_size=(40, 100), depths=(1, 1, 1), num_heads=(1, 1, 1), window_size=6)
    assert [config.stage_resolution(i) for i in range(3)] == [(10, 25), (5, 13), (3, 7)]
    assert [config.stage_tokens(i) for i in range(3)] == [250, 65, 21]
    assert [config.stage_window(i) for i in range(3)] == [(6, 6), (5, 6), (3, 6)]
    maps = build_model(config).forward_features(images_of(config)).maps
    assert [tuple(x.shape[1:3]) for x in maps] == [(10, 25), (5, 13), (3, 7)]
    tables = [m for n, m in build_model(config).named_parameters() if n.endswith("bias_table")]
    assert [len(table) for table in tables] == [11 * 11, 9 * 11, 5 * 11]
    learned = replace(config, pretrained_window_sizes=(8, (0, 4), 0))
    assert [learned.pretrained_window(i) for i in range(3)] == [(8, 8), (5, 4), (3, 6)]


@pytest.mark.parametrize("size", [(32,), (32, 64, 3), ()])
def test_a_size_of_another_length_is_refused(size: tuple[int, ...]) -> None:
    with pytest.raises(
        ModelError, match=r"model.image_size \(\[.*\]\) must be one number, of a square, or two"
    ):
        replace(SWIN, image_size=size)
    with pytest.raises(ModelError, match=r"model.pretrained_window_sizes\[1\] \(\[.*\]\) must be one number"):
        replace(SWIN, pretrained_window_sizes=(4, size))


@pytest.mark.parametrize("size", [(0, 32), (32, 0), (-1, 4)])
def test_a_side_below_one_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ModelError, match=r"model.image_size \(\[.*\]\) must be at least 1"):
        replace(SWIN, image_size=size)


def test_a_named_model_of_another_shape() -> None:
    config = load_model_config("swin_tiny_patch4_window7_224", image_size=[192, 256])
    assert config.image_size == (192, 256)
    assert config.stage_resolution(3) == (6, 8)
    with pytest.raises(ModelError, match=r"model.image_size\[1\]: .* integer.* \(got 2.0\)"):
        load_model_config(config, image_size=[1, 2.0])
    with pytest.raises(ModelError, match=r"model.image_size: .* integer, or a list of two \(got '32x64'\)"):
        load_model_config(config, image_size="32x64")


def test_the_hidden_pixels_of_simmim() -> None:
    """24 x 40 pixels and mask patches of 16: 2 x 3 of them, of which ceil(0.6 * 6) = 4 hide 16 x 16 each.

    The last row has 8 pixels, and so has the last column.
    """
    model = build_simmim(replace(SWIN, image_size=(24, 40)), SimMIMConfig(mask_patch_size=16), seed=1)
    x = randn(8, 3, 24, 40)
    output = model(x, sample_keys(0, torch.arange(8)))
    assert output.mask.shape == (8, 24, 40)
    assert output.prediction.shape == (8, 3, 24, 40)
    expected, total = 0.0, 0
    for mask, picture, image in zip(output.mask, output.prediction, x, strict=True):
        patches = [[bool(mask[i, j]) for j in (0, 16, 32)] for i in (0, 16)]
        assert sum(map(sum, patches)) == 4
        for row in range(24):
            for column in range(40):
                assert mask[row, column] == patches[row // 16][column // 16]
                if mask[row, column]:
                    error = (picture[:, row, column] - image[:, row, column]).abs().mean()
                    expected, total = expected + error.item(), total + 1
    assert output.loss.item() == pytest.approx(expected / total, rel=1e-4)


# Weights.


@pytest.mark.parametrize("form", ["native", "timm"])
@pytest.mark.parametrize("name", ["wide", "tall windows", "v2 wide", "v2 pretrained"])
def test_there_and_back(name: str, form: str, tmp_path: Path) -> None:
    source, model = randomized(RECTANGLES[name]), build_model(RECTANGLES[name])
    report = load_weights(model, save_weights(source, tmp_path / "x", form))
    assert_same(model, source)
    assert report.changes == []
    is_unsaid = form == "timm" and name in ("tall windows", "v2 wide", "v2 pretrained")
    assert bool(report.notices) == is_unsaid
    if name == "tall windows" and form == "timm":
        assert report.notices[0].endswith("the height of a window from its width; stage 0's is taken as 4x2")


@pytest.mark.parametrize("form", ["native", "official"])
def test_a_table_of_the_other_way_round_is_resized(form: str, tmp_path: Path) -> None:
    """Windows of 2 x 4 and of 4 x 2 have tables of 3 * 7 rows both: the file says which they are."""
    wide, tall = (replace(SWIN, image_size=size, depths=(2, 1)) for size in ((8, 16), (16, 8)))
    wide, tall = (
        replace(wide, window_size=8),
        replace(tall, window_size=8),
    )  # maps of one window: 2 x 4, 1 x 2
    source, model = randomized(wide), build_model(tall)
    if form == "official":  # whose own program has no such windows; written by a program that has
        weights = save_weights(source, tmp_path / "timm.pth", "timm")
        tensors = torch.load(weights, weights_only=True)
        for i, stage in enumerate(source.layers):
            for j, block in enumerate(stage.blocks):
                index = block.attention.position_bias.index
                tensors[f"layers.{i}.blocks.{j}.attn.relative_position_index"] = index
        torch.save(tensors, tmp_path / "x.pth")
    else:
        save_weights(source, tmp_path / "x.pth", "native")
    report = load_weights(model, tmp_path / "x.pth")
    assert report.changes == [
        "position bias: window 2x4 resized to 4x2, bicubic (2 tables)",
        "position bias: window 1x2 resized to 2x1, bicubic (1 tables)",
    ]
    for before, after in zip(source.layers[0].blocks, model.layers[0].blocks, strict=True):
        old, new = (b.attention.position_bias.table().detach() for b in (before, after))
        rows, columns = cubic(3, 7), cubic(7, 3)
        for head in range(old.shape[1]):
            expected = rows @ old[:, head].view(3, 7) @ columns.T
            torch.testing.assert_close(new[:, head].view(7, 3), expected)


@pytest.mark.parametrize("form", ["native", "official", "timm", "hf"])
def test_a_square_s_weights_in_a_rectangle(form: str, tmp_path: Path) -> None:
    """Maps of 8 and 4 with windows of 4; then of 4 x 16 and 2 x 8, whose second windows are of 2 x 4."""
    source = randomized(replace(SWIN, image_size=32))
    written = save_weights(source, tmp_path / "x.pth", form)
    model = build_model(replace(SWIN, image_size=(16, 64)))
    report = load_weights(model, written)
    assert report.changes == ["position bias: window 4 resized to 2x4, bicubic (2 tables)"]
    old, new = (m.layers[1].blocks[1].attention.position_bias.table().detach() for m in (source, model))
    for head in range(old.shape[1]):
        expected = cubic(7, 3) @ old[:, head].view(7, 7)
        torch.testing.assert_close(new[:, head].view(3, 7), expected)
    same = build_model(replace(SWIN, image_size=(32, 64)))  # windows of 4 everywhere: nothing changes
    assert load_weights(same, written).changes == []
    assert_same(same, source)


@pytest.mark.parametrize("form", ["native", "official", "hf"])
def test_a_square_s_log_cpb_in_a_rectangle(form: str, tmp_path: Path) -> None:
    source = randomized(replace(SWIN_V2, image_size=32))
    written = save_weights(source, tmp_path / "x.pth", form)
    rectangle = replace(SWIN_V2, image_size=(16, 64))
    expected = (
        r"windows of \[4, 4\], the model's are \[4, \[2, 4\]\]: set model.pretrained_window_sizes=\[4, 4\]"
    )
    with pytest.raises(WeightsError, match=expected):
        load_weights(build_model(rectangle), written)
    model = build_model(replace(rectangle, pretrained_window_sizes=(4, 4)))
    assert load_weights(model, written).notices == []
    assert_same(model, source)


def test_a_rectangle_s_log_cpb_in_a_square(tmp_path: Path) -> None:
    """Windows of 2 x 4 were learned with; a side of one token has learned nothing, and asks for nothing."""
    source = randomized(replace(SWIN_V2, image_size=(16, 64)))
    written = save_weights(source, tmp_path / "x", "native")
    with pytest.raises(WeightsError, match=r"set model.pretrained_window_sizes=\[4, \[2, 4\]\] \(got None\)"):
        load_weights(build_model(replace(SWIN_V2, image_size=32)), written)
    square = replace(SWIN_V2, image_size=32, pretrained_window_sizes=(4, (2, 4)))
    load_weights(build_model(square), written)
    with pytest.raises(WeightsError, match=r"=\[4, \[2, 4\]\] \(got \[4, \[4, 2\]\]\)"):
        load_weights(build_model(replace(square, pretrained_window_sizes=(4, (4, 2)))), written)
    # maps of 2 x 16 and 1 x 8: windows of 2 x 4 and 1 x 4
    flat = randomized(replace(SWIN_V2, image_size=(8, 64)))
    written = save_weights(flat, tmp_path / "flat", "native")
    load_weights(build_model(replace(SWIN_V2, image_size=(8, 32))), written)


@pytest.mark.parametrize(
    ("window", "learned", "read"),
    [((2, 4), None, (2, 4)), ((4, 2), (3, 5), (3, 5)), ((1, 4), (3, 5), (0, 5)), ((4, 1), None, (4, 0))],
)
def test_a_learned_window_is_read_off_its_coordinates(
    window: tuple[int, int], learned: tuple[int, int] | None, read: tuple[int, int]
) -> None:
    """Side by side; a side of one token has the offset 0 alone, which says nothing."""
    height, width = window
    table = log_coordinates(window, learned).view(1, 2 * height - 1, 2 * width - 1, 2)
    assert learned_window(table) == read


SAYS = {
    ("wide", "official"): "stage 1 has a map of 4 x 8 and windows of 4, .* windows of 4 and no shifts",
    (
        "tall windows",
        "official",
    ): "stage 0 has a map of 16 x 2 and windows of 4x2, .* windows of 2 and no shifts",
    ("wide", "hf"): "stage 1 has a map of 4 x 8 and windows of 4, .* windows of 4, another shift",
    ("tall windows", "hf"): "stage 0 has a map of 16 x 2 and windows of 4x2, .* windows of 4, another shift",
    ("v2 wide", "hf"): "stage 1 has a map of 4 x 8 and windows of 4",
    ("v2 tall windows", "hf"): "stage 0 has a map of 16 x 4 and windows of 4, .* another shift",
    ("v2 pretrained", "hf"): "square windows alone, and model.pretrained_window_sizes has 3x6",
}


@pytest.mark.parametrize(("name", "form"), SAYS)
def test_what_a_format_cannot_hold_is_refused(name: str, form: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=SAYS[name, form]):
        save_weights(build_model(RECTANGLES[name]), tmp_path / "out", form)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("config", [SWIN, SWIN_V2], ids=["swin", "v2"])
@pytest.mark.parametrize("form", ["official", "hf"])
def test_rectangles_that_official_and_hf_hold(config: ModelConfig, form: str, tmp_path: Path) -> None:
    """Both sides of both maps exceed the window: 12 x 24 and 6 x 12, windows of 3."""
    config = replace(config, image_size=(48, 96), window_size=3)
    source, model = randomized(config), build_model(config)
    assert load_weights(model, save_weights(source, tmp_path / "x", form)).changes == []
    assert_same(model, source)
    if form == "hf":
        import transformers

        theirs = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "x").eval()
        x = images_of(config)
        with torch.no_grad():
            torch.testing.assert_close(theirs(x).logits, source(x).logits, rtol=1e-4, atol=1e-4)
