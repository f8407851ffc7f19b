"""Folders of small random models, as transformers writes them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.models import randn

transformers = pytest.importorskip("transformers", reason="pip install transformers")

VIT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 32,
    "patch_size": 8,
}
SWIN: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 8,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
}
TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 16,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
LABELS = {"id2label": {0: "cat", 1: "dog", 2: "eel"}, "label2id": {"cat": 0, "dog": 1, "eel": 2}}


def make(kind: str, **options: Any) -> nn.Module:
    """A model of a class of transformers, with random weights that all matter."""
    name = kind.removesuffix("Model").partition("For")[0]
    config = getattr(transformers, f"{name}Config")
    if name == "CLIP":
        built = config(vision_config=VIT, text_config=TEXT)
    else:
        built = config(**(SWIN if name.startswith("Swin") else VIT), **options)
    model = getattr(transformers, kind)(built).eval()
    for seed, parameter in enumerate(model.parameters()):
        values = 0.2 * randn(parameter.numel(), seed=seed) + (parameter.dim() == 1)
        parameter.data = values.view(parameter.shape)
    return model  # type: ignore[no-any-return]


def write(model: Any, path: Path) -> Path:
    """A folder with the model's weights and its normalization."""
    model.save_pretrained(path)
    processor = {"image_mean": list(MEAN), "image_std": list(STD), "do_normalize": True}
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return path


@torch.no_grad()
def tokens_of(model: Any, images: torch.Tensor) -> torch.Tensor:
    """The last hidden state, as transformers gives it."""
    found: torch.Tensor = model(images).last_hidden_state
    return found
