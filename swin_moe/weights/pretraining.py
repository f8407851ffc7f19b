"""What files of pre-training hold beside the Swin: other networks, projections and queues.

SimMIM, MoBY (SwinTransformer/Transformer-SSL) and FD (SwinTransformer/Feature-Distillation) call the Swin
`encoder.`; DINO and EsViT leave its names as they are. The names of what is beside it tell what it is.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from swin_moe.weights.errors import WeightsError, some

ENCODER = "encoder."
ENTRY = "encoder.patch_embed.proj.weight"
BESIDE = {  # by method; what it is
    "MoBY": {
        "encoder_k.": "the target network of MoBY",
        "projector.": "the projections of MoBY",
        "projector_k.": "the projections of MoBY",
        "predictor.": "the projections of MoBY",
        "queue": "the queues of MoBY",  # queue1, queue2, queue_ptr
    },
    "FD": {
        "feature_model.": "the teacher of the distillation",
        "decoder.": "the projection to the teacher's features",
    },
    "SimMIM": {"decoder.": "the decoder of the pre-training"},
}
MARKS = {"MoBY": ("encoder_k.", "predictor.", "queue_ptr"), "FD": ("feature_model.",)}
PROJECTIONS = ("head.mlp.", "head.last_layer.", "head_dense.")  # of DINO and EsViT, without a classifier
VIT = re.compile(r"(?:encoder\.)?blocks\.\d+\..+")  # a Swin has its blocks in `layers.`


def method_of(tensors: Mapping[str, Tensor]) -> str | None:
    """The method whose pre-training wrote tensors with an `encoder.`; None for others."""
    if ENTRY not in tensors:
        return None
    for method, marks in MARKS.items():
        if any(name.startswith(marks) for name in tensors):
            return method
    decoder = tensors.get("decoder.0.weight")  # of FD without its teacher: a Conv1d
    return "FD" if decoder is not None and decoder.dim() == 3 else "SimMIM"


def reason_beside(method: str | None, name: str) -> str | None:
    """What a tensor is that a method saves beside the Swin; None for those of the Swin."""
    if method is None:
        return "the projections of DINO or EsViT" if name.startswith(PROJECTIONS) else None
    return next((what for start, what in BESIDE[method].items() if name.startswith(start)), None)


def refuse_vit(names: Iterable[str]) -> None:
    """WeightsError for the names of a ViT, such as the students of FD whose teachers are ViTs."""
    if blocks := [name for name in names if VIT.fullmatch(name)]:
        raise WeightsError(
            f"it holds a ViT ({some(blocks)}), and the models here are Swins; of FD's released files that of "
            "EsViT is one"
        )
