"""Which of a file's tensors are the Swin's, and what wrappers put before their names.

A wrapper's prefix is removed and reported. Tensors beside those of the Swin, such as a detector's neck, are
left out by name; a classifier or the heads of a segmentation model beside a backbone stay, and so does that
of a model of clips. `encoder.` stays
where it is SimMIM's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from swin_moe.weights.converted import PATCHES
from swin_moe.weights.errors import WeightsError, some
from swin_moe.weights.parts import CLIP_HEAD, DENSE_HEADS

ANYWHERE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")  # of torch's own wrappers
WRAPPERS = ("module", "model", "backbone", "net", "network", "base_model", "swin_transformer")
AVERAGES = ("ema", "model_ema", "ema_model", "module_ema")
KEPT = ("encoder.", "swin.", "swinv2.")  # SimMIM's and Hugging Face's own
ENTRIES = (
    "patch_embed.proj.weight",
    "patch_embed.projection.weight",
    "embeddings.patch_embeddings.projection.weight",
)
BACKBONE = "backbone."  # of a dense task, beside which its heads are


@dataclass(kw_only=True)
class Named:
    """The tensors of a Swin."""

    tensors: dict[str, Tensor]
    dropped: dict[str, str] = field(default_factory=dict)  # why each of the others is not used
    notices: list[str] = field(default_factory=list)


def without_prefixes(tensors: Mapping[str, Tensor], *, ema: bool = False) -> Named:
    """The tensors of the Swin in a state dict, by the names that they have without wrappers.

    Args:
        tensors: by name; of part of a model too, such as one rank's experts.
        ema: of a model and its moving average in one state dict, take the average.

    Raises:
        WeightsError: there are several Swins, no moving average, or two tensors of one name.
    """
    bare = {_unwrapped(name): tensor for name, tensor in tensors.items()}
    if len(bare) != len(tensors):
        raise WeightsError(f"some tensors have one name without {', '.join(ANYWHERE)}: {some([*tensors])}")
    prefix, others = _prefixes(bare, ema=ema)
    around = prefix.removesuffix(BACKBONE)
    is_video = prefix + PATCHES in bare and bare[prefix + PATCHES].dim() == 5
    kept = (*DENSE_HEADS, CLIP_HEAD) if is_video else DENSE_HEADS
    heads = tuple(around + head for head in kept) if prefix.endswith(BACKBONE) else ()
    named = Named(tensors={})
    for name, tensor in bare.items():
        if name.startswith(prefix) and not name.startswith(others):
            named.tensors[name.removeprefix(prefix)] = tensor
        elif name.startswith(heads):
            named.tensors[name.removeprefix(around)] = tensor
        elif name.startswith("head.") and prefix + name not in bare:
            named.tensors[name] = tensor
        else:
            named.dropped[name] = f"outside of {prefix}*" if prefix else "the moving average"
    if prefix:
        named.notices.append(f"the prefix {prefix} of the names was removed")
    return named


def _unwrapped(name: str) -> str:
    for wrapper in ANYWHERE:
        name = name.replace(wrapper, "")
    return name


def _prefixes(names: Mapping[str, Tensor], *, ema: bool) -> tuple[str, tuple[str, ...]]:
    """What stands before the names of the Swin to take, and before those of others in the same state dict."""
    ends = [name.removesuffix(entry) for name in names for entry in ENTRIES if _ends(name, entry)]
    prefixes = sorted({_removable(end) for end in ends if _is_known(end) or _all_start(names, end)})
    averages = [prefix for prefix in prefixes if set(prefix.split(".")) & set(AVERAGES)]
    plain = [prefix for prefix in prefixes if prefix not in averages]
    if ema and not averages:
        raise WeightsError("it holds no moving average of the weights")
    chosen = averages if ema or not plain else plain
    if len(chosen) > 1:
        raise WeightsError(f"it holds several Swins, under {', '.join(chosen)}: save the one to load alone")
    if chosen:
        return chosen[0], tuple(prefix for prefix in averages if prefix not in chosen)
    return "module." if names and _all_start(names, "module.") else "", ()


def _ends(name: str, entry: str) -> bool:
    return name == entry or name.endswith(f".{entry}")


def _removable(end: str) -> str:
    """`module.encoder.` -> `module.`: what stands before a prefix that the format itself has."""
    kept = next((own for own in KEPT if (end == own or end.endswith(f".{own}"))), "")
    return end.removesuffix(kept)


def _is_known(end: str) -> bool:
    parts = _removable(end).split(".")[:-1]
    return all(part in (*WRAPPERS, *AVERAGES, "student", "teacher") for part in parts)


def _all_start(names: Mapping[str, Tensor], prefix: str) -> bool:
    return all(name.startswith(prefix) for name in names)
