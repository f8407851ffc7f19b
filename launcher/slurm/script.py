"""The batch script: the template slurm/job.sbatch with the values of one submission in it."""

import os
import re
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from launcher.config.load import ConfigError
from launcher.slurm.quoting import directive, literal_path, word
from launcher.slurm.submission import Submission

ROOT = Path(__file__).resolve().parents[2]
# what of the login shell reaches the ranks: where programs and libraries lie, and how text is written
INHERITED = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "MODULEPATH", "CUDA_HOME", "TZ")
SPENT_S = 15  # of the seconds before the time limit, to decide what follows and to go back into the queue
LOADED = """\
type module &>/dev/null || source /etc/profile  # where sites define `module`
module load {} || exit 2"""
AFTER_PYXIS = """\
srun --overlap --nodes=1 --ntasks=1 --nodelist="$SLURMD_NODENAME" --export=ALL "${container[@]}" \\
    "$python\""""


def template() -> str:
    """The text of job.sbatch: beside this module where it is installed, in slurm/ of a checkout."""
    here = Path(__file__).resolve().parent
    places = (here / "job.sbatch", here.parents[1] / "slurm" / "job.sbatch")
    return next(place for place in places if place.is_file()).read_text()


def render(submission: Submission, run: Path, sizes: Sequence[int], indices: Sequence[int] = ()) -> str:
    """The script of a job, or of an array.

    Args:
        submission: checked.
        run: the absolute run directory.
        sizes: the numbers of nodes, ascending, among which the batch can be divided.
        indices: of an array, the tasks to run.

    Raises:
        ConfigError: a value that sbatch cannot read back.
    """
    site = submission.site
    width = index_width(len(submission.tasks))
    task_run = f'{word(run)}/"$(printf %0{width}d "$SLURM_ARRAY_TASK_ID")"'
    values = {
        "about": f"Trains {submission.config} in {run}"
        + (f", {len(submission.tasks)} tasks" if indices else ""),
        "directives": "\n".join(directives(submission, run, indices)),
        "run": task_run if indices else word(run),
        "job": '"${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"' if indices else '"$SLURM_JOB_ID"',
        "python": word(site.interpreter),
        "ranks_per_node": word(submission.ranks_a_node),
        "signal_s": str(site.signal_s),
        "patience_s": str(site.signal_s - SPENT_S),
        "environment": word(run / "slurm" / "environment.sh"),
        "setup": _setup(submission),
        "sizes": " ".join(map(str, sizes)),
        "container": " ".join(map(word, _pyxis(submission, run))),
        "inside": " ".join(map(word, _apptainer(submission, run))),
        "task": f"--cpus-per-task={site.cpus_per_rank}" if site.cpus_per_rank else "",
        "train": " ".join(train_options(submission)),
        "after": AFTER_PYXIS if _pyxis(submission, run) else '"${inside[@]}" "$python"',
        "requeue_limit": str(site.requeue_limit),
    }
    text = re.sub("@([a-z_]+)@", lambda match: values[match[1]], template())
    return text.replace(" )\n", ")\n")


def train_options(submission: Submission) -> list[str]:
    """The arguments of `swin-moe train` besides the configuration."""
    options = {"--elastic": submission.elastic, "--allow-change": submission.allow_change}
    return [option for option, wanted in options.items() if wanted]


def index_width(tasks: int) -> int:
    """Digits in the names of the run directories of an array."""
    return max(3, len(str(tasks - 1)))


def directives(submission: Submission, run: Path, indices: Sequence[int] = ()) -> list[str]:
    """The #SBATCH lines, with a comment where one is not plain."""
    if "\\" in str(run):
        raise ConfigError(f"run_dir ({run}) holds a backslash, which sbatch takes away; choose another")
    below = f"%{index_width(len(submission.tasks))}a/" if indices else ""
    low, high = submission.node_range
    lines = [directive(name, value) for name, value in _resources(submission).items() if value is not None]
    limit = f"%{submission.array_limit}" if submission.array_limit else ""
    array = [directive("array", _ranges(indices) + limit)] if indices else []
    return [
        directive("job-name", submission.name(run)),
        directive("chdir", submission.directory),
        directive("output", f"{literal_path(str(run))}/{below}slurm/log.txt"),
        directive("open-mode", "append"),
        directive("nodes", f"{low}-{high}" if low != high else str(low)),
        directive("ntasks-per-node", submission.ranks_a_node),
        *lines,
        *array,
        directive("signal", f"B:USR1@{submission.site.signal_s}"),
        directive("requeue"),
        directive("export", "NIL"),
        *(_directive_of(text) for text in submission.site.sbatch),
    ]


