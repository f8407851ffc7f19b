"""Nothing that a user names is ever read as shell or as an option of Slurm.

In the body of the script every value is a word of the shell. sbatch reads the quotes of #SBATCH lines as a
shell does and expands nothing in them, but takes backslashes away even inside quotes (found on 22.05): a
value with one is refused there. A newline would end the line, so control characters are refused everywhere.
"""

import re
import shlex
import unicodedata
from collections.abc import Mapping

from launcher.config.load import ConfigError

JOB_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
REFUSED = {
    "Cc": "a control character",
    "Cs": "a byte that is no text",
    "Zl": "a line break",
    "Zp": "a line break",
}


def problems(values: Mapping[str, str]) -> list[str]:
    """What cannot be written into a script, a line each, by the name of its option."""
    lines = []
    for name, value in values.items():
        why = next((REFUSED[kind] for kind in map(unicodedata.category, value) if kind in REFUSED), None)
        if why:
            lines.append(f"{name} ({value!r}) holds {why}; it cannot stand in a script")
    return lines


def check_values(values: Mapping[str, str]) -> None:
    """Raise ConfigError with every value that cannot be written into a script."""
    if lines := problems(values):
        raise ConfigError("\n  ".join(["not for a script:", *lines]))


def word(value: object) -> str:
    """A value as one word of the shell."""
    return shlex.quote(str(value))


def directive(name: str, value: str | int | None = None) -> str:
    """A line for sbatch.

    Raises:
        ConfigError: the value has a backslash.
    """
    if value is None:
        return f"#SBATCH --{name}"
    if "\\" in str(value):
        raise ConfigError(f"--{name} ({value}) holds a backslash, which sbatch takes away; choose another")
    return f"#SBATCH --{name}={word(value)}"


def literal_path(path: str) -> str:
    """A path of which Slurm is to expand nothing: % begins its patterns."""
    return path.replace("%", "%%")


def job_name(text: str) -> str:
    """A name that no shell, file system or table can take for anything else."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:64].strip("-") or "swin-moe"
