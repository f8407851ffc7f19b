"""Write a model of a dense task: in both dialects of the released files, UPerNet also for transformers.

Legend: K classes.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from swin_moe.config import ModelConfig
from swin_moe.detection.detector import Detector
from swin_moe.heads.upernet import Segmenter
from swin_moe.weights import hf, mmseg, official
from swin_moe.weights.dense import COUNTER, NORMS, prefix_of
from swin_moe.weights.errors import WeightsError
from swin_moe.weights.input_spec import InputSpec


class Readers(NamedTuple):
    """A kind of model, and who reads it."""

    what: str
    task: str
    read_by: dict[str, str]  # by format, whose model it is


READERS: dict[type[nn.Module], Readers] = {
    Segmenter: Readers(
        "UPerNet",
        "segmentation",
        {
            "official": "SwinTransformer/Swin-Transformer-Semantic-Segmentation",
            "mmseg": "OpenMMLab's mmseg",
            "hf": "transformers' UperNetForSemanticSegmentation",
        },
    ),
    Detector: Readers(
        "Mask R-CNN and its cascade",
        "detection",
        {
            "official": "SwinTransformer/Swin-Transformer-Object-Detection",
            "mmdet": "OpenMMLab's mmdet",
        },
    ),
}
WITHOUT = {  # why there is no other backbone than Swin, by format
    "official": "that repository has no other backbone",
    "mmseg": "it has no such backbone",
    "mmdet": "it has no such backbone",
    "hf": "its backbones but SwinBackbone do not normalize the maps of the stages, or have no experts",
}
ZOO = {"mmseg": "segmentation", "mmdet": "detection"}  # OpenMMLab's formats, and the task of each
HF_AUXILIARY_STAGE = 2  # what its auxiliary head reads, which is no option there


def check_dense(model: nn.Module, config: ModelConfig, family: str, format: str) -> None:
    """Refuse a format whose readers could not run a model of a dense task, or would compute something else.

    Args:
        model: of the task.
        config: of its backbone.
        family: what the backbone is, of `export.described`.
        format: to write.
    """
    if format in ("native", "safetensors"):
        return
    remedy = "; --to safetensors holds any model"
    readers = next((readers for kind, readers in READERS.items() if isinstance(model, kind)), None)
    if readers is None:
        known = " and ".join(r.what for r in READERS.values() if format in r.read_by) or "no dense task"
        raise WeightsError(
            f"--to {format} is for {known}, and the model is a {type(model).__name__}; its backbone can be "
            f"exported alone{remedy}"
        )
    if format not in readers.read_by:
        raise WeightsError(f"--to {format} has no models of {readers.task}{remedy}")
    if family != "swin":
        raise WeightsError(
            f"--to {format} is for {readers.what} on swin; this backbone is {family}, and "
            f"{readers.read_by[format]} could not run it: {WITHOUT[format]}{remedy}"
        )
    reader = readers.read_by[format]
    if config.window_padding != "visible":
        raise WeightsError(
            f"{reader} would give other results: there attention sees the zeros that pad a map, and "
            f"model.window_padding is {config.window_padding}{remedy}"
        )
    if isinstance(model, Segmenter):
        _check_auxiliary(model, format, reader, remedy)


def _check_auxiliary(model: Segmenter, format: str, reader: str, remedy: str) -> None:
    head = model.config
    if format == "hf" and head.auxiliary_channels and head.auxiliary_stage != HF_AUXILIARY_STAGE:
        raise WeightsError(
            f"{reader} reads stage {HF_AUXILIARY_STAGE} by its auxiliary head, and "
            f"segmentation.head.auxiliary_stage is {head.auxiliary_stage}{remedy}"
        )


def released(
    tensors: Mapping[str, Tensor], config: ModelConfig, buffers: Mapping[str, Tensor], format: str
) -> dict[str, Tensor]:
    """Ours to the names of a dialect: `official`, or one of OpenMMLab's.

    Args:
        tensors: of the model, those of the backbone without a prefix.
        config: of the backbone.
        buffers: the indices that official files of a backbone hold.
        format: the dialect.
    """
    backbone, norms, heads = _apart(tensors)
    swin = official.export(backbone, config) | dict(buffers)
    swin |= {f"norm{stage}.{leaf}": tensor for (stage, leaf), tensor in norms.items()}
    swin = mmseg.of_official(swin) if format in ZOO else swin
    return {f"backbone.{name}": tensor for name, tensor in swin.items()} | _with_counters(heads)


def hugging_face(tensors: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Ours to the names of the files of UperNetForSemanticSegmentation; arguments as in `released`."""
    backbone, norms, heads = _apart(tensors)
    swin = {name.removeprefix("swin."): tensor for name, tensor in hf.export(backbone, config).items()}
    swin |= {f"hidden_states_norms.stage{stage + 1}.{leaf}": t for (stage, leaf), t in norms.items()}
    own = {hf.dense_head_name(name): tensor for name, tensor in _with_counters(heads).items()}
    return {f"backbone.{name}": tensor for name, tensor in swin.items()} | own


def config_json(model: Segmenter, inputs: InputSpec | None) -> dict[str, Any]:
    """What goes into config.json of UperNetForSemanticSegmentation."""
    head, swin = model.config, hf.config_json(model.encoder.config, inputs)
    labels = {name: swin.pop(name) for name in ("id2label", "label2id")}
    del swin["architectures"]
    stages = [f"stage{stage + 1}" for stage in range(len(model.encoder.channels))]
    has_auxiliary = head.auxiliary_channels > 0
    return {
        "architectures": ["UperNetForSemanticSegmentation"],
        "model_type": "upernet",
        "backbone_config": swin | {"out_features": stages},
        "hidden_size": head.channels,
        "pool_scales": list(head.pool_bins),
        "use_auxiliary_head": has_auxiliary,
        "auxiliary_in_channels": model.encoder.channels[head.auxiliary_stage] if has_auxiliary else 1,
        "auxiliary_channels": head.auxiliary_channels or 1,
        "auxiliary_num_convs": 1,
        "auxiliary_concat_input": False,
        **labels,
    }


def _apart(
    tensors: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[tuple[int, str], Tensor], dict[str, Tensor]]:
    """The tensors of the backbone, the norms by stage and leaf, and the heads."""
    backbone = {name: tensor for name, tensor in tensors.items() if prefix_of(name) is None}
    norms: dict[tuple[int, str], Tensor] = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(rf"{re.escape(NORMS)}(\d+)\.(\w+)", name):
            norms[int(match[1]), match[2]] = tensor
    heads = {name: t for name, t in tensors.items() if prefix_of(name) not in (None, NORMS)}
    return backbone, norms, heads


def _with_counters(heads: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The heads with the counters of torch's batch norms, at 0: we keep none."""
    ends = ".running_var"
    counters = [name.removesuffix(ends) for name in heads if name.endswith(ends)]
    return dict(heads) | {f"{name}.{COUNTER}": torch.tensor(0) for name in counters}
