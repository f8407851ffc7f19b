"""The models of transformers that can be teachers, by the `model_type` of their config.json.

| model_type | released as | tokens before the patches | last norm |
|---|---|---|---|
| vit | ViT, DINO, DeiT without distillation | 1 | in the model |
| deit | DeiT with a distillation token | 2 | in the model |
| dinov2 | DINOv2 | 1 | in the model |
| clip, clip_vision_model | CLIP | 1 | `post_layernorm`, here of all tokens |
| swin, swinv2 | Swin, SwinV2 | 0 | in the model |

Wei et al. 2022 (arXiv:2205.14141) take the map after the last norm. transformers applies that of CLIP to the
class token alone; their code applies it to all tokens.

Legend: B images of h x w pixels, H x W tokens and C channels of the last map, K classes, S tokens before the
patches.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swin_moe.heads.distill_config import Grid
from swin_moe.teachers.source import TeacherSourceError, TeacherSpec, Wanted
from swin_moe.weights.errors import some


class FolderTeacher(nn.Module):
    """A model of transformers that gives its last map, or its logits.

    Args:
        model: of transformers.
        kind: of it.
        spec: what it takes and gives.
        wanted: the map, or the logits.
    """

    def __init__(self, model: nn.Module, kind: "FolderKind", spec: TeacherSpec, wanted: Wanted) -> None:
        super().__init__()
        self.model, self.kind, self.spec, self.wanted = model, kind, spec, wanted

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, h, w) -> the last map (B, H, W, C), or logits (B, K)."""
        dtype = next(self.model.parameters()).dtype
        for buffer in self.model.buffers():  # SwinV2 multiplies coordinates by weights
            if buffer.is_floating_point():
                buffer.data = buffer.data.to(dtype)
        images = images.to(dtype)
        output = self.model(images, **self.kind.arguments)
        if self.wanted == "logits":
            logits: Tensor = output.logits
            return logits
        tokens = output.last_hidden_state[:, self.kind.special :]
        if self.kind.norm:
            tokens = self.model.get_submodule(self.kind.norm)(tokens)
        tokens_in_rows: Tensor = tokens.unflatten(1, self.spec.grid)
        return tokens_in_rows


