"""Released models of clips (Video Swin) in three dialects: what their tensors are called.

They are those of SwinTransformer/Video-Swin-Transformer, of OpenMMLab's mmaction2 from version 1.0 on, and of
torchvision's `swin3d_t`, `swin3d_s` and `swin3d_b`. Values are laid out alike in all of them, so that each is
a renaming. Below their prefix the names are those of images (official.py), but for the classifier, the last
norm, and torchvision's stages and MLPs.

Legend: C channels, p patch side, I stage, J block, n tokens of a window.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from swin_moe.backbone.position_bias import relative_index
from swin_moe.config import ModelConfig
from swin_moe.sizes import as_text
from swin_moe.weights import official
from swin_moe.weights.converted import PATCHES, ConvertedStateDict, indexed_window
from swin_moe.weights.errors import WeightsError
from swin_moe.weights.names import BACKBONE
from swin_moe.weights.parts import CLIP_HEAD

READ_BY = {  # by format, whose model it is
    "official": "SwinTransformer/Video-Swin-Transformer",
    "mmaction": "OpenMMLab's mmaction2",
    "torchvision": "torchvision's SwinTransformer3d",
}
CLASSIFIER = f"{CLIP_HEAD}fc_cls."  # of the official files and of mmaction2
INDEX = "relative_position_index"
STAGES = "features."  # of torchvision: 2I are the blocks of a stage, 2I + 1 the merging after it
MLP = {"mlp.0.": "mlp.fc1.", "mlp.3.": "mlp.fc2."}  # of torchvision: 1, 2 and 4 have no tensors


def is_video(names: Mapping[str, Tensor]) -> bool:
    """Whether weights without prefixes are of a released model of clips: their patches have five dims."""
    return PATCHES in names and names[PATCHES].dim() == 5


def convert(tensors: Mapping[str, Tensor]) -> ConvertedStateDict:
    """The names of the three dialects to ours.

    Args:
        tensors: without `backbone.`; the patch embedding is (C, in_chans, frames, p, p).

    Raises:
        WeightsError: an index of positions is not that of a window, or two tensors have one name.
    """
    dialect = _dialect(tensors)
    last = f"norm{_last_stage(tensors)}."
    theirs = {_official_name(name, last): name for name in tensors}
    if len(theirs) != len(tensors):
        raise WeightsError("some tensors are there by their names in two dialects of video models: save one")
    norms = {name for name in theirs if re.fullmatch(r"norm\d+\.(weight|bias)", name)}
    _check_indices({name: tensors[theirs[name]] for name in theirs if name.endswith(INDEX)}, theirs)
    result = official.convert({name: tensors[own] for name, own in theirs.items() if name not in norms})
    result.rename(dialect, theirs)
    reason = "the norm of an earlier stage, and the model has none"
    result.dropped |= {theirs[name]: reason for name in norms}
    result.padding = "fitted"  # no models of clips of another rule were released
    return result


def export(
    tensors: Mapping[str, Tensor], config: ModelConfig, buffers: Mapping[str, Tensor], format: str
) -> dict[str, Tensor]:
    """Ours to the names of a dialect.

    Args:
        tensors: of a backbone or a classifier of clips.
        config: of it.
        buffers: the indices of positions (n, n) by their official names.
        format: `official`, `mmaction` or `torchvision`.
    """
    names = official.export(tensors, config) | dict(buffers)
    if format == "torchvision":
        return {_torchvision_name(name): tensor for name, tensor in names.items()}
    last = f"norm{len(config.depths) - 1}." if format == "mmaction" else "norm."
    return {_openmmlab_name(name, last): tensor for name, tensor in names.items()}


def check_exportable(config: ModelConfig, family: str, format: str) -> None:
    """Refuse a format whose readers could not run a model of clips, or would compute something else.

    Args:
        config: of the model, with frames.
        family: what it is, of `export.described`.
        format: to write.

    Raises:
        WeightsError: with the reason.
    """
    if format in ("native", "safetensors"):
        return
    remedy = "; --to safetensors holds any model"
    if format not in READ_BY:
        raise WeightsError(
            f"--to {format} has no models of clips (model.frames is {config.frames}); --to "
            f"{', '.join(READ_BY)} have{remedy}"
        )
    reader = READ_BY[format]
    if family != "swin":
        raise WeightsError(f"--to {format} is for swin; {reader} could not run this model: {family}{remedy}")
    if config.window_padding != "fitted":
        raise WeightsError(
            f"{reader} would give other results: its windows are those of model.window_padding=fitted, and "
            f"here it is {config.window_padding}{remedy}"
        )
    if format == "torchvision":
        _check_options(config, reader, remedy)


def _check_options(config: ModelConfig, reader: str, remedy: str) -> None:
    for name, value in {"qkv_bias": True, "in_chans": 3}.items():
        if getattr(config, name) != value:
            raise WeightsError(
                f"{reader} has model.{name}={value} alone, and it is {getattr(config, name)}{remedy}"
            )


def _dialect(tensors: Mapping[str, Tensor]) -> str:
    """Which of the released models has these names."""
    if any(name.startswith(STAGES) for name in tensors):
        return "torchvision video"
    return "official video" if "norm.weight" in tensors else "mmaction2 video"


def _last_stage(tensors: Mapping[str, Tensor]) -> int:
    """The number of the last stage, by the blocks; torchvision's norm has no number."""
    stages = [int(match[1]) for name in tensors if (match := re.match(r"layers\.(\d+)\.", name))]
    return max(stages, default=0)


def _official_name(name: str, last_norm: str) -> str:
    """The name that a tensor would have in an official file of images."""
    for theirs, own in {CLASSIFIER: "head.", last_norm: "norm."}.items():
        if name.startswith(theirs):
            return own + name.removeprefix(theirs)
    if match := re.fullmatch(r"features\.(\d+)\.(.+)", name):
        stage, is_merging = divmod(int(match[1]), 2)
        part = "downsample" if is_merging else "blocks"
        return f"layers.{stage}.{part}.{_replaced(match[2], MLP)}"
    return name


def _torchvision_name(name: str) -> str:
    """Its name of a tensor with an official name."""
    if match := re.fullmatch(r"layers\.(\d+)\.(blocks|downsample)\.(.+)", name):
        number = 2 * int(match[1]) + (match[2] == "downsample")
        return f"{STAGES}{number}.{_replaced(match[3], {own: theirs for theirs, own in MLP.items()})}"
    return name


def _openmmlab_name(name: str, last_norm: str) -> str:
    """The name in an official file of clips, or in mmaction2, of a tensor with an official name of images."""
    if name.startswith("head."):
        return CLASSIFIER + name.removeprefix("head.")
    return BACKBONE + (last_norm + name.removeprefix("norm.") if name.startswith("norm.") else name)


def _replaced(name: str, parts: Mapping[str, str]) -> str:
    """A name with one of the parts that it has in another dialect: `J.mlp.0.weight` -> `J.mlp.fc1.weight`."""
    old = next((part for part in parts if f".{part}" in name), None)
    return name.replace(f".{old}", f".{parts[old]}") if old else name


def _check_indices(indices: Mapping[str, Tensor], theirs: Mapping[str, str]) -> None:
    """See that the rows of the bias tables are in the order in which they are here."""
    for name, index in indices.items():
        window = indexed_window(index, 3) if index.dim() == 2 and index.numel() else (0, 0, 0)
        expected = relative_index(window)
        if index.shape != expected.shape or not index.equal(expected):
            raise WeightsError(
                f"{theirs[name]} is not the index of a window of three axes (it would be {as_text(window)}): "
                "its table has another order"
            )
