"""Swin and SwinV2 against timm's own models, the weights carried over by the converter in both directions.

Every tensor is random: SwinV2's norms begin at zero, and fresh weights would prove nothing. Sizes are those
whose windows divide every map, because timm lets the zeros that pad a map take part in attention.
"""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from swin_moe import SwinTransformer, build_model, load_weights, save_weights
from swin_moe.recipes import load_model_config
from swin_moe.weights.official import convert
from tests.models import randn, randomize_by_fan_in

timm = pytest.importorskip("timm", reason="pip install timm")
TOLERANCE = 1e-5  # of logits and features, as a share of the largest entry where that is above 1
SMALL = {"embed_dim": 24, "depths": (2, 2, 3, 2), "num_heads": (1, 2, 4, 8), "num_classes": 10}
TINY = {"embed_dim": 16, "depths": (2, 3), "num_heads": (2, 4), "num_classes": 7}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model by timm's name and by ours, with the options that make it small.

    Args:
        theirs: the name in timm; ours: in swin_moe.
        size: the side of the images, in pixels; window: of the windows, in tokens.
        options: of both.
        pretrained: SwinV2's pretrained_window_sizes, stage by stage.
    """

    theirs: str
    ours: str
    size: int
    window: int
    options: dict[str, Any] = field(default_factory=lambda: SMALL)
    pretrained: tuple[int, ...] | None = None

    def make_theirs(self) -> nn.Module:
        more = {"pretrained_window_sizes": self.pretrained} if self.pretrained else {}
        name = self.theirs
        return timm.create_model(
            name, img_size=self.size, window_size=self.window, **self.options, **more
        ).eval()

    def make_ours(self) -> SwinTransformer:
        more = {"pretrained_window_sizes": self.pretrained} if self.pretrained else {}
        sizes = {"image_size": self.size, "window_size": self.window}
        return build_model(self.ours, **self.options, **sizes, **more).eval()


SWIN = ("swin_tiny_patch4_window7_224", "swin_tiny_patch4_window7_224")
SWIN_V2 = ("swinv2_tiny_window8_256", "swinv2_tiny_patch4_window8_256")


def case(names: tuple[str, str], size: int, window: int, **options: Any) -> Case:
    return Case(theirs=names[0], ours=names[1], size=size, window=window, **options)


CASES = {
    "swin 224, window 7": case(SWIN, 224, 7),
    "swin 64, window 4": case(SWIN, 64, 4, options=TINY),
    "swin 64, window 16 larger than the last map": case(SWIN, 64, 16, options=TINY),
    "swinv2 256, window 8": case(SWIN_V2, 256, 8),
    "swinv2 64, window 4": case(SWIN_V2, 64, 4, options=TINY),
    "swinv2 64, window 16 larger than the last map": case(SWIN_V2, 64, 16, options=TINY),
    "swinv2 64, window 8 learned with 4 and 2": case(SWIN_V2, 64, 8, options=TINY, pretrained=(4, 2)),
}


def images(size: int) -> Tensor:
    return randn(2, 3, size, size, seed=1)


@torch.no_grad()
def differences(ours: SwinTransformer, theirs: nn.Module, size: int) -> dict[str, float]:
    """Of the logits, of what the head sees, and of each stage's map: see TOLERANCE."""
    x = images(size)
    logits = theirs(x)
    assert 0.1 < logits.abs().max() < 30
    maps = [each.permute(0, 2, 3, 1) for each in theirs.forward_intermediates(x, intermediates_only=True)]
    pairs = {"logits": (ours(x).logits, logits)}
    pairs["pooled"] = (
        ours.forward_pooled(x)[0],
        theirs.forward_head(theirs.forward_features(x), pre_logits=True),
    )
    for i, pair in enumerate(zip(ours.forward_features(x).maps, maps, strict=True)):
        pairs[f"stage {i}"] = pair
    return {name: ((a - b).abs().max() / b.abs().max().clamp(min=1)).item() for name, (a, b) in pairs.items()}


def assert_equal(ours: SwinTransformer, theirs: nn.Module, size: int) -> None:
    found = differences(ours, theirs, size)
    table = ", ".join(f"{name} {difference:.1e}" for name, difference in found.items())
    print(table)
    assert max(found.values()) <= TOLERANCE, f"largest differences: {table}"


