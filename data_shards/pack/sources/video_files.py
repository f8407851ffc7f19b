"""Samples that are video files below one directory, each prepared by a recipe: of every source of videos."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data_shards.errors import DataError
from data_shards.format.fields import VIDEO_AND_LABEL
from data_shards.format.samples import BadSourceError, Samples, Source
from data_shards.pack.sources.file_samples import FileSamples, read_file
from data_shards.video.prepare import VideoRecipe, check_tools, prepare_video


@dataclass(frozen=True)
class VideoFiles:
    """The videos of `files`, and how each becomes what is packed."""

    files: FileSamples
    recipe: VideoRecipe

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Mapping[str, Any]:
        body = read_file(self.files.root, self.files.names[i])
        try:
            prepared = prepare_video(body, self.recipe)
        except DataError as error:
            raise BadSourceError(str(error)) from error
        return {**prepared.members(), "label": self.label(i)}

    def select(self, rows: np.ndarray) -> "VideoFiles":
        """The videos at `rows`."""
        return replace(self, files=self.files.select(rows))

    def describe(self, i: int) -> str:
        """The path below the directory."""
        return self.files.describe(i)

    def label(self, i: int) -> int:
        """The label of video i."""
        return self.files.label(i)

    def sizes(self) -> np.ndarray:
        """(N,) int64: bytes of the files, by `stat`; what is encoded again comes out smaller."""
        return self.files.sizes()

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of paths and labels; the recipe is in the description of the source."""
        return self.files.digest


def video_source(
    name: str,
    classes: Sequence[str],
    splits: Mapping[str, FileSamples],
    recipe: VideoRecipe,
    notes: Sequence[str] = (),
) -> Source:
    """The source of the videos of some splits; DataError where PyAV, or the encoder, is not there."""
    check_tools(recipe)
    samples: dict[str, Samples] = {split: VideoFiles(files, recipe) for split, files in splits.items()}
    return Source(name, f"videos, {recipe}", tuple(classes), samples, tuple(notes), VIDEO_AND_LABEL)


def missing_note(listed: str, files: FileSamples) -> list[str]:
    """A note where videos of a list are not there: how many, and the first of them."""
    missing = np.flatnonzero(files.sizes() == 0)
    if not len(missing):
        return []
    share, first = len(missing) / len(files), files.names[int(missing[0])]
    text = f"{listed}: {len(missing)} of {len(files)} videos are not there or empty, such as {first}"
    return [f"{text}; bad_sources.tsv will list all of them, --max-bad {share + 0.001:.3f} allows as many"]
