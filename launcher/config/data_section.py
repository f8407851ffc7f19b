"""DataConfig: the images of a run. Part of schema.py.

No `from __future__ import annotations` here: pydantic resolves the types when it validates.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from data_shards.augment.options import AugmentConfig
from data_shards.errors import DataError
from data_shards.format.tar_names import names_tars
from data_shards.order.sets import TrainSet, mixture
from parallel.ranges import WEEK_S, check_ranges

SET_NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")
RESERVED = ("ema",)  # of the records of moving averages


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the images are, and the picture that the model sees."""

    # directory of shards with a manifest.json (`swin-moe shards pack` writes it), or its URL: docs/shards.md;
    # tars of others without one, such as /data/x/{000000..000146}.tar; or several sets, each with its weight
    train: str | dict[str, TrainSet]
    # shards with a manifest.json, or their URL; or several by name, all evaluated, of which the first is what
    # runs are compared by; null: training without evaluation
    val: str | dict[str, str] | None
    # map labels of data.val, and of the training sets after the first, by name to the classes that are
    # trained: docs/shards.md
    match_classes: bool = False
    crop_scale: tuple[float, float] = (0.08, 1.0)  # area of the random resized crop, as a share of the image
    # width over height of that crop in the source image, as in torchvision; model.image_size does not matter
    crop_ratio: tuple[float, float] = (0.75, 1.3333333333333333)
    flip_probability: float = 0.5  # of mirroring left to right, in training
    # at evaluation an image is scaled until it covers model.image_size / eval_crop and its centre is cut out;
    # 1.0 resizes the whole image, changing its aspect ratio
    eval_crop: float = 0.875
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # red, green, blue in 0 ... 1; subtracted
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)  # red, green, blue in 0 ... 1; divides the rest
    augment: AugmentConfig | None = None  # on the device, in training; {} is Swin's recipe
    decode_threads: int = 2  # of a rank
    fetch_threads: int = 0  # of a rank, for slow storage; 0 lets the decode threads read
    bad_samples: Literal["replace", "stop"] = "replace"  # in training: by the next healthy sample, or stop
    retry_s: float = 300.0  # reading is tried again for so long after an I/O error
    cache: str | None = None  # directory on a node-local disk for whole shards, for example $SLURM_TMPDIR
    cache_gib: float = 0.0  # the most that all ranks of a node put into data.cache

    def __post_init__(self) -> None:
        check_ranges(
            "data.",
            self,
            crop_scale=(0, 1),
            crop_ratio=(0.01, 100),
            decode_threads=(1, 256),
            fetch_threads=(0, 1024),
            flip_probability=(0, 1),
            eval_crop=(0.1, 1),
            mean=(0, 1),
            std=(1e-3, 1e3),
            retry_s=(1, WEEK_S),
            cache_gib=(0, 2**20),
        )
        self._check_sets()
        if (self.cache is None) != (self.cache_gib == 0):
            raise ValueError(
                f"data.cache ({self.cache}) and data.cache_gib ({self.cache_gib}) belong together: set both"
            )
        for name in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"data.{name} ([{low}, {high}]) must be two numbers, 0 < low <= high")

    @property
    def train_places(self) -> dict[str, str]:
        """The training sets by what messages call their options."""
        if isinstance(self.train, str):
            return {"data.train": self.train}
        return {f"data.train.{name}": one.path for name, one in self.train.items()}

    @property
    def val_places(self) -> dict[str, str]:
        """The validation sets by what messages call their options, the first one first; none without any."""
        if self.val is None:
            return {}
        if isinstance(self.val, str):
            return {"data.val": self.val}
        return {f"data.val.{name}": place for name, place in self.val.items()}

    @property
    def trains_on_tars(self) -> bool:
        """Whether data.train is tars without a manifest."""
        return isinstance(self.train, str) and names_tars(self.train)

    def _check_sets(self) -> None:
        """Names and weights of sets, and where tars without a manifest may be read."""
        for option, sets in {"data.train": self.train, "data.val": self.val}.items():
            if isinstance(sets, dict):
                _check_names(option, sets)
        if not isinstance(self.train, str):
            try:
                mixture(self.train, [1] * len(self.train))
            except DataError as error:
                raise ValueError(f"data.train.{error}") from None
        exact = "evaluation counts every image once"
        reasons = dict.fromkeys(self.val_places, exact)
        if not self.trains_on_tars:
            reasons |= dict.fromkeys(self.train_places, "a mixture has exact shares of its sets")
        for option, place in {**self.train_places, **self.val_places}.items():
            if option in reasons and names_tars(place):
                raise ValueError(
                    f"{option} ({place}) must be shards with a manifest, as {reasons[option]}; "
                    "`swin-moe shards index` writes it"
                )


def _check_names(option: str, sets: Mapping[str, object]) -> None:
    """Names of sets are parts of the names of metrics, of options and of files."""
    if not sets:
        raise ValueError(f"{option} ({{}}) must name at least one set")
    for name in sets:
        if not SET_NAME.fullmatch(name) or name in RESERVED:
            reserved = f", and not {' or '.join(RESERVED)}"
            raise ValueError(
                f"{option} ({name!r}): a set's name has letters, digits, - and _ alone{reserved}"
            )