def given(lines: Sequence[str]) -> set[str]:
    """The names of directives."""
    return {line.removeprefix("#SBATCH --").partition("=")[0] for line in lines}


def environment_file(submission: Submission, environment: dict[str, str]) -> str:
    """environment.sh: the little of the login shell that ranks need, ours, and the site's, which wins."""
    site = submission.site
    values = {name: environment[name] for name in INHERITED if environment.get(name)}
    if path := _python_path(environment.get("PYTHONPATH", "")):
        values["PYTHONPATH"] = path
    if site.cpus_per_rank:
        values["OMP_NUM_THREADS"] = str(site.cpus_per_rank)
    values |= {"PYTHONUNBUFFERED": "1"} | site.environment
    return "".join(f"export {name}={word(value)}\n" for name, value in values.items())


def _python_path(before: str) -> str:
    """The job runs this very code, were it in a checkout that is not installed."""
    installed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    own = [] if str(ROOT) in installed else [str(ROOT)]
    return os.pathsep.join(dict.fromkeys([*own, *filter(None, before.split(os.pathsep))]))


def _resources(submission: Submission) -> dict[str, str | int | None]:
    site, gpus = submission.site, submission.site.gpus_per_node
    return {
        "cpus-per-task": site.cpus_per_rank,
        site.gpu_directive: (f"gpu:{gpus}" if site.gpu_directive == "gres" else gpus) if gpus else None,
        "mem": site.mem,
        "partition": site.partition,
        "account": site.account,
        "qos": site.qos,
        "time": site.time,
        "constraint": site.constraint,
        "exclude": submission.exclude,
        "dependency": submission.dependency,
    }


def _directive_of(text: str) -> str:
    name, equals, value = text.removeprefix("--").partition("=")
    if not re.fullmatch("[a-z][a-z-]*", name):
        raise ConfigError(f"sbatch: {text!r} must be of the form --option or --option=value")
    return directive(name, value if equals else None)


def _setup(submission: Submission) -> str:
    modules = " ".join(map(word, submission.site.modules))
    parts = [LOADED.format(modules) if modules else "", submission.site.setup.rstrip()]
    return "".join(f"{part}\n" for part in parts if part)


def _mounts(submission: Submission, run: Path) -> str:
    assert submission.site.container is not None
    own = str(run)
    if set(own) & set(",:"):
        raise ConfigError(
            f"run_dir ({own}) holds a comma or a colon, which cannot be mounted; choose another"
        )
    return ",".join([*submission.site.container.mounts, f"{own}:{own}"])


def _image(submission: Submission, runtime: str) -> str | None:
    container = submission.site.container
    if container is None or container.runtime != runtime:
        return None
    if container.image is None:
        raise ConfigError("container.image is not set: in the site's file, or --container IMAGE")
    return container.image


def _pyxis(submission: Submission, run: Path) -> list[str]:
    if (image := _image(submission, "pyxis")) is None:
        return []
    # where the image has a variable already, its own would win; by names alone, for values may be secret
    ours = ",".join(["OMP_NUM_THREADS", "TORCH_EXTENSIONS_DIR", *submission.site.environment])
    mounts = f"--container-mounts={_mounts(submission, run)}"
    # the entry point of the image is for Docker: it would get the rank's command as its arguments
    return [f"--container-image={image}", mounts, f"--container-env={ours}", "--no-container-entrypoint"]


def _apptainer(submission: Submission, run: Path) -> list[str]:
    if (image := _image(submission, "apptainer")) is None:
        return []
    gpus = ["--nv"] if submission.site.gpus_per_node else []
    return ["apptainer", "exec", *gpus, "--bind", _mounts(submission, run), image]


def _ranges(indices: Sequence[int]) -> str:
    """0, 1, 2, 5 -> "0-2,5"."""
    parts: list[list[int]] = []
    for index in indices:
        if parts and index == parts[-1][1] + 1:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)
