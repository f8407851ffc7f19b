"""The names of microsoft/Swin-Transformer (Swin, SwinV2, Swin-MLP, Swin-MoE), of pre-training and of timm.

timm's are the official ones, but that its later versions have the merging at the start of a stage, as here,
and the classifier as `head.fc`. The first releases of SwinV2, and FD, call the network of the position bias
`rpe_mlp`; FD may share it among the blocks of a stage. What SimMIM, MoBY and FD save beside the Swin is in
pretraining.py.

Legend: E experts, H hidden, C channels.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from swin_moe.config import ModelConfig
from swin_moe.weights.converted import PATCHES, ConvertedStateDict, indexed_window, learned_window
from swin_moe.weights.dense import put_head
from swin_moe.weights.errors import WeightsError
from swin_moe.weights.parts import DENSE_HEADS
from swin_moe.weights.pretraining import ENCODER, method_of, reason_beside, refuse_vit

BLOCK = {  # official -> ours, below layers.I.blocks.J
    **{f"norm{i}.{leaf}": f"norm{i}.{leaf}" for i in (1, 2) for leaf in ("weight", "bias")},
    **{f"attn.qkv.{leaf}": f"attention.qkv.{leaf}" for leaf in ("weight", "bias")},
    **{f"attn.proj.{leaf}": f"attention.proj.{leaf}" for leaf in ("weight", "bias")},
    **{f"attn.{leaf}": f"attention.{leaf}" for leaf in ("q_bias", "v_bias", "logit_scale")},
    **{
        f"attn.{leaf}": f"attention.position_bias.{leaf}"
        for leaf in (
            "relative_position_bias_table",
            "cpb_mlp.0.weight",
            "cpb_mlp.0.bias",
            "cpb_mlp.2.weight",
        )
    },
    **{f"spatial_mlp.{leaf}": f"attention.spatial_mlp.{leaf}" for leaf in ("weight", "bias")},
    **{f"mlp.fc{i}.{leaf}": f"mlp.fc{i}.{leaf}" for i in (1, 2) for leaf in ("weight", "bias")},
    "mlp._moe_layer.gates.0.wg.weight": "mlp.router.weight",
    "mlp._moe_layer.gates.0.cosine_projector.weight": "mlp.router.cosine_projector.weight",
    "mlp._moe_layer.gates.0.cosine_projector.bias": "mlp.router.cosine_projector.bias",
    "mlp._moe_layer.gates.0.sim_matrix": "mlp.router.sim_matrix",
    "mlp._moe_layer.gates.0.temperature": "mlp.router.temperature",
}
TOP = {
    f"{name}.{leaf}": f"{name}.{leaf}"
    for name in ("patch_embed.proj", "patch_embed.norm", "norm", "head")
    for leaf in ("weight", "bias")
} | {"mask_token": "mask_token"}
MERGE = ("norm.weight", "norm.bias", "reduction.weight")
EXPERTS = "mlp._moe_layer.experts."  # of Tutel; batched_fc1_w is (E, H, C), our fc1_weight (C, H) an expert
EXPERT = {
    "batched_fc1_w": "fc1_weight",
    "batched_fc2_w": "fc2_weight",
    "batched_fc1_bias": "fc1_bias",
    "batched_fc2_bias": "fc2_bias",
}
BUFFERS = ("relative_position_index", "attn_mask", "relative_coords_table", "k_bias", "_num_global_experts")
SHARED = re.compile(r"(layers\.\d+)\.rel_pos_bias\.(.+)")  # of all blocks of a stage
ROUTERS = {"mlp.router.weight": 0, "mlp.router.sim_matrix": 1}  # and the dim along which experts stand


def convert(tensors: Mapping[str, Tensor]) -> ConvertedStateDict:
    """Official, SimMIM, MoBY, FD or timm names to ours; those of models of clips too, see video.py.

    Raises:
        WeightsError: the weights need what this version has not, or are one rank's part of a model.
    """
    refuse_vit(tensors)
    method = method_of(tensors)
    first = not method and _merges_first(tensors)
    last_norm = method or "norm.weight" in tensors  # a dense task has one norm a stage in its place
    timm = first or "head.fc.weight" in tensors
    result = ConvertedStateDict(format=method or ("timm" if timm else "official"))
    axes = 3 if PATCHES in tensors and tensors[PATCHES].dim() == 5 else 2
    for theirs, tensor in tensors.items():
        name = (theirs.removeprefix(ENCODER) if method else theirs).replace(".rpe_mlp.", ".cpb_mlp.")
        if beside := reason_beside(method, theirs):
            result.dropped[theirs] = beside
        elif name.rpartition(".")[2] in BUFFERS:
            result.dropped[theirs] = "a buffer, computed anew"
            _note_window(result, name, tensor, axes)
        elif (match := re.fullmatch(r"norm(\d+)\.(weight|bias)", name)) and not last_norm:
            result.put(f"stage_norms.{match[1]}.{match[2]}", theirs, tensor)
            result.padding = "visible"  # no dense models of another rule were released
        elif name.startswith(DENSE_HEADS):
            put_head(result, name, theirs, tensor)
        elif EXPERTS in name and _leaf(name) in EXPERT:
            _put_experts(result, name, theirs, tensor)
        elif match := SHARED.fullmatch(name):
            _put_shared(result, match, theirs, tensors)
        elif ours := _ours(name, merges_first=first):
            result.put(ours, theirs, tensor)
        else:
            result.unknown.append(theirs)
    _check_all_experts(result)
    return result


def export(tensors: Mapping[str, Tensor], config: ModelConfig, *, timm: bool = False) -> dict[str, Tensor]:
    """Ours to official or timm names; experts become Tutel's batched tensors."""
    block, top = ({ours: theirs for theirs, ours in names.items()} for names in (BLOCK, TOP))
    result: dict[str, Tensor] = {}
    experts: dict[str, list[Tensor]] = {}
    for ours, tensor in tensors.items():
        if match := re.fullmatch(r"(layers\.\d+\.blocks\.\d+)\.mlp\.experts\.(\d+)\.(\w+)", ours):
            batched = next(theirs for theirs, leaf in EXPERT.items() if leaf == match[3])
            piece = tensor.t() if match[3] == "fc1_weight" else tensor
            experts.setdefault(f"{match[1]}.{EXPERTS}{batched}", []).append(piece)
        elif match := re.fullmatch(r"layers\.(\d+)\.merge\.(.+)", ours):
            result[f"layers.{int(match[1]) - (not timm)}.downsample.{match[2]}"] = tensor
        elif (match := re.fullmatch(r"(layers\.\d+\.blocks\.\d+)\.(.+)", ours)) and match[2] in block:
            result[f"{match[1]}.{block[match[2]]}"] = tensor
        elif ours in top:
            result[ours.replace("head.", "head.fc.") if timm else ours] = tensor
        else:
            raise WeightsError(f"the {'timm' if timm else 'official'} format has no place for {ours}")
    for name, pieces in experts.items():
        result[name] = torch.stack(pieces)
        if name.endswith("batched_fc2_w") and not config.mlp_fc2_bias:  # Tutel has one always, frozen at 0
            bias = pieces[0].new_zeros(len(pieces), pieces[0].shape[-1])
            result[name.replace("fc2_w", "fc2_bias")] = bias
    return result


