"""The names and the config.json of Hugging Face's Swin and Swinv2.

Queries, keys and values are three layers there and one here. The names are those of the published files; what
transformers 5 calls them in memory is read too.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from swin_moe.config import ModelConfig
from swin_moe.sizes import as_text, sides
from swin_moe.weights.converted import ConvertedStateDict, learned_windows, windows_of
from swin_moe.weights.dense import put_head
from swin_moe.weights.errors import WeightsError
from swin_moe.weights.input_spec import InputSpec
from swin_moe.weights.parts import DENSE_HEADS
from swin_moe.weights.square import is_other

ENTRY = "embeddings.patch_embeddings.projection.weight"
PARTS = ("query", "key", "value")
BLOCK = {  # theirs -> ours, below encoder.layers.I.blocks.J; queries, keys and values apart
    **{f"layernorm_before.{leaf}": f"norm1.{leaf}" for leaf in ("weight", "bias")},
    **{f"layernorm_after.{leaf}": f"norm2.{leaf}" for leaf in ("weight", "bias")},
    **{f"attention.output.dense.{leaf}": f"attention.proj.{leaf}" for leaf in ("weight", "bias")},
    **{f"intermediate.dense.{leaf}": f"mlp.fc1.{leaf}" for leaf in ("weight", "bias")},
    **{f"output.dense.{leaf}": f"mlp.fc2.{leaf}" for leaf in ("weight", "bias")},
    "attention.self.relative_position_bias_table": "attention.position_bias.relative_position_bias_table",
    "attention.self.logit_scale": "attention.logit_scale",
    **{
        f"attention.self.continuous_position_bias_mlp.{leaf}": f"attention.position_bias.cpb_mlp.{leaf}"
        for leaf in ("0.weight", "0.bias", "2.weight")
    },
}
TOP = {
    f"{theirs}.{leaf}": f"{ours}.{leaf}"
    for theirs, ours in (
        ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
        ("embeddings.norm", "patch_embed.norm"),
        ("layernorm", "norm"),
        ("classifier", "head"),
    )
    for leaf in ("weight", "bias")
} | {"embeddings.mask_token": "mask_token"}
MERGE = ("norm.weight", "norm.bias", "reduction.weight")
BUFFERS = ("relative_position_index", "relative_coords_table")
IN_MEMORY = {  # transformers 5's names of Swin's modules -> those of the files
    **{f"attention.{part[0]}_proj.": f"attention.self.{part}." for part in PARTS},
    "attention.relative_position_bias.": "attention.self.",
    "attention.o_proj.": "attention.output.dense.",
    "mlp.fc1.": "intermediate.dense.",
    "mlp.fc2.": "output.dense.",
}
SAME = {"hidden_act": "gelu", "use_absolute_embeddings": False, "layer_norm_eps": 1e-5}  # as it is here


def convert(tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> ConvertedStateDict:
    """Their names to ours; `config` is config.json, where there is one."""
    cosine = any(name.endswith("logit_scale") for name in tensors)
    result = ConvertedStateDict(format="Hugging Face Swinv2" if cosine else "Hugging Face Swin")
    _check_config(config or {})
    fused: dict[str, dict[str, Tensor]] = {}
    for theirs, tensor in tensors.items():
        name = _published(theirs)
        if name.rpartition(".")[2] in BUFFERS:
            result.dropped[theirs] = "a buffer, computed anew"
        elif match := re.fullmatch(r"hidden_states_norms\.stage(\d+)\.(weight|bias)", name):
            result.put(f"stage_norms.{int(match[1]) - 1}.{match[2]}", theirs, tensor)
            result.padding = "visible"
        elif name.startswith(DENSE_HEADS):
            put_head(result, _our_head(name), theirs, tensor)
        elif theirs.startswith("decoder."):
            result.dropped[theirs] = "the decoder of masked image modelling"
        elif match := re.fullmatch(r"(.*attention\.)self\.(query|key|value)\.(weight|bias)", name):
            if block := _block(match[1] + "output.dense.weight"):
                own = block.removesuffix("proj.weight")
                fused.setdefault(f"{own}qkv.{match[3]}", {})[match[2]] = tensor
                result.names[f"{own}qkv.{match[3]}"] = theirs
            else:
                result.unknown.append(theirs)
        elif ours := TOP.get(name) or _merge(name) or _block(name):
            result.put(ours, theirs, tensor)
        else:
            result.unknown.append(theirs)
    for ours, pieces in fused.items():
        _put_fused(result, ours, pieces, cosine=cosine)
    if config and cosine:
        squares = [(window[0],) * 2 for window in windows_of(config, rounds_up=False)]
        result.windows = learned_windows(config, squares)  # of Swinv2's maps the height decides
    return result


def export(tensors: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Ours to the names of Swin(v2)ForImageClassification."""
    block, top = ({ours: theirs for theirs, ours in names.items()} for names in (BLOCK, TOP))
    body = "swinv2." if config.attention == "cosine" else "swin."
    result: dict[str, Tensor] = {}
    for ours, tensor in tensors.items():
        if ours in top:
            result[("" if ours.startswith("head.") else body) + top[ours]] = tensor
        elif match := re.fullmatch(r"layers\.(\d+)\.merge\.(.+)", ours):
            result[f"{body}encoder.layers.{int(match[1]) - 1}.downsample.{match[2]}"] = tensor
        elif match := re.fullmatch(r"(layers\.\d+\.blocks\.\d+)\.(.+)", ours):
            prefix, leaf = f"{body}encoder.{match[1]}.", match[2]
            if leaf in block:
                result[prefix + block[leaf]] = tensor
            else:
                pieces = _apart(leaf, tensor)
                result |= {f"{prefix}attention.self.{name}": piece for name, piece in pieces.items()}
        else:
            raise WeightsError(f"Hugging Face's classifiers have no place for {ours}")
    return result


