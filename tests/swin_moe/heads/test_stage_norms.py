"""Norms of the maps of stages: by hand, against transformers' backbone, and beside experts."""

import re
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from parallel.experts.exchange import ExchangeOptions
from parallel.experts.placement import ExpertParallel
from swin_moe import ModelConfig, ModelError, build_model
from swin_moe.backbone.backbone import Backbone, Features
from swin_moe.backbone.model import construct
from swin_moe.heads.stage_norms import StageNorms
from swin_moe.random.keyed import sample_keys
from tests.models import V2, images_of, randomize_by_fan_in, small_moe, small_swin
from tests.swin_moe.backbone.transformers_models import sources, transformers


class Dense(nn.Module):
    """A backbone with norms of the maps of some stages."""

    def __init__(self, model: ModelConfig, placement: ExpertParallel | None, stages: Sequence[int]) -> None:
        super().__init__()
        self.backbone = Backbone(model, placement, norm=False)
        self.stage_norms = StageNorms(self.backbone.channels, stages)

    def forward(self, images: Tensor, keys: Tensor | None = None) -> Features:
        return self.stage_norms(self.backbone.forward_features(images, keys))


def dense(config: ModelConfig, stages: Sequence[int]) -> Dense:
    """With the initial weights of seed 0, all experts here."""

    def make(model: ModelConfig, placement: ExpertParallel | None) -> Dense:
        return Dense(model, placement, stages)

    return construct(make, config, seed=0, mesh=None, sharded=False, exchange=ExchangeOptions())


def test_maps_by_hand() -> None:
    """Each token minus its mean, over its standard deviation, times weight plus bias; stage 1 is left out."""
    norms = StageNorms((2, 4, 2), stages=(0, 2))
    with torch.no_grad():
        norms["2"].weight.copy_(torch.tensor([10.0, 1.0]))
        norms["2"].bias.copy_(torch.tensor([0.0, 5.0]))
    first, last = torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[[[8.0, 2.0]]]])
    features = norms(Features(maps=[first, torch.zeros(1, 1, 1, 4), last], strides=(4, 8, 16), moe={}))
    # (1, 3): mean 2, deviation 1; (8, 2): mean 5, deviation 3
    torch.testing.assert_close(features.maps[0], torch.tensor([[[[-1.0, 1.0]]]]))
    torch.testing.assert_close(features.maps[1], torch.tensor([[[[10.0, 4.0]]]]))
    assert features.strides == (4, 16)
    assert (norms.stages, norms.channels) == ((0, 2), (2, 2))


@pytest.mark.parametrize("stages", [(0, 1, 2), (1, 2)], ids=str)
def test_maps_equal_those_of_transformers(stages: Sequence[int]) -> None:
    """Swin as a backbone of detectors, all weights random: the map of each stage before its merging."""
    config = small_swin(image_size=64, depths=(1, 2, 1), num_heads=(1, 2, 4))
    options = transformers.SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 2, 1],
        num_heads=[1, 2, 4],
        window_size=4,
        out_features=[f"stage{stage + 1}" for stage in stages],
    )
    theirs, ours = transformers.SwinBackbone(options).eval(), dense(config, stages).eval()
    randomize_by_fan_in(theirs)
    weights = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            part, _, own = name.partition(".")
            stage, _, leaf = own.partition(".")
            names = (
                sources(own, v2=False)
                if part == "backbone"
                else [f"hidden_states_norms.stage{int(stage) + 1}.{leaf}"]
            )
            parameter.copy_(torch.cat([weights[source] for source in names]))
    images = images_of(config)
    for got, expected in zip(ours(images).maps, theirs(images).feature_maps, strict=True):
        torch.testing.assert_close(got.permute(0, 3, 1, 2), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [{}, V2], ids=["swin", "v2"])
def test_every_parameter_gets_a_gradient_and_no_statistics_are_lost(kind: dict[str, str]) -> None:
    """Experts in both stages, of which the maps of the last alone are kept; initial norms do nothing."""
    config = small_swin(**kind, moe=small_moe())
    model, plain = dense(config, (1,)).train(), build_model(config).train()
    model.backbone.load_state_dict({name: plain.state_dict()[name] for name in model.backbone.state_dict()})
    images, keys = images_of(config), sample_keys(0, torch.arange(2))
    features, expected = model(images, keys), plain.forward_features(images, keys)
    assert features.moe.keys() == expected.moe.keys()
    assert torch.equal(features.aux_loss, expected.aux_loss)
    assert torch.equal(features.maps[0], nn.functional.layer_norm(expected.maps[1], (16,)))
    (features.maps[0].square().sum() + features.aux_loss).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("stages", [(), (0, 3), (2, 1), (1, 1), (-1,)], ids=str)
def test_errors(stages: Sequence[int]) -> None:
    message = f"the stages to normalise ({list(stages)}) must be some of [0, 1, 2], in this order"
    with pytest.raises(ModelError, match=f"^{re.escape(message)}$"):
        StageNorms((8, 16, 32), stages)
