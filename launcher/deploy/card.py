"""card.json: what an artifact is, how it runs, and what was checked before it got its name.

Legend: B images of h x w pixels, k choices and E experts of an MoE layer.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from launcher.deploy.options import DeviceType, TargetName
from parallel.zero.options import Precision
from swin_moe.config import ModelConfig
from swin_moe.errors import ModelError
from swin_moe.frozen.products import ExpertProducts
from swin_moe.options import from_tree, option_problems
from swin_moe.registry import load_model_config
from swin_moe.renamed import current_names
from swin_moe.text_files import read_text
from swin_moe.weights.input_spec import InputSpec

CARD = "card.json"
WRITER = "swin-moe artifact"
FORMAT = f"{WRITER} 1"


class ArtifactError(ModelError):
    """An artifact that cannot be made, is damaged, or does not run here."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The weights that an artifact holds."""

    source: str  # as the command named it
    checkpoint: str | None = None  # step-NNNNNNNN of a run
    step: int | None = None
    averaged: bool = False  # whether they are the moving average
    digest: str  # SHA-256 of the names and values of the weights in fp32


@dataclass(frozen=True, kw_only=True)
class ExpertsCard:
    """How the MoE layers of an artifact run."""

    products: ExpertProducts
    num_experts: int  # E
    top_k: int  # k
    cost: float  # products that are computed, over those that the choices of the tokens need: E / k if dense
    note: str


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """A file of the folder."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What the runtime of an artifact reproduced in a process of its own.

    `difference` is the largest one between a logit of the golden images and the eager model's, in batches of
    every size that was tried. The shares are of `images` images of `split`; None where none were judged.
    """

    difference: float
    bound: float
    batches: tuple[int, ...]
    split: str | None = None
    images: int = 0
    top1: float | None = None
    eager_top1: float | None = None
    agreement: float | None = None  # of the first choices of both


@dataclass(frozen=True, kw_only=True)
class Card:
    """What an artifact is."""

    format: str
    target: TargetName
    precision: Precision
    device: DeviceType
    batch: tuple[int, int]  # the fewest and the most images of a call of the program
    image_sides: tuple[int, int]  # h and w
    inputs: InputSpec
    model: dict[str, Any]  # the options of ModelConfig
    origin: Origin
    experts: ExpertsCard | None = None
    outputs: dict[str, str]  # what the program returns, in order: name and shape
    versions: dict[str, str]  # of the packages that made it
    machine: dict[str, str]  # for which it was compiled
    options: dict[str, Any] = field(default_factory=dict)  # of the target
    files: tuple[FileRecord, ...]
    checked: Checked | None = None  # None until the runtime has reproduced the golden images

    def __post_init__(self) -> None:
        if not 1 <= self.batch[0] <= self.batch[1]:
            raise ValueError(f"batch ({list(self.batch)}) must be 1 <= fewest <= most")
        if min(self.image_sides) < 1:
            raise ValueError(f"image_sides ({list(self.image_sides)}) must be at least 1")
        if not any(record.name.startswith("model.") for record in self.files):
            raise ValueError("files: the model is missing")
        for record in self.files:
            if record.name != Path(record.name).name:
                raise ValueError(f"files: {record.name!r} is no name of a file")

    def model_config(self) -> ModelConfig:
        """The model.

        Raises:
            ArtifactError: its options are damaged.
        """
        try:
            return load_model_config(ModelConfig(), **current_names(self.model, "model", notice=False))
        except ModelError as error:
            raise ArtifactError(f"{CARD} is damaged: model: {error}") from error

    @property
    def program(self) -> FileRecord:
        """The file that is run."""
        return next(record for record in self.files if record.name.startswith("model."))


def write_card(card: Card, folder: Path) -> None:
    """Write card.json into the folder of an artifact."""
    (folder / CARD).write_text(json.dumps(asdict(card), indent=1) + "\n")


def read_card(folder: Path) -> Card:
    """The card of an artifact.

    Raises:
        ArtifactError: the folder is no artifact, is damaged, or was written by another version.
    """
    try:
        tree = json.loads(read_text(folder / CARD))
    except FileNotFoundError:
        raise ArtifactError(f"{folder} is no artifact of `swin-moe deploy`: it has no {CARD}") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder / CARD} cannot be read: {error}") from error
    found = tree.get("format") if isinstance(tree, dict) else None
    if not isinstance(found, str) or not found.startswith(WRITER):
        raise ArtifactError(f'{folder / CARD} was not written by `swin-moe deploy`: it lacks "{WRITER} N"')
    if found != FORMAT:
        raise ArtifactError(
            f"{folder} has the format {found!r}; this version reads {FORMAT!r}: deploy the model again, or "
            "use the version of swin-moe that wrote it"
        )
    if problems := option_problems(Card, tree):
        raise ArtifactError(f"{folder / CARD} is damaged: {'; '.join(problems)}")
    return from_tree(Card, tree)


def record_files(folder: Path) -> tuple[FileRecord, ...]:
    """The names, sizes and digests of all files in a folder."""
    return tuple(
        FileRecord(name=path.name, size_bytes=path.stat().st_size, sha256=_sha256(path))
        for path in sorted(folder.iterdir())
    )


def check_files(card: Card, folder: Path) -> None:
    """That the files of an artifact are those that its card lists.

    Raises:
        ArtifactError: a file is missing or differs.
    """
    for record in card.files:
        path = folder / record.name
        try:
            size, digest = path.stat().st_size, _sha256(path)
        except OSError as error:
            raise ArtifactError(f"{path} cannot be read: {error.strerror}; copy the folder again") from error
        if (size, digest) != (record.size_bytes, record.sha256):
            raise ArtifactError(
                f"{path} is damaged: {size} bytes with the digest {digest[:8]}, where {CARD} has "
                f"{record.size_bytes} with {record.sha256[:8]}; copy the folder again"
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