def config_json(config: ModelConfig, inputs: InputSpec | None = None) -> dict[str, Any]:
    """What goes into config.json; classes without a known name are LABEL_0, LABEL_1 ..."""
    cosine = config.attention == "cosine"
    numbered = tuple(f"LABEL_{i}" for i in range(config.num_classes))
    classes = (inputs.classes if inputs else None) or numbered
    labels = {str(i): name for i, name in enumerate(classes)}
    learned = [sides(size)[0] for size in config.pretrained_window_sizes or (0,) * len(config.depths)]
    return {
        "architectures": ["Swinv2ForImageClassification" if cosine else "SwinForImageClassification"],
        "model_type": "swinv2" if cosine else "swin",
        "image_size": config.image_size if isinstance(config.image_size, int) else list(config.image_size),
        "patch_size": config.patch_size,
        "num_channels": config.in_chans,
        "embed_dim": config.embed_dim,
        "depths": list(config.depths),
        "num_heads": list(config.num_heads),
        "window_size": config.window_size,
        **({"pretrained_window_sizes": learned} if cosine else {}),
        "mlp_ratio": config.mlp_ratio,
        "qkv_bias": config.qkv_bias,
        "hidden_dropout_prob": config.drop_rate,
        "drop_path_rate": config.drop_path_rate,
        "initializer_range": config.init_std,
        "id2label": labels,
        "label2id": {label: int(i) for i, label in labels.items()},
        **SAME,
    }


