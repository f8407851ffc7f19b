"""Slurm's forms of a time limit and of memory, without torch; sbatch(1), --time and --mem.

minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes, days-hours:minutes:seconds;
UNLIMITED, INFINITE, -1 and 0 are no limit.
"""

import math
import re

TIME_FORMS = "30, 30:00, 2:00:00, 3-12, 3-12:00, 3-12:00:00 or UNLIMITED"
UNLIMITED = ("UNLIMITED", "INFINITE", "-1")
_SHORT = re.compile(r"([0-9]{1,9})(?::([0-9]{1,9}))?(?::([0-9]{1,9}))?")
_DAYS = re.compile(r"([0-9]{1,9})-([0-9]{1,9})(?::([0-9]{1,9}))?(?::([0-9]{1,9}))?")
_MEMORY = re.compile(r"([0-9]{1,15})([KMGT]?)B?", re.IGNORECASE)


def seconds_of(text: str, *, alone_s: int = 60) -> float | None:
    """The seconds of a time; None where it has none of the forms above but the words.

    Args:
        text: such as `3-12:00:00`.
        alone_s: what a single number counts: minutes in limits, seconds where squeue prints what is left.
    """
    if match := _DAYS.fullmatch(text):
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60.0 + seconds
    if not (match := _SHORT.fullmatch(text)):
        return None
    first, second, third = match.groups()
    if second is None:
        return float(int(first) * alone_s)
    if third is None:
        return int(first) * 60.0 + int(second)
    return (int(first) * 60 + int(second)) * 60.0 + int(third)


def time_limit(value: str | int) -> str:
    """A time limit as `HH:MM:SS`, `D-HH:MM:SS` or `UNLIMITED`; a whole number of YAML is minutes.

    Raises:
        ValueError: it has none of Slurm's forms.
    """
    text = str(value).strip()
    limit_s = seconds_of(text)
    if text.upper() in UNLIMITED or limit_s == 0:
        return "UNLIMITED"
    if limit_s is None:
        raise ValueError(f"time ({value!r}) must be a time limit of Slurm: {TIME_FORMS}")
    return written(limit_s)


def limit_s(value: str | int | None) -> float:
    """The seconds of a normalised limit as Slurm keeps it, in whole minutes; infinite without one."""
    seconds = seconds_of(str(value))
    return math.inf if seconds is None else math.ceil(seconds / 60) * 60.0


def written(seconds: float) -> str:
    """90061 -> `1-01:01:01`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    clock = f"{hours:02d}:{minutes:02d}:{rest:02d}"
    return f"{days}-{clock}" if days else clock


def memory(value: str | int) -> str:
    """Memory of a node as a number with K, M, G or T; a number alone is megabytes, 0 all that a node has.

    Raises:
        ValueError: it is nothing that sbatch understands.
    """
    match = _MEMORY.fullmatch(str(value).strip())
    if match is None:
        raise ValueError(f"mem ({value!r}) must be memory of a node, such as 200G, 2048M, or 0 for all of it")
    amount, unit = int(match[1]), match[2].upper() or "M"
    return f"{amount}{unit}" if amount else "0"
