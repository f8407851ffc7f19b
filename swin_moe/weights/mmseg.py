"""The backbone's names in OpenMMLab's zoo (mmseg, mmdet, mmpretrain), and its order of merged neighbours.

Legend: C channels of the map before a merging, O after it.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from swin_moe.weights import official
from swin_moe.weights.converted import ConvertedStateDict
from swin_moe.weights.errors import WeightsError

ENTRY = "patch_embed.projection.weight"
NAMES = {  # official -> theirs; the first that a name contains
    "patch_embed.proj.": "patch_embed.projection.",
    ".attn.": ".attn.w_msa.",
    ".mlp.fc1.": ".ffn.layers.0.0.",
    ".mlp.fc2.": ".ffn.layers.1.",
}
MERGED = r"(?:layers|stages)\.\d+\.downsample\.(?:reduction\.weight|norm\.weight|norm\.bias)"
NEIGHBOURS = [0, 2, 1, 3]  # theirs go row by row, the official ones column by column; its own inverse


def to_official(name: str) -> str:
    """The official name of a tensor of theirs."""
    name = re.sub(r"^stages\.", "layers.", name)
    for own, theirs in NAMES.items():
        if theirs in name:
            return name.replace(theirs, own)
    return name


def from_official(name: str) -> str:
    """Their name of a tensor with an official name."""
    name = re.sub(r"^layers\.", "stages.", name)
    for own, theirs in NAMES.items():
        if own in name:
            return name.replace(own, theirs)
    return name


def to_official_order(name: str, tensor: Tensor) -> Tensor:
    """A tensor of a merging with its 4 * C inputs neighbour by neighbour; any other tensor as it is.

    Theirs are those of torch.nn.Unfold, channel by channel: the weight (O, 4 * C), norms (4 * C,).
    """
    if not _is_merging(name, tensor):
        return tensor
    return tensor.unflatten(-1, (-1, 4))[..., NEIGHBOURS].transpose(-1, -2).flatten(-2)


def from_official_order(name: str, tensor: Tensor) -> Tensor:
    """The inverse of `to_official_order`."""
    if not _is_merging(name, tensor):
        return tensor
    return tensor.unflatten(-1, (4, -1)).transpose(-1, -2)[..., NEIGHBOURS].flatten(-2)


def convert(tensors: Mapping[str, Tensor]) -> ConvertedStateDict:
    """Their names and order to ours.

    Raises:
        WeightsError: as `official.convert`, or two tensors have one name.
    """
    theirs = {to_official(name): name for name in tensors}
    if len(theirs) != len(tensors):
        raise WeightsError("some tensors are there by their official and by OpenMMLab's names: save one")
    result = official.convert({name: to_official_order(name, tensors[own]) for name, own in theirs.items()})
    result.rename("OpenMMLab", theirs)
    return result


def of_official(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with official names by theirs, and in their order."""
    return {from_official(name): from_official_order(name, tensor) for name, tensor in tensors.items()}


def _is_merging(name: str, tensor: Tensor) -> bool:
    return bool(re.fullmatch(MERGED, name)) and tensor.dim() > 0 and tensor.shape[-1] % 4 == 0