@dataclass(frozen=True, kw_only=True)
class FolderKind:
    """One kind of model of transformers."""

    config: str  # the class of its configuration
    model: str  # the class of its encoder
    classifiers: Sequence[str]  # the classes with a classifier, of which `architectures` names one
    special: int = 1  # S
    merges: bool = False  # stages halve the map, which rounds up
    norm: str = ""  # the norm that its last map lacks
    is_part: bool = False  # of a model with text, whose configuration it lies in
    arguments: Mapping[str, Any]  # of its forward pass
    options: Mapping[str, Any]  # of its encoder's constructor

    def grid(self, config: Any, sides: Grid) -> Grid:
        """H and W for images of these sides."""
        patch = config.patch_size if isinstance(config.patch_size, int) else config.patch_size[0]
        if self.merges:
            stride = patch * 2 ** (len(config.depths) - 1)
            return -(-sides[0] // stride), -(-sides[1] // stride)
        if any(side % patch for side in sides):
            raise TeacherSourceError(
                f"teacher.image_size ({list(sides)}) must be multiples of the teacher's patch ({patch})"
            )
        return sides[0] // patch, sides[1] // patch

    def on_meta(self, config: Any, wanted: Wanted, spec: TeacherSpec) -> nn.Module:
        """The model of shapes alone."""
        with torch.device("meta"):
            return FolderTeacher(
                self._class(config, wanted)(config, **self._options(wanted)), self, spec, wanted
            )

    def load(
        self,
        path: Path,
        config: Any,
        wanted: Wanted,
        spec: TeacherSpec,
        tensors: Mapping[str, Tensor] | None = None,
    ) -> nn.Module:
        """The model with the weights of a folder, fp32 on the host.

        Args:
            path: of the folder.
            config: of its model.
            wanted: its map or its logits.
            spec: what it takes and gives.
            tensors: instead of those in the files of the folder.

        Raises:
            TeacherSourceError: they are damaged or incomplete.
        """
        try:
            with _quiet():
                model, info = self._class(config, wanted).from_pretrained(
                    None if tensors is not None else str(path),
                    config=config,
                    state_dict=tensors,
                    local_files_only=True,
                    trust_remote_code=False,
                    use_safetensors=True,
                    ignore_mismatched_sizes=True,  # told below: transformers names them in its log alone
                    output_loading_info=True,
                    dtype=torch.float32,
                    **self._options(wanted),
                )
        except Exception as error:  # of a damaged file transformers raises whatever it meets
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise TeacherSourceError(f"{path}: its weights cannot be loaded: {reason}") from error
        if missing := sorted(info["missing_keys"]):
            raise TeacherSourceError(
                f"{path}: {len(missing)} tensors of {type(model).__name__} are missing ({some(missing)})"
            )
        if others := sorted(info["mismatched_keys"]):
            name, stored, expected = others[0]
            raise TeacherSourceError(
                f"{path}: {len(others)} tensors have other shapes than config.json gives them ({name}: "
                f"{list(stored)}, not {list(expected)}); take both files from one model"
            )
        if more := _more_layers(model, info["unexpected_keys"]):
            raise TeacherSourceError(
                f"{path}: config.json describes fewer layers than the weights have: {len(more)} tensors "
                f"would be left out ({some(more)}); take both files from one model"
            )
        return FolderTeacher(model, self, spec, wanted)

    def _class(self, config: Any, wanted: Wanted) -> Any:
        name = self.model
        if wanted == "logits":
            written = getattr(config, "architectures", None) or []
            known = [one for one in written if one in self.classifiers]
            if not known:
                known_here = " or ".join(self.classifiers) or "none of this kind"
                raise TeacherSourceError(
                    f"the teacher is a {' and '.join(written) or self.model}; soft targets need a "
                    f"classifier: {known_here}"
                )
            name = known[0]
        return getattr(import_module("transformers"), name)

    def _options(self, wanted: Wanted) -> Mapping[str, Any]:
        return {} if wanted == "logits" else self.options


def _more_layers(model: Any, unexpected: Iterable[str]) -> list[str]:
    """Tensors of a file that belong to a list of layers of the model, behind its last one.

    Others that the model does not have are of heads, of a decoder or of a model of text.
    """
    lists = [f"{name}." for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    starts = (*lists, *(f"{model.base_model_prefix}.{name}" for name in lists))
    return sorted(name for name in unexpected if name.startswith(starts))


@contextmanager
def _quiet() -> Iterator[None]:
    """Within it, transformers shows neither a progress bar nor the tensors that it leaves out."""
    logging = import_module("transformers").utils.logging
    level, shows_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shows_bars:
            logging.enable_progress_bar()


RESIZED = {"interpolate_pos_encoding": True}
NO_POOLER = {"add_pooling_layer": False}

VIT = FolderKind(
    config="ViTConfig",
    model="ViTModel",
    classifiers=("ViTForImageClassification",),
    arguments=RESIZED,
    options=NO_POOLER,
)
DEIT = FolderKind(
    config="DeiTConfig",
    model="DeiTModel",
    classifiers=("DeiTForImageClassificationWithTeacher", "DeiTForImageClassification"),
    special=2,
    arguments=RESIZED,
    options=NO_POOLER,
)
DINOV2 = FolderKind(
    config="Dinov2Config",
    model="Dinov2Model",
    classifiers=("Dinov2ForImageClassification",),
    arguments={},  # it always interpolates
    options={},
)
SWIN = FolderKind(
    config="SwinConfig",
    model="SwinModel",
    classifiers=("SwinForImageClassification",),
    special=0,
    merges=True,
    arguments={},
    options=NO_POOLER,
)
SWINV2 = FolderKind(
    config="Swinv2Config",
    model="Swinv2Model",
    classifiers=("Swinv2ForImageClassification",),
    special=0,
    merges=True,
    arguments={},
    options=NO_POOLER,
)
CLIP = FolderKind(
    config="CLIPConfig",
    model="CLIPVisionModel",
    classifiers=(),
    norm="post_layernorm",
    is_part=True,
    arguments=RESIZED,
    options={},
)
CLIP_VISION = FolderKind(
    config="CLIPVisionConfig",
    model="CLIPVisionModel",
    classifiers=(),
    norm="post_layernorm",
    arguments=RESIZED,
    options={},
)
KINDS: Mapping[str, FolderKind] = {
    "vit": VIT,
    "deit": DEIT,
    "dinov2": DINOV2,
    "swin": SWIN,
    "swinv2": SWINV2,
    "clip": CLIP,
    "clip_vision_model": CLIP_VISION,
}
