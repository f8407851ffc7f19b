"""What a study consists of, as it stands in STUDY/study.json: its trials, each a run directory of its own.

STUDY/study.json      the study as it was planned; its key "cells" has the trials
STUDY/cells/NAME/     the run directory of a trial: config.yaml, metrics.jsonl, summary.json, eval/ ...
STUDY/report/         what `study report` wrote
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from parallel.durable import atomic_write

FORMAT = "swin-moe study 1"


class StudyError(ValueError):
    """A study that cannot be read, run or reported on; the message names the option or the file."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of the grid."""

    name: str  # of its run directory, below STUDY/cells
    axes: dict[str, Any]  # dotted option -> the trial's value; what an axis says and a trial lacks is absent
    seed: int


@dataclass(frozen=True, kw_only=True)
class Study:
    """A planned study.

    `axes` are the options that vary, in the file's order, each with its values; `capacity_factors` and
    `top_k` are what every checkpoint is evaluated at (0 is dropless), empty for what it was trained at.
    """

    name: str
    axes: dict[str, list[Any]]
    trials: tuple[Trial, ...]
    capacity_factors: tuple[float, ...] = ()
    top_k: tuple[int, ...] = ()


def write_study(directory: Path, study: Study) -> None:
    """Write STUDY/study.json, whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    record = {"cells" if name == "trials" else name: value for name, value in asdict(study).items()}
    text = json.dumps({"format": FORMAT, **record}, indent=1) + "\n"
    atomic_write(directory / "study.json", text, sync="none")


def read_study(directory: Path) -> Study:
    """Read STUDY/study.json.

    Raises:
        StudyError: it is missing, or not of this format.
    """
    path = directory / "study.json"
    try:
        record = json.loads(path.read_text())
        if record.pop("format") != FORMAT:
            raise StudyError(f"{path} is not of the format {FORMAT!r}")
        record["trials"] = tuple(Trial(**trial) for trial in record.pop("cells"))
        for name in ("capacity_factors", "top_k"):
            record[name] = tuple(record[name])
        return Study(**record)
    except StudyError:
        raise
    except OSError as error:
        raise StudyError(f"{path}: {error.strerror}; `swin-moe study run FILE.yaml` writes it") from None
    except (ValueError, KeyError, TypeError) as error:
        raise StudyError(f"{path} cannot be read: {error}") from None


def run_directory(directory: Path, trial: Trial) -> Path:
    """The run directory of a trial."""
    return directory / "cells" / trial.name
