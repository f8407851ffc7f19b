"""Which checkpoint to resume from: the one that `latest` names, or the one before if that is damaged.

Damaged checkpoints are not changed; a run that reaches such a step again replaces it like any other.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parallel.checkpoint.commit import committed, latest, step_of
from parallel.checkpoint.manifest import CheckpointError
from parallel.checkpoint.verify import read_verified
from parallel.checkpoint.write import on_all_ranks


@dataclass(frozen=True, kw_only=True)
class IntactCheckpoint:
    """A checkpoint whose files are intact, and notices on those that were skipped."""

    path: Path
    manifest: dict[str, Any]
    notices: list[str]  # a line each, for a person


def latest_intact(directory: Path) -> IntactCheckpoint | None:
    """Find the newest intact checkpoint; None if there never was one. Every rank calls it together.

    The one that `latest` names is tried first, then those of earlier steps. If `latest` is missing or
    damaged, all are tried.

    Raises:
        CheckpointError: none is intact; the message gives the reason for each.
    """
    ((candidates, notices), *_) = on_all_ranks(lambda: _candidates(directory), f"look into {directory}")
    skipped: list[str] = []
    for path in candidates:
        try:
            manifest = read_verified(path)
        except CheckpointError as error:
            skipped.append(f"{path.name} is damaged: {_reason(error, path)}")
            continue
        notes = [f"{text}; it stays where it is, {path.name} takes its place" for text in skipped]
        return IntactCheckpoint(path=path, manifest=manifest, notices=[*notices, *notes])
    if not candidates and not notices:
        return None
    raise CheckpointError(
        f"{directory} holds no intact checkpoint: {'; '.join([*notices, *skipped])}. Bring one "
        "back from a copy, write the name of a later one into `latest`, or choose another run_dir"
    )


def _candidates(directory: Path) -> tuple[list[Path], list[str]]:
    """Checkpoints in the order in which they are tried, and notices on that order."""
    paths = committed(directory)[::-1]
    try:
        pointed = latest(directory)
    except CheckpointError as error:
        return paths, [f"{error}; taking the newest intact one"]
    if pointed is None:
        notices = [f"{directory / 'latest'} is missing; taking the newest intact one"] if paths else []
        return paths, notices
    later = [path.name for path in paths if step_of(path) > step_of(pointed)]
    notices = [f"`latest` names {pointed.name}, although {later[0]} is later"] if later else []
    return [path for path in paths if path.name not in later], notices


def _reason(error: CheckpointError, path: Path) -> str:
    """The text of an error without its beginning, which all errors share."""
    text = str(error)
    for beginning in (f"could not read {path}: ", f"could not verify {path}: ", f"{path} ", f"{path}: "):
        text = text.removeprefix(beginning)
    return text
