"""The sets of files that an official Swin-MoE run of R ranks leaves, as one set of tensors.

    NAME.pth.rank0 ... NAME.pth.rank{R-1}   experts of each rank; in each epoch's save the dense weights too
    NAME.pth.master                         the dense weights, where the rank files are experts only
    NAME.pth.global                         one file: what rank 0 held

E experts lie on R ranks as E / R each or, with NUM_LOCAL_EXPERTS = -n, as one n-th of the hidden units of an
expert each: ranks e * n to e * n + n - 1 have expert e.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from swin_moe.weights.errors import WeightsError, some
from swin_moe.weights.files import Content, read_file
from swin_moe.weights.official import EXPERTS

SUFFIX = re.compile(r"\.(rank\d+|master)$")


def base_of(path: Path) -> Path | None:
    """NAME.pth, if the path is of a set of rank files: one of them, or what they are all named after."""
    base = path.with_name(SUFFIX.sub("", path.name))
    if (base != path or not path.exists()) and any(_numbered(base)):
        return base
    return None


def read_ranks(base: Path) -> Content:
    """All rank files of a set, and the master if there is one, merged.

    Raises:
        WeightsError: a file is missing or of another set.
    """
    ranks = rank_files(base)
    master = base.with_name(f"{base.name}.master")
    dense = [_dense(content) for content in ranks]
    if master.is_file():
        dense.insert(0, read_file(master).tensors)
    if not _weights(dense[0]):
        raise WeightsError(f"{master} is missing: the rank files hold experts only")
    notices = [f"merged {len(ranks)} rank files{' and their master' if master.is_file() else ''}"]
    return Content(
        tensors=merge(base, dense[0], [content.tensors for content in ranks]),
        beside=dict.fromkeys(sorted({name for content in ranks for name in content.beside})),
        notices=notices + _drift(dense),
    )


def rank_files(base: Path) -> list[Content]:
    """The files of all ranks, in order.

    Raises:
        WeightsError: one is missing.
    """
    numbered = _numbered(base)
    missing = [f"{base.name}.rank{r}" for r in range(max(numbered)) if r not in numbered]
    if missing:
        raise WeightsError(f"{base.parent}: {some(missing)} missing beside {numbered[max(numbered)].name}")
    return [read_file(numbered[r]) for r in sorted(numbered)]


def merge(base: Path, dense: dict[str, Tensor], ranks: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Dense tensors and every rank's part of the experts, as one set; of weights, or of moments alike."""
    parts = [{name: tensor for name, tensor in rank.items() if EXPERTS in name} for rank in ranks]
    if any(part.keys() != parts[0].keys() for part in parts):
        other = next(r for r, part in enumerate(parts) if part.keys() != parts[0].keys())
        raise WeightsError(f"{base.name}.rank{other} has other experts' tensors than {base.name}.rank0")
    layers = {name.partition(EXPERTS)[0]: _num_experts(name, dense) for name in parts[0]}
    return dense | {
        name: _merge(base, name, [part[name] for part in parts], parts, layers[name.partition(EXPERTS)[0]])
        for name in parts[0]
    }


def _numbered(base: Path) -> dict[int, Path]:
    pattern = re.compile(re.escape(base.name) + r"\.rank(\d+)")
    paths = base.parent.iterdir() if base.parent.is_dir() else []
    return {int(match[1]): path for path in paths if (match := pattern.fullmatch(path.name))}


def _dense(content: Content) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in content.tensors.items() if EXPERTS not in name}


def _weights(tensors: dict[str, Tensor]) -> bool:
    return "patch_embed.proj.weight" in tensors


def _num_experts(name: str, dense: dict[str, Tensor]) -> int:
    """What the router of an expert's layer says."""
    gates = name.partition("experts.")[0] + "gates.0."
    for leaf, dim in (("wg.weight", 0), ("sim_matrix", 1)):
        if gates + leaf in dense:
            return dense[gates + leaf].shape[dim]
    raise WeightsError(f"{gates}wg.weight is missing: nothing says how many experts there are")


def _merge(
    base: Path, name: str, pieces: list[Tensor], parts: Sequence[dict[str, Tensor]], num_experts: int
) -> Tensor:
    """One tensor of all experts from every rank's piece of it."""
    if sum(len(piece) for piece in pieces) == num_experts:
        return torch.cat(pieces)
    per_expert, rest = divmod(len(pieces), num_experts)
    if rest or per_expert == 0 or any(len(piece) != 1 for piece in pieces):
        raise _missing_ranks(base, name, len(pieces), num_experts)
    width = parts[0][name.replace("fc2_bias", "fc2_w")].shape[-1] if name.endswith("fc2_bias") else None
    experts = []
    for start in range(0, len(pieces), per_expert):
        own = pieces[start : start + per_expert]
        if name.endswith("_w"):
            experts.append(torch.cat(own, dim=1))  # (1, H, C)
        else:
            bias = torch.cat([piece.reshape(1, -1) for piece in own], dim=1)
            if width is not None and bias.shape[1] < width:
                raise _missing_ranks(base, name, len(pieces), num_experts)
            experts.append(bias[:, :width])  # a bias over C that n does not divide is padded
    return torch.cat(experts)


def _missing_ranks(base: Path, name: str, ranks: int, num_experts: int) -> WeightsError:
    return WeightsError(
        f"{base.parent}: {ranks} rank files ({base.name}.rank0 ... .rank{ranks - 1}) do not make up the "
        f"{num_experts} experts of {name}; the last ones are missing, or there are too many"
    )


def _drift(copies: Sequence[dict[str, Tensor]]) -> list[str]:
    """What to say of ranks whose dense weights have drifted apart, a known fault of the reference."""
    first, differing, largest = copies[0], 0, 0.0
    for copy in copies[1:]:
        shared = [n for n in copy if n in first and copy[n].is_floating_point() and "attn_mask" not in n]
        gaps = [(copy[n].float() - first[n].float()).abs().max().item() for n in shared if copy[n].numel()]
        largest, differing = max([largest, *gaps]), differing + any(gaps)
    if not differing:
        return []
    return [
        f"the dense weights of {differing} files differ from those used, by up to {largest:.2g}: the run's "
        "replicas had drifted apart"
    ]
