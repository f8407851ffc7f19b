"""Hugging Face: their models' weights into ours and ours into theirs, with the same logits.

transformers 5 adds SwinV2's shift mask twice, -200 for -100; ours is -inf. After a softmax in fp32 the three
are the same here: e^-100 is 1e-44 beside terms of 1, far below the 1e-5 that the logits are held to. Maps are
multiples of their windows, because transformers lets padding take part in attention, which we mask unless
model.window_padding is visible.
"""

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from swin_moe import ModelConfig, WeightsError, build_model, load_weights, save_weights
from tests.swin_moe.weights.official_files import SWIN, SWIN_MLP, SWIN_MOE, SWIN_V2, assert_same, randomized

transformers = pytest.importorskip("transformers", reason="pip install transformers")

# Maps of 8, 4: shifted windows of 4 in the first stage, one whole window in the second.
V1 = replace(SWIN, image_size=32, window_size=4, depths=(2, 2), mlp_ratio=4.0)
V2 = replace(SWIN_V2, image_size=32, window_size=4, depths=(2, 2), mlp_ratio=4.0)
# Maps of 12 and 6 tokens: windows of 5 are padded in both, and shifted.
PADDED = {"image_size": 48, "window_size": 5, "window_padding": "visible"}


def their_config(config: ModelConfig) -> "transformers.PretrainedConfig":
    options = {
        "image_size": config.image_size,
        "embed_dim": config.embed_dim,
        "depths": list(config.depths),
        "num_heads": list(config.num_heads),
        "window_size": config.window_size,
        "num_labels": config.num_classes,
        "mlp_ratio": config.mlp_ratio,
    }
    if config.attention == "dot":
        return transformers.SwinConfig(**options)
    return transformers.Swinv2Config(**options, pretrained_window_sizes=[0] * len(config.depths))


def theirs(config: ModelConfig, kind: str = "ForImageClassification") -> nn.Module:
    name = "Swin" if config.attention == "dot" else "Swinv2"
    torch.manual_seed(0)
    model = getattr(transformers, name + kind)(their_config(config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.4)
    return model.eval()


@pytest.mark.parametrize("config", [V1, V2], ids=["swin", "swinv2"])
def test_their_folder_into_ours(config: ModelConfig, tmp_path: Path) -> None:
    source, model = theirs(config), build_model(config).eval()
    source.save_pretrained(tmp_path)
    report = load_weights(model, tmp_path)
    assert report.format == f"Hugging Face {'Swin' if config is V1 else 'Swinv2'}"
    assert report.loaded == len(list(model.parameters()))
    assert report.notices == []
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        ours, expected = model(images).logits, source(images).logits
    assert expected.std(dim=0).mean() > 0.1  # the images matter
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [V1, V2], ids=["swin", "swinv2"])
def test_a_bin_with_the_names_in_memory(config: ModelConfig, tmp_path: Path) -> None:
    """transformers 5 has other names in memory than in files."""
    source, model = theirs(config), build_model(config).eval()
    torch.save(source.state_dict(), tmp_path / "pytorch_model.bin")
    load_weights(model, tmp_path / "pytorch_model.bin")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(images).logits, source(images).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["Model", "ForMaskedImageModeling"])
def test_a_body_without_classifier(kind: str, tmp_path: Path) -> None:
    source, model = theirs(V2, kind), build_model(V2).eval()
    source.save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="no classifier"):
        load_weights(model, tmp_path)
    report = load_weights(model, tmp_path, head="replace")
    masked = {"decoder.0.weight", "decoder.0.bias", "swinv2.embeddings.mask_token"}
    assert set(report.dropped) == (masked if kind != "Model" else set())
    body = source if kind == "Model" else source.swinv2
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        last = model.norm(model.forward_features(images).maps[-1]).flatten(1, 2)
        expected = body(images).last_hidden_state
    torch.testing.assert_close(last, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("parts", ["1GB", "20KB"])
@pytest.mark.parametrize("config", [V1, V2], ids=["swin", "swinv2"])
def test_our_folder_in_theirs_and_back(config: ModelConfig, parts: str, tmp_path: Path) -> None:
    """And saved by them, in several files with an index too, it is ours again bit by bit."""
    source = randomized(config)
    save_weights(source, tmp_path / "ours", "hf")
    kind = (
        transformers.SwinForImageClassification if config is V1 else transformers.Swinv2ForImageClassification
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, info = kind.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert [name for kind, names in info.items() if kind.endswith("_keys") for name in names] == []
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        ours, logits = source(images).logits, model.eval()(images).logits
    assert ours.std(dim=0).mean() > 0.1  # the images matter
    torch.testing.assert_close(logits, ours, rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path / "back", max_shard_size=parts)
    assert len(list((tmp_path / "back").glob("*.safetensors"))) > (parts == "20KB")
    again = build_model(config)
    load_weights(again, tmp_path / "back")
    assert_same(again, source)


def test_their_pretrained_windows_are_taken_from_their_config(tmp_path: Path) -> None:
    config = replace(V2, pretrained_window_sizes=(3, 2))
    save_weights(randomized(config), tmp_path / "hf", "hf")
    with pytest.raises(WeightsError, match=r"pretrained_window_sizes=\[3, 2\] \(got None\)"):
        load_weights(build_model(V2), tmp_path / "hf")
    load_weights(build_model(config), tmp_path / "hf")
    load_weights(build_model(config), tmp_path / "hf/model.safetensors")
    images = torch.randn(1, 3, 32, 32)
    model = transformers.Swinv2ForImageClassification.from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        expected = randomized(config)(images).logits
        torch.testing.assert_close(model(images).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [V1, V2], ids=["swin", "swinv2"])
def test_padding_that_attention_sees_is_theirs(config: ModelConfig, tmp_path: Path) -> None:
    source = randomized(replace(config, **PADDED))
    save_weights(source, tmp_path / "hf", "hf")
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "hf").eval()
    images = torch.randn(3, 3, 48, 48)
    with torch.no_grad():
        ours, hidden = source(images).logits, build_model(replace(source.config, window_padding="hidden"))
        torch.testing.assert_close(model(images).logits, ours, rtol=1e-5, atol=1e-5)
        hidden.load_state_dict(source.state_dict())
        assert not torch.allclose(hidden.eval()(images).logits, ours, atol=1e-3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            replace(V1, window_padding="visible"),
            "stage 1 has a map of 4 x 4 and windows of 4, .* another shift",
        ),
        (SWIN_MOE, "--to hf is for swin, swinv2; this model is swin_moe"),
        (SWIN_MLP, "this model is swin_mlp"),
        (replace(SWIN_V2, extra_norm_period=2), "extra_norm_period=2"),
        (replace(V1, window_size=3), "stage 0 has a map of 8 x 8 and windows of 3"),
        (
            replace(V1, window_size=8),
            "stage 1 has a map of 4 x 4 and windows of 4, for which .* windows of 8",
        ),
        (replace(V2, image_size=36, window_size=9), "stage 1 has a map of 5 x 5 .* windows of 4"),
    ],
)
def test_what_theirs_would_compute_otherwise_is_refused(
    config: ModelConfig, message: str, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match=message):
        save_weights(build_model(config), tmp_path / "hf", "hf")
    assert list(tmp_path.iterdir()) == []
