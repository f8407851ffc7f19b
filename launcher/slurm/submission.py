"""What one submission asks for, as submission.json keeps it for `resume`.

No `from __future__ import annotations` here: pydantic resolves the types when it validates.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from launcher.config.load import ConfigError, load_section
from launcher.config.time_limits import limit_s, written
from launcher.slurm.quoting import JOB_NAME, check_values, job_name
from launcher.slurm.site import ContainerConfig, SiteConfig

SIGNAL_EARLY_S = 60  # Slurm may send a signal so much before the time that was asked for; sbatch(1), --signal


@dataclass(frozen=True, kw_only=True)
class Submission:
    """Resources and options; `site` is what the file of the site and the command line come to together."""

    config: str  # what was submitted, for the reader of the script
    directory: str  # where the command was typed; the job runs there
    nodes: str = "1"  # "4", or with elastic "2-4": as many of them as are free
    elastic: bool = False
    ranks_per_node: int | None = None
    exclude: str | None = None
    dependency: str | None = None
    job_name: str | None = None
    allow_change: bool = False
    array_limit: int | None = None  # tasks of an array that run at a time
    tasks: tuple[tuple[str, ...], ...] = ()  # of an array: the overrides of each
    site: SiteConfig = field(default_factory=SiteConfig)

    @property
    def node_range(self) -> tuple[int, int]:
        """The fewest and the most nodes.

        Raises:
            ConfigError: `nodes` is no number or range, or a range without elastic.
        """
        match = re.fullmatch(r"([1-9][0-9]*)(?:-([1-9][0-9]*))?", self.nodes)
        if match is None or (match[2] and int(match[1]) > int(match[2])):
            raise ConfigError(f"--nodes ({self.nodes}) must be a number such as 4, or a range such as 2-4")
        if match[2]:
            if not self.elastic:
                raise ConfigError(f"--nodes ({self.nodes}) is a range: the run must be --elastic then")
            return int(match[1]), int(match[2])
        return int(match[1]), int(match[1])

    @property
    def ranks_a_node(self) -> int:
        """A rank a GPU, or one where there are none, unless it is set."""
        return self.ranks_per_node or self.site.gpus_per_node or 1

    def name(self, run: Path) -> str:
        """What Slurm's tables call the job."""
        return self.job_name or job_name(run.name)

    def check(self, run: Path) -> None:
        """Raise ConfigError for what cannot be a name of a job or stand in a script."""
        if self.job_name is not None and not JOB_NAME.fullmatch(self.job_name):
            raise ConfigError(
                f"--job-name ({self.job_name!r}) must be 1 to 64 of the characters A-Za-z0-9._-"
            )
        self.node_range  # noqa: B018  (raises)
        self._check_time()
        site = {
            name: value for name, value in asdict(self.site).items() if name != "setup"
        }  # the user's shell
        texts = _texts(asdict(replace(self, site=SiteConfig(), tasks=()))) + _texts(site)
        named = {name if "." in name else f"--{name.replace('_', '-')}": text for name, text in texts}
        check_values({"run_dir": str(run), **named})

    def _check_time(self) -> None:
        """A limit must leave time to train before Slurm sends the signal to save."""
        needed_s = self.site.signal_s + SIGNAL_EARLY_S
        if limit_s(self.site.time) < needed_s:
            raise ConfigError(
                f"--time ({self.site.time}, which is HH:MM:SS) must be at least {written(needed_s)}: the run "
                f"is asked to save signal_s ({self.site.signal_s} s) before the limit, and Slurm may ask "
                f"{SIGNAL_EARLY_S} s earlier; raise --time, or lower signal_s in the site's file"
            )


def merged(given: Mapping[str, Any], below: Submission) -> Submission:
    """A submission with what the command line says (what it leaves out is None) on top of another one.

    Raises:
        ConfigError: a value that cannot be.
    """
    own = {option.name for option in fields(Submission)} - {"site"}
    given_values = {name: value for name, value in given.items() if value is not None}
    for_site = {option.name for option in fields(SiteConfig)} - {"container", "environment"}
    if "sbatch" in given_values:
        given_values["sbatch"] = tuple(dict.fromkeys([*below.site.sbatch, *given_values["sbatch"]]))
    try:
        site = replace(
            below.site, **{name: value for name, value in given_values.items() if name in for_site}
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if image := given_values.get("container"):
        site = replace(site, container=_with_image(site.container, image))
    return replace(below, site=site, **{name: value for name, value in given_values.items() if name in own})


def read_submission(file: Path) -> Submission:
    """What `write_submission` wrote; ConfigError when it is missing or was changed into something else."""
    if not file.is_file():
        raise ConfigError(f"{file.parent.parent} was never submitted with `swin-moe slurm submit`: no {file}")
    return load_section(Submission, file)  # JSON is YAML


def dump_submission(submission: Submission) -> str:
    """As JSON; without the environment, which may hold secrets and lies in environment.sh alone."""
    public = replace(submission, site=replace(submission.site, environment={}))
    return json.dumps(asdict(public), indent=1, ensure_ascii=False) + "\n"


def _with_image(container: ContainerConfig | None, image: str) -> ContainerConfig:
    if container is not None:
        return replace(container, image=image)
    return ContainerConfig(runtime="apptainer" if image.endswith(".sif") else "pyxis", image=image)


def _texts(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Every text in a tree with its dotted name."""
    texts: list[tuple[str, str]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            texts += _texts(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            texts += _texts({f"{key}[{i}]": item for i, item in enumerate(value)}, prefix)
        elif isinstance(value, str):
            texts.append((f"{prefix}{key}", value))
    return texts
