"""What a dense task has around its backbone: norms of the stages' maps, and heads of convolutions.

Our names of them are those of `heads/upernet.py` and `detection/detector.py`; the heads' are the released
ones but for the batch norms' counters, which nothing reads.

Legend: K classes.
"""

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from swin_moe.weights.adapt import ClassMap, Head, pick_classes
from swin_moe.weights.converted import ConvertedStateDict
from swin_moe.weights.errors import WeightsError
from swin_moe.weights.parts import DENSE_HEADS

NORMS, *HEADS = DENSE_HEADS
WHAT = dict(
    zip(
        DENSE_HEADS,
        (
            "stage norms",
            "decode head",
            "auxiliary head",
            "feature pyramid",
            "proposal network",
            "box head",
            "mask head",
        ),
        strict=True,
    )
)
# the last layers of heads: of K rows, but for K + 1 of `fc_cls`, and 4 K of `fc_reg`
CLASSIFIERS = ("conv_seg", "fc_cls", "fc_reg", "conv_logits")
COUNTER = "num_batches_tracked"


def prefix_of(name: str) -> str | None:
    """Which of DENSE_HEADS a tensor of ours has before its name."""
    return next((prefix for prefix in DENSE_HEADS if name.startswith(prefix)), None)


def put_head(result: ConvertedStateDict, ours: str, theirs: str, tensor: Tensor) -> None:
    """Add a tensor of a head under our name."""
    if ours.endswith(f".{COUNTER}"):
        result.dropped[theirs] = "a counter of training steps"
    else:
        result.put(ours, theirs, tensor)


def adapt_heads(
    converted: ConvertedStateDict, shapes: Mapping[str, list[int]], head: Head, option: str
) -> tuple[list[str], set[str]]:
    """Drop the heads that a model lacks, and fit the classifiers of those that it has by `head`.

    Args:
        converted: the weights; changed in place.
        shapes: of the model's tensors by our name.
        head: see `LoadOptions`.
        option: what messages call it.

    Returns:
        What was done, and the tensors of the model that stay as they are: heads that the weights lack, and
        classifiers that are replaced.

    Raises:
        WeightsError: the classes are others, or a class map does not fit.
    """
    changes: list[str] = []
    kept: set[str] = set()
    for prefix, what in WHAT.items():
        ours, theirs = _starting(shapes, prefix), _starting(converted.tensors, prefix)
        if not ours or prefix == NORMS:
            for name in theirs - ours:
                converted.drop(name, f"the {what}, and the model has none" if not ours else _norm(name))
        if not theirs:
            kept |= ours
        if ours and theirs and prefix != NORMS:
            stays, said = _adapt_classifier(converted, shapes, prefix, head, option)
            kept |= stays
            changes += said
    if isinstance(head, ClassMap) and any(map(prefix_of, shapes)) and not changes:
        raise WeightsError(f"{head.name} picks classes, and the weights have no classifier: leave it out")
    return changes, kept


def _starting(names: Iterable[str], prefix: str) -> set[str]:
    return {name for name in names if name.startswith(prefix)}


def _norm(name: str) -> str:
    stage = name.removeprefix(NORMS).partition(".")[0]
    return f"the norm of stage {stage}, whose map the model does not read"


def _adapt_classifier(
    converted: ConvertedStateDict, shapes: Mapping[str, list[int]], prefix: str, head: Head, option: str
) -> tuple[set[str], list[str]]:
    """The tensors of a head's classifier that stay, and what was done."""
    names = {
        name for name in _starting(converted.tensors, prefix) & set(shapes) if _layer(name) in CLASSIFIERS
    }
    if not names:
        return set(), []
    first = min(names)
    ours, theirs = (_classes(first, rows) for rows in (shapes[first][0], len(converted.tensors[first])))
    if head == "replace":
        for name in names:
            converted.drop(name, "the classifier is replaced")
        said = f"classifier of the {WHAT[prefix]}: the model's own of {ours} classes stays, that of {theirs}"
        return names, [f"{said} classes is not used"]
    if isinstance(head, ClassMap):
        picked = pick_classes(converted, names, head, theirs, ours, _rows)
        return set(), [f"{WHAT[prefix]}: {picked}"]
    if ours != theirs:
        raise WeightsError(
            f"the {WHAT[prefix]} of the weights has {theirs} classes, model.num_classes is {ours}; for a new "
            f"classifier: {option}=replace; to pick classes: {option}=FILE, a class map"
        )
    return set(), []


def _layer(name: str) -> str:
    """The module that a tensor is of, without those around it."""
    return name.rpartition(".")[0].rpartition(".")[2]


def _classes(name: str, rows: int) -> int:
    """K of a classifier with so many rows."""
    return {"fc_cls": rows - 1, "fc_reg": rows // 4}.get(_layer(name), rows)


def _rows(name: str, classes: Sequence[int], known: int) -> list[int]:
    """The rows of a classifier that are of some of its `known` classes; the background's is the last."""
    layer = _layer(name)
    if layer == "fc_reg":
        return [4 * row + offset for row in classes for offset in range(4)]
    return [*classes, known] if layer == "fc_cls" else [*classes]