def check_exportable(config: ModelConfig) -> None:
    """Refuse what Hugging Face's classes compute otherwise than we do.

    Swin has one window in all stages; Swinv2 rounds maps down; both have square windows, let padding take
    part in attention as here with `model.window_padding=visible`, and shift along both axes or none: Swin by
    the shorter side, Swinv2 by the height.
    """
    for learned in map(sides, config.pretrained_window_sizes or ()):
        if learned[0] != learned[1]:
            raise WeightsError(
                "Hugging Face's config.json holds square windows alone, and model.pretrained_window_sizes "
                f"has {as_text(learned)}; --to timm and --to safetensors hold it"
            )
    for stage in range(len(config.depths)):
        (height, width), own = config.stage_resolution(stage), config.stage_window(stage)
        window, deciding = config.window_size, min(height, width)
        if config.attention == "cosine":
            deciding = config.image_sides[0] // config.patch_size // 2**stage
            window = min(window, deciding)
        is_padded = any(side % config.patch_size for side in config.image_sides)
        if config.window_padding == "hidden":
            is_padded = is_padded or height % own[0] > 0 or width % own[1] > 0
        if is_padded or is_other(config, stage, window=window, shifted=deciding > window):
            raise WeightsError(
                f"Hugging Face's model would give other logits: stage {stage} has a map of {height} x "
                f"{width} and windows of {as_text(own)}, for which it would use windows of {window}, another "
                "shift, or padding that is not masked; export with a model.image_size and model.window_size "
                "that divide"
            )


def _published(name: str) -> str:
    name = re.sub(r"^swin(v2)?\.", "", name)
    for new, old in IN_MEMORY.items():
        if f".{new}" in name:
            return name.replace(new, old)
    return name


def _block(name: str) -> str | None:
    match = re.fullmatch(r"encoder\.(layers\.\d+\.blocks\.\d+)\.(.+)", name)
    return f"{match[1]}.{BLOCK[match[2]]}" if match and match[2] in BLOCK else None


def _our_head(name: str) -> str:
    """Our name of a tensor of UperNetForSemanticSegmentation's heads."""
    return name.replace(".classifier.", ".conv_seg.").replace(".batch_norm.", ".bn.")


def dense_head_name(name: str) -> str:
    """The name in UperNetForSemanticSegmentation of a tensor of our heads."""
    return name.replace(".conv_seg.", ".classifier.").replace(".bn.", ".batch_norm.")


def _merge(name: str) -> str | None:
    match = re.fullmatch(r"encoder\.layers\.(\d+)\.downsample\.(.+)", name)
    return f"layers.{int(match[1]) + 1}.merge.{match[2]}" if match and match[2] in MERGE else None


def _put_fused(result: ConvertedStateDict, ours: str, pieces: dict[str, Tensor], *, cosine: bool) -> None:
    """Queries, keys and values together; in Swinv2, whose keys have no bias, the biases stay apart."""
    theirs = result.names.pop(ours)
    if cosine and ours.endswith("qkv.bias"):
        for part, tensor in pieces.items():
            own = f"{ours.removesuffix('qkv.bias')}{part[0]}_bias"
            result.put(own, re.sub(r"query|key|value", part, theirs), tensor)
    elif missing := [part for part in PARTS if part not in pieces]:
        raise WeightsError(f"{theirs} is there, but not those of {' and '.join(missing)}")
    else:
        result.put(ours, theirs, torch.cat([pieces[part] for part in PARTS]))


def _apart(leaf: str, tensor: Tensor) -> dict[str, Tensor]:
    """attention.qkv.weight -> query.weight, key.weight, value.weight."""
    if leaf in ("attention.qkv.weight", "attention.qkv.bias"):
        kind = leaf.rpartition(".")[2]
        return {f"{part}.{kind}": piece for part, piece in zip(PARTS, tensor.chunk(3), strict=True)}
    if leaf in ("attention.q_bias", "attention.v_bias"):
        return {"query.bias" if leaf.endswith("q_bias") else "value.bias": tensor}
    raise WeightsError(f"Hugging Face's blocks have no place for {leaf}")


def _check_config(config: Mapping[str, Any]) -> None:
    for name, value in SAME.items():
        if config.get(name, value) != value:
            raise WeightsError(f"config.json has {name}={config[name]!r}; the models here have {value!r}")
