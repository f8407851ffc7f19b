"""Which checkpoint to go on from: the one that `latest` names, or, where that is damaged, the one before.

Nothing damaged is touched; a run that comes to such a step again replaces it as any other.
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
    """A checkpoint whose files are whole, and what was passed over or noticed on the way to it."""

    path: Path
    manifest: dict[str, Any]
    notices: list[str]  # a line each, for a person


def latest_intact(directory: Path) -> IntactCheckpoint | None:
    """The newest checkpoint that is whole, or None where there never was one; every rank calls it together.

    After the one that `latest` names come those of earlier steps. Where `latest` is missing or damaged, all
    count.

    Raises:
        CheckpointError: none is whole; the message gives the reason for each.
    """
    ((candidates, notices), *_) = on_all_ranks(lambda: _candidates(directory), f"look into {directory}")
    passed_over: list[str] = []
    for path in candidates:
        try:
            manifest = read_verified(path)
        except CheckpointError as error:
            passed_over.append(f"{path.name} is damaged: {_reason(error, path)}")
            continue
        passed = [f"{text}; it stays where it is, {path.name} takes its place" for text in passed_over]
        return IntactCheckpoint(path=path, manifest=manifest, notices=[*notices, *passed])
    if not candidates and not notices:
        return None
    raise CheckpointError(
        f"{directory} holds no checkpoint that is whole: {'; '.join([*notices, *passed_over])}. Bring one "
        "back from a copy, write the name of a later one into `latest`, or choose another run_dir"
    )


def _candidates(directory: Path) -> tuple[list[Path], list[str]]:
    """Checkpoints in the order in which they are tried, and what is odd about that order."""
    paths = committed(directory)[::-1]
    try:
        pointed = latest(directory)
    except CheckpointError as error:
        return paths, [f"{error}; taking the newest that is whole"]
    if pointed is None:
        odd = [f"{directory / 'latest'} is missing; taking the newest that is whole"] if paths else []
        return paths, odd
    later = [path.name for path in paths if step_of(path) > step_of(pointed)]
    odd = [f"`latest` names {pointed.name}, although {later[0]} is later"] if later else []
    return [path for path in paths if path.name not in later], odd


def _reason(error: CheckpointError, path: Path) -> str:
    """An error without what every one of them begins with."""
    text = str(error)
    for beginning in (f"could not read {path}: ", f"could not verify {path}: ", f"{path} ", f"{path}: "):
        text = text.removeprefix(beginning)
    return text
