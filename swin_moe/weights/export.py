"""Write a model's weights in a format that others read."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from swin_moe.backbone.backbone import Backbone
from swin_moe.config import ModelConfig
from swin_moe.heads.upernet import Segmenter
from swin_moe.sizes import as_text
from swin_moe.weights import dense_export, hf, native, official, video
from swin_moe.weights.errors import WeightsError
from swin_moe.weights.finite import check_finite
from swin_moe.weights.formats import FORMATS
from swin_moe.weights.hf_processor import processor_gap, processor_json
from swin_moe.weights.input_spec import InputSpec
from swin_moe.weights.square import is_other
from swin_moe.weights.target import Target


def save_weights(model: nn.Module, path: str | Path, format: str, inputs: InputSpec | None = None) -> Path:
    """Write a model's weights; what is at `path` is never overwritten.

    Args:
        model: with all its experts here; a `Backbone`, a `SwinTransformer` with its classifier, a
            `Segmenter` or a `Detector`.
        path: of the file or, for `hf`, of the folder to make.
        format: `native` or `safetensors`, which are the same: our names and our config as metadata;
            `official`: a .pth for microsoft/Swin-Transformer; of a `Segmenter`, for
                SwinTransformer/Swin-Transformer-Semantic-Segmentation; of a `Detector`, for
                SwinTransformer/Swin-Transformer-Object-Detection;
            `mmseg`: a .pth of a `Segmenter` for OpenMMLab's mmseg; `mmdet`: of a `Detector` for its mmdet;
            of a model of clips, `official`, `mmaction` and `torchvision`: a .pth in the dialects of video.py;
            `timm`: a .safetensors or, by the suffix, a .pth;
            `hf`: config.json, model.safetensors and, unless `processor_gap` has an objection,
                preprocessor_config.json for transformers.
        inputs: what `native` and `hf` say of the images and classes; None says nothing.

    Raises:
        WeightsError: the format cannot express the model, a weight is no finite number, or there is
            something at `path`.
    """
    path, target = Path(path), Target(model)
    config = target.config
    if format not in FORMATS:
        raise WeightsError(f"no format {format!r}; known: {', '.join(FORMATS)}")
    if path.exists():
        raise WeightsError(f"{path} exists; choose another place, or delete it")
    check_model(model, format)
    tensors = target.tensors()
    check_finite(tensors)
    if target.has_heads and format not in ("native", "safetensors"):
        return _save_dense(target, tensors, path, format, inputs)
    if config.frames and format not in ("native", "safetensors"):
        return _save_video(target, tensors, path, format, inputs)
    if format == "official":
        weights = official.export(tensors, config) | _buffers(target.backbone)
        return _put(path, lambda out: torch.save({"model": _contiguous(weights)}, out))
    if format == "timm":
        weights = official.export(tensors, config, timm=True)
        if path.suffix in (".pth", ".pt", ".bin"):
            return _put(path, lambda out: torch.save(_contiguous(weights), out))
        return _put(path, lambda out: save_file(_contiguous(weights), out, {"format": "pt"}))
    if format == "hf":
        weights = hf.export(tensors, config)
        return _put(path, lambda out: _write_folder(out, weights, _hf_documents(config, inputs)))
    metadata = native.metadata(config) | (inputs.metadata if inputs else {})
    named = native.tensors_of(model, config.moe.num_experts if config.moe else 0)
    return _put(path, lambda out: save_file(_contiguous(named), out, metadata))


def _save_dense(
    target: Target, tensors: dict[str, Tensor], path: Path, format: str, inputs: InputSpec | None
) -> Path:
    """Write a `Segmenter` or a `Detector` in a format of others."""
    if format == "hf":
        assert isinstance(target.model, Segmenter)
        weights = dense_export.hugging_face(tensors, target.config)
        documents = {"config.json": dense_export.config_json(target.model, inputs)}
        return _put(path, lambda out: _write_folder(out, weights, documents))
    weights = dense_export.released(tensors, target.config, _buffers(target.backbone), format)
    return _put(path, lambda out: torch.save(_with_meta(weights, inputs), out))


def _save_video(
    target: Target, tensors: dict[str, Tensor], path: Path, format: str, inputs: InputSpec | None
) -> Path:
    """Write a model of clips in a format of others; torchvision's is the state dict alone."""
    weights = video.export(tensors, target.config, _buffers(target.backbone), format)
    is_bare = format == "torchvision"
    content = _contiguous(weights) if is_bare else _with_meta(weights, inputs)
    return _put(path, lambda out: torch.save(content, out))


def _with_meta(weights: dict[str, Tensor], inputs: InputSpec | None) -> dict[str, Any]:
    """A checkpoint as OpenMMLab's code saves it."""
    meta = {"CLASSES": inputs.classes} if inputs and inputs.classes else {}
    return {"meta": meta, "state_dict": _contiguous(weights)}