def _merges_first(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the merging stands at the start of its stage: then stage 0 has none, and a later one has."""
    stages = {match[1] for name in tensors if (match := re.match(r"layers\.(\d+)\.downsample\.", name))}
    return bool(stages) and "0" not in stages


def _ours(name: str, *, merges_first: bool) -> str | None:
    if match := re.fullmatch(r"(layers\.\d+\.blocks\.\d+)\.(.+)", name):
        return f"{match[1]}.{BLOCK[match[2]]}" if match[2] in BLOCK else None
    if (match := re.fullmatch(r"layers\.(\d+)\.downsample\.(.+)", name)) and match[2] in MERGE:
        return f"layers.{int(match[1]) + (not merges_first)}.merge.{match[2]}"
    return TOP.get(name.replace("head.fc.", "head."))


def _leaf(name: str) -> str:
    return name.partition(EXPERTS)[2]


def _put_experts(result: ConvertedStateDict, name: str, theirs: str, tensor: Tensor) -> None:
    """Tutel's tensor of all experts, apart: (E, H, C), or (E, H) and in old versions (E, 1, H)."""
    leaf, prefix = EXPERT[_leaf(name)], name.partition("_moe_layer")[0]
    for expert, piece in enumerate(tensor.unbind(0)):
        if leaf.endswith("bias"):
            piece = piece.reshape(-1)
        elif leaf == "fc1_weight":
            piece = piece.t()
        result.put(f"{prefix}experts.{expert}.{leaf}", f"{theirs}[{expert}]", piece)


def _put_shared(
    result: ConvertedStateDict, match: re.Match[str], theirs: str, tensors: Mapping[str, Tensor]
) -> None:
    """A tensor of the position bias of a stage: a copy for each of its blocks."""
    leaf, block_of = BLOCK.get(f"attn.{match[2]}"), re.compile(rf"(?:encoder\.)?({match[1]}\.blocks\.\d+)\.")
    blocks = {found[1] for name in tensors if (found := block_of.match(name))}
    if leaf is None or not blocks:
        result.unknown.append(theirs)
        return
    for block in blocks:
        result.put(f"{block}.{leaf}", theirs, tensors[theirs])


def _note_window(result: ConvertedStateDict, name: str, tensor: Tensor, axes: int) -> None:
    """What a buffer of a stage's first block, or of all of its blocks, says of its windows."""
    match = re.fullmatch(r"layers\.(\d+)\.(?:blocks\.0\.attn|rel_pos_bias)\.(\w+)", name)
    if match and match[2] == "relative_coords_table" and tensor.dim() == 4 and tensor.shape[3] == 2:
        window = learned_window(tensor)
        if any(window):
            result.windows[int(match[1])] = window
    elif match and match[2] == "relative_position_index" and tensor.dim() == 2 and len(tensor):
        result.table_windows[int(match[1])] = indexed_window(tensor, axes)


def _check_all_experts(result: ConvertedStateDict) -> None:
    for name, tensor in result.tensors.items():
        layer, router, leaf = name.partition("mlp.router.")
        if router + leaf not in ROUTERS:
            continue
        experts, known = f"{layer}mlp.experts.", tensor.shape[ROUTERS[router + leaf]]
        held = sum(other.startswith(experts) and other.endswith(".fc1_weight") for other in result.tensors)
        if held != known:
            raise WeightsError(
                f"it holds {held} experts in {layer}mlp, of {known} that its router knows: it is one rank's "
                "part; give NAME.pth with all of NAME.pth.rank0, .rank1 ... beside it"
            )