@pytest.mark.parametrize("name", CASES)
def test_timms_weights_in_our_model(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    theirs, ours = case.make_theirs(), case.make_ours()
    randomize_by_fan_in(theirs)
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    assert load_weights(ours, tmp_path / "timm.pth").format == "timm"
    assert_equal(ours, theirs, case.size)


@pytest.mark.parametrize("name", CASES)
def test_our_weights_in_timms_model(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    theirs, ours = case.make_theirs(), case.make_ours()
    randomize_by_fan_in(ours)
    save_weights(ours, tmp_path / "ours.pth", "timm")
    theirs.load_state_dict(torch.load(tmp_path / "ours.pth"), strict=True)
    assert_equal(ours, theirs, case.size)


# The sizes of image and window change after the weights were learned: timm resizes its model in place, ours
# reads the same weights into a model of the new size.

RESIZED = {
    "swin 224, window 7 -> 288, window 9": (CASES["swin 224, window 7"], 288, 9),
    "swin 64, window 4 -> 96, window 6": (CASES["swin 64, window 4"], 96, 6),
    "swin 64, window 16 -> 32, window 4": (CASES["swin 64, window 16 larger than the last map"], 32, 4),
    "swinv2 256, window 8 -> 192, window 6": (CASES["swinv2 256, window 8"], 192, 6),
    "swinv2 64, window 8 -> 96, window 12": (CASES["swinv2 64, window 8 learned with 4 and 2"], 96, 12),
}


def resized(weights: dict[str, Tensor], shapes: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights with position bias tables of other windows, bicubically as in the official code.

    timm has that as `_simple`; set_input_size has a spline through points at geometric distances, as BEiT.
    """
    resize = timm.layers.pos_embed_rel.resize_rel_pos_bias_table_simple
    sides = {
        name: (math.isqrt(len(table)) + 1) // 2 for name, table in shapes.items() if name.endswith("table")
    }
    return weights | {
        name: resize(weights[name], (side, side), shapes[name].shape) for name, side in sides.items()
    }


@pytest.mark.parametrize("name", RESIZED)
def test_a_resized_window(name: str, tmp_path: Path) -> None:
    before, size, window = RESIZED[name]
    after = replace(before, size=size, window=window)
    source, theirs, ours = before.make_theirs(), after.make_theirs(), after.make_ours()
    randomize_by_fan_in(source)
    torch.save(source.state_dict(), tmp_path / "timm.pth")
    theirs.load_state_dict(resized(source.state_dict(), theirs.state_dict()), strict=True)
    load_weights(ours, tmp_path / "timm.pth")
    assert_equal(ours, theirs, size)


@pytest.mark.filterwarnings("ignore::UserWarning:timm")
@pytest.mark.parametrize("name", RESIZED)
def test_a_model_that_timm_has_resized(name: str, tmp_path: Path) -> None:
    """By set_input_size: tables of the new window are taken as they are."""
    before, size, window = RESIZED[name]
    theirs, ours = before.make_theirs(), replace(before, size=size, window=window).make_ours()
    randomize_by_fan_in(theirs)
    theirs.set_input_size(img_size=(size, size), window_size=(window, window))
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    assert load_weights(ours, tmp_path / "timm.pth").changes == []
    assert_equal(ours, theirs, size)


@pytest.mark.parametrize("name", ["swin 64, window 4", "swinv2 64, window 8 learned with 4 and 2"])
def test_gradients(name: str, tmp_path: Path) -> None:
    """To 1e-4 of the largest entry of each; our gradients are put under timm's names by the converter."""
    case = CASES[name]
    theirs, ours = case.make_theirs(), case.make_ours()
    randomize_by_fan_in(ours)
    save_weights(ours, tmp_path / "weights.pth", "timm")
    theirs.load_state_dict(torch.load(tmp_path / "weights.pth"), strict=True)
    x = images(case.size)
    cotangent = randn(2, case.options["num_classes"], seed=2)
    (theirs(x) * cotangent).sum().backward()
    (ours(x).logits * cotangent).sum().backward()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.copy_(parameter.grad)
    save_weights(ours, tmp_path / "gradients.pth", "timm")
    found = torch.load(tmp_path / "gradients.pth")
    errors = {
        name: ((found[name] - parameter.grad).abs().max() / parameter.grad.abs().max()).item()
        for name, parameter in theirs.named_parameters()
    }
    assert errors.keys() == found.keys()
    worst = max(errors, key=errors.__getitem__)
    print(f"gradients {errors[worst]:.1e}, of {worst}")
    assert errors[worst] < 1e-4, f"largest difference: {errors[worst]:.1e}, of {worst}"


@pytest.mark.parametrize(("theirs", "ours"), [SWIN, SWIN_V2])
def test_the_published_models_have_our_shapes(theirs: str, ours: str) -> None:
    """Every tensor of timm's model has its place and shape in ours, at full size."""
    with torch.device("meta"):
        found = convert(timm.create_model(theirs).state_dict())
        model = SwinTransformer(load_model_config(ours))
    assert found.unknown == []
    assert {name: tensor.shape for name, tensor in found.tensors.items()} == {
        name: parameter.shape for name, parameter in model.named_parameters()
    }