def check_model(model: nn.Module, format: str) -> None:
    """Refuse a format that cannot express a model.

    Raises:
        WeightsError: as `check_format`; or the format has no heads such as the model's, or needs some.
    """
    target = Target(model)
    if target.has_heads:
        dense_export.check_dense(model, target.config, described(target.config), format)
    else:
        check_format(target.config, format)


def kind(config: ModelConfig) -> str:
    """Which of the published families a model belongs to, of images or of clips, or `other`."""
    if config.extra_norm_period:
        return "other"
    key = (config.attention, config.position_bias, config.norm)
    families = {
        ("dot", "table", "pre"): "swin",
        ("cosine", "log_cpb", "post"): "swinv2",
        ("dot", "log_cpb", "pre"): "swin_moe",
    }
    is_mlp = config.attention == "mlp" and config.norm == "pre"
    family = "swin_mlp" if is_mlp else families.get(key, "other")
    has_moe_options = config.moe is not None or not config.mlp_fc2_bias
    return "other" if has_moe_options and family != "swin_moe" else family


def check_format(config: ModelConfig, format: str) -> None:
    """Refuse a format whose readers could not run a backbone or a classifier."""
    if task := dense_export.ZOO.get(format):
        raise WeightsError(
            f"--to {format} is for models of {task}, with their heads; --to official holds others"
        )
    if config.frames:
        video.check_exportable(config, described(config), format)
        return
    if format in video.READ_BY and format != "official":
        raise WeightsError(
            f"--to {format} is for models of clips, and model.frames is {config.frames}; --to safetensors "
            "holds any"
        )
    family = kind(config)
    readable = {
        "hf": ("swin", "swinv2"),
        "timm": ("swin", "swinv2"),
        "official": ("swin", "swinv2", "swin_mlp", "swin_moe"),
    }.get(format)
    if readable is not None and family not in readable:
        raise WeightsError(
            f"--to {format} is for {', '.join(readable)}; this model is {described(config)}; "
            "--to safetensors holds any"
        )
    if format == "hf":
        hf.check_exportable(config)
    if format == "official":
        _check_square_windows(config)


def _check_square_windows(config: ModelConfig) -> None:
    """Refuse what microsoft/Swin-Transformer computes otherwise: there the shorter side of a map decides."""
    for stage in range(len(config.depths)):
        sides = config.stage_resolution(stage)
        window = min(config.window_size, *sides)
        if is_other(config, stage, window=window, shifted=min(sides) > window):
            raise WeightsError(
                f"microsoft/Swin-Transformer would give other logits: stage {stage} has a map of {sides[0]} "
                f"x {sides[1]} and windows of {as_text(config.stage_window(stage))}, for which it would use "
                f"windows of {window} and no shifts; --to timm and --to safetensors hold it"
            )


def described(config: ModelConfig) -> str:
    """Which of the published families a model belongs to, or what makes it another one."""
    if (family := kind(config)) != "other":
        return family
    parts = [f"{config.attention} attention", f"{config.position_bias} bias", f"{config.norm} norm"]
    parts += [f"extra_norm_period={config.extra_norm_period}"] if config.extra_norm_period else []
    parts += [f"{config.moe.num_experts} experts"] if config.moe else []
    parts += ["mlp_fc2_bias=false"] if not config.mlp_fc2_bias else []
    return "one with " + ", ".join(parts)


def _buffers(model: Backbone) -> dict[str, Tensor]:
    """The index and coordinates that official files hold; the latter tell the window of the weights."""
    buffers: dict[str, Tensor] = {}
    for name, buffer in model.named_buffers():
        place, _, leaf = name.replace(".attention.position_bias.", ".attn.").rpartition(".")
        if leaf == "index":
            buffers[f"{place}.relative_position_index"] = buffer.cpu()
        elif leaf == "coordinates":
            side = round(len(buffer) ** 0.5)  # windows are square: see _check_square_windows
            buffers[f"{place}.relative_coords_table"] = buffer.cpu().view(1, side, side, 2)
    return buffers


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with memory of their own, which is all that is then written."""
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}


def _hf_documents(config: ModelConfig, inputs: InputSpec | None) -> dict[str, dict[str, Any]]:
    """The JSON files of a folder for transformers, by name."""
    documents = {"config.json": hf.config_json(config, inputs)}
    if inputs and not processor_gap(config, inputs):
        documents["preprocessor_config.json"] = processor_json(config, inputs)
    return documents


def _write_folder(out: Path, weights: dict[str, Tensor], documents: dict[str, dict[str, Any]]) -> None:
    out.mkdir()
    for name, document in documents.items():
        (out / name).write_text(json.dumps(document, indent=2) + "\n")
    save_file(_contiguous(weights), out / "model.safetensors", {"format": "pt"})


def _put(path: Path, write: Callable[[Path], Any]) -> Path:
    """Write to a temporary name and rename, so that a partial file is never taken for a complete one."""
    partial = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink(missing_ok=True)
        write(partial)
        os.rename(partial, path)
    except OSError as error:
        raise WeightsError(f"{path} cannot be written: {error.strerror or error}") from error
    return path
