"""The parts of a model that weights are loaded into: its backbone and its heads, together or alone."""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from swin_moe.weights.converted import ConvertedStateDict
from swin_moe.weights.errors import WeightsError

Part = Literal["backbone", "head"]
PARTS: tuple[Part, ...] = get_args(Part)
HEAD = ("head.weight", "head.bias")
CLIP_HEAD = "cls_head."  # of released models of clips, see video.py
DENSE_HEADS = (  # of a dense task, see dense.py
    "stage_norms.",
    "decode_head.",
    "auxiliary_head.",
    "neck.",
    "rpn_head.",
    "roi_head.bbox_head.",
    "roi_head.mask_head.",
)


def part_of(name: str) -> Part:
    """The part that a tensor of ours belongs to."""
    return "head" if name in HEAD or name.startswith(DENSE_HEADS) else "backbone"


def keep_others(
    converted: ConvertedStateDict, shapes: Mapping[str, list[int]], parts: Sequence[Part]
) -> set[str]:
    """Drop the tensors of the parts that are not loaded. Returns the model's own, which stay as they are.

    Args:
        converted: the weights; changed in place.
        shapes: of the model's tensors, by global name.
        parts: that are loaded.

    Raises:
        WeightsError: the model has none of the parts.
    """
    if not any(part_of(name) in parts for name in shapes):
        raise WeightsError(f"parts ({list(parts)}): the model has no classifier; load its backbone")
    for name in [name for name in converted.tensors if part_of(name) not in parts]:
        converted.drop(name, f"parts leaves out the {part_of(name)}")
    return {name for name in shapes if part_of(name) not in parts}
