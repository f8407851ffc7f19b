"""A small model of a dense task, and its weights under the names of the released files, mapped by hand."""

import re

import torch
from torch import Tensor, nn

from parallel.experts.options import ExchangeOptions
from parallel.experts.placement import ExpertParallel
from swin_moe import Backbone, ModelConfig
from swin_moe.backbone.backbone import Features
from swin_moe.backbone.group_batch_norm import GroupBatchNorm2d
from swin_moe.backbone.model import construct
from swin_moe.heads.stage_norms import StageNorms
from tests.models import randn, randomize, small_swin

# maps of 10 and 5 tokens: windows of 3 are padded in both
DENSE = small_swin(image_size=40, window_size=3, depths=(2, 2), window_padding="visible")


class ConvNorm(nn.Module):
    """`conv` and `bn`, as the heads of segmentation have them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(inputs, outputs, 1, bias=False), GroupBatchNorm2d(outputs, 2)


class Head(nn.Module):
    """Two convolutions and a classifier; what it computes does not matter here."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(ConvNorm(c, 4) for c in (channels, 4))
        self.conv_seg = nn.Conv2d(4, classes, 1)


class DenseModel(nn.Module):
    """A backbone, norms of its stages, and two heads."""

    def __init__(self, config: ModelConfig, placement: ExpertParallel | None = None) -> None:
        super().__init__()
        self.encoder = Backbone(config, placement, norm=False)
        self.stage_norms = StageNorms(self.encoder.channels, range(len(config.depths)))
        self.decode_head = Head(self.encoder.channels[-1], config.num_classes)
        self.auxiliary_head = Head(self.encoder.channels[0], config.num_classes)

    def forward(self, images: Tensor) -> Features:
        """The normalised maps."""
        return self.stage_norms(self.encoder.forward_features(images))


def dense_model(config: ModelConfig = DENSE, *, seed: int | None = None) -> DenseModel:
    """With initial weights, or with every tensor random, running statistics too."""
    model = construct(DenseModel, config, seed=0, mesh=None, sharded=False, exchange=ExchangeOptions())
    if seed is not None:
        randomize(model, seed=seed)
        for i, buffer in enumerate(statistics(model).values()):
            buffer.copy_(randn(*buffer.shape, seed=seed + i).abs() + 0.5)
    return model.eval()


def statistics(model: nn.Module) -> dict[str, Tensor]:
    """The running statistics of its batch norms."""
    return {name: buffer for name, buffer in model.named_buffers() if "running" in name}


def state(model: nn.Module) -> dict[str, Tensor]:
    """Everything that is learned, copied."""
    tensors = dict(model.named_parameters()) | statistics(model)
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def official_name(ours: str) -> str:
    """SwinTransformer/Swin-Transformer-Semantic-Segmentation's name of a tensor of ours."""
    if match := re.fullmatch(r"stage_norms\.(\d)\.(\w+)", ours):
        return f"backbone.norm{match[1]}.{match[2]}"
    if not ours.startswith("encoder."):
        return ours
    name = ours.removeprefix("encoder.")
    if match := re.fullmatch(r"layers\.(\d)\.merge\.(.+)", name):
        name = f"layers.{int(match[1]) - 1}.downsample.{match[2]}"
    name = name.replace(".attention.position_bias.", ".attn.").replace(".attention.", ".attn.")
    return f"backbone.{name}"


def zoo_name(ours: str) -> str:
    """OpenMMLab's name of a tensor of ours."""
    name = official_name(ours).replace("patch_embed.proj.", "patch_embed.projection.")
    name = name.replace("backbone.layers.", "backbone.stages.").replace(".attn.", ".attn.w_msa.")
    return name.replace(".mlp.fc1.", ".ffn.layers.0.0.").replace(".mlp.fc2.", ".ffn.layers.1.")


def hugging_face_names(ours: str) -> list[str]:
    """The names of UperNetForSemanticSegmentation's files, to be concatenated, of a tensor of ours."""
    if match := re.fullmatch(r"stage_norms\.(\d)\.(\w+)", ours):
        return [f"backbone.hidden_states_norms.stage{int(match[1]) + 1}.{match[2]}"]
    if not ours.startswith("encoder."):
        return [ours.replace(".conv_seg.", ".classifier.").replace(".bn.", ".batch_norm.")]
    name = ours.removeprefix("encoder.")
    if name.startswith("patch_embed."):
        name = name.replace("patch_embed.proj", "patch_embeddings.projection").replace("patch_embed.", "")
        return [f"backbone.embeddings.{name}"]
    if match := re.fullmatch(r"layers\.(\d)\.merge\.(.+)", name):
        return [f"backbone.encoder.layers.{int(match[1]) - 1}.downsample.{match[2]}"]
    for own, theirs in {
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attention.proj": "attention.output.dense",
        "attention.position_bias": "attention.self",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }.items():
        name = name.replace(f".{own}.", f".{theirs}.")
    parts = ("query", "key", "value")
    names = [name.replace("attention.qkv", f"attention.self.{part}") for part in parts]
    return [f"backbone.encoder.{each}" for each in (names if names[0] != name else [name])]


def released(model: nn.Module, dialect: str) -> dict[str, Tensor]:
    """A model's weights as a released file of a dialect has them, with counters and index buffers.

    OpenMMLab's merging has its inputs channel by channel, the four neighbours of a channel row by row; ours
    neighbour by neighbour, and these column by column.
    """
    tensors: dict[str, Tensor] = {}
    for ours, tensor in state(model).items():
        if dialect == "official":
            tensors[official_name(ours)] = tensor
        elif dialect == "zoo":
            tensors[zoo_name(ours)] = row_by_row(tensor) if ".merge." in ours else tensor
        else:
            names = hugging_face_names(ours)
            tensors |= zip(names, tensor.chunk(len(names)), strict=True)
    for name in [name for name in tensors if name.endswith("running_var")]:
        tensors[name.replace("running_var", "num_batches_tracked")] = torch.tensor(160000)
    for name in [name for name in tensors if name.endswith("relative_position_bias_table")]:
        index = torch.zeros(9, 9, dtype=torch.int64)
        tensors[name.replace("bias_table", "index")] = index
    return tensors


def row_by_row(tensor: Tensor) -> Tensor:
    """The inputs of a merging, (..., 4 * C), as torch.nn.Unfold lays them out."""
    channels = tensor.shape[-1] // 4
    order = [column * 2 * channels + row * channels + c for c in range(channels) for row, column in CELLS]
    return tensor[..., order]


CELLS = [(0, 0), (0, 1), (1, 0), (1, 1)]  # row and column of a neighbour, as Unfold takes them
