"""TrackingConfig: where a run's curves go besides metrics.jsonl; without torch, for processes of trackers."""

from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from parallel.ranges import check_ranges

PROJECT = "swin-moe"  # where neither tracking.project nor a variable of the tracker names one
LONGEST_NAME = 128  # of a project in W&B


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Weights & Biases. The API key is no option: `wandb login` keeps it, or WANDB_API_KEY has it."""

    mode: Literal["online", "offline"] | None = None  # null: WANDB_MODE, or else online
    entity: str | None = None  # user or team that the project belongs to; null: WANDB_ENTITY, or the default

    def __post_init__(self) -> None:
        _check_name("tracking.wandb.entity", self.entity)


@dataclass(frozen=True, kw_only=True)
class MlflowConfig:
    """MLflow."""

    # a server such as http://host:5000, a database such as sqlite:////data/mlflow.db (needs the package
    # mlflow), or a directory; null: MLFLOW_TRACKING_URI, or else the directory mlruns
    uri: str | None = None

    def __post_init__(self) -> None:
        _check_text("tracking.mlflow.uri", self.uri)
        try:
            has_password = self.uri is not None and urlsplit(self.uri).password is not None
        except ValueError as error:
            raise ValueError(f"tracking.mlflow.uri ({self.uri!r}) is no URI: {error}") from None
        if has_password:
            raise ValueError(
                "tracking.mlflow.uri holds a password, which the run directory would keep: set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_URI"
            )


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """The trackers of a run. A tracker that fails is switched off, and training goes on."""

    # besides TensorBoard, which always writes: wandb, mlflow, an entry point of the group swin_moe.trackers,
    # or a dotted path such as my_package.trackers:MyTracker
    trackers: tuple[str, ...] = ()
    # of W&B, and the experiment of MLflow; null: WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME, or else swin-moe
    project: str | None = None
    name: str | None = None  # of the run; null: the name of the run directory
    group: str | None = None  # of runs; null: the study or the job array that the run belongs to, if any
    tags: tuple[str, ...] = ()  # of the run
    end_timeout_s: float = 30.0  # how long the end of the run waits until the trackers have every value
    wandb: WandbConfig = field(default_factory=WandbConfig)
    mlflow: MlflowConfig = field(default_factory=MlflowConfig)
    # of trackers of other packages; the run directory keeps them, so a secret belongs into a variable
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_ranges("tracking.", self, end_timeout_s=(1, 3600))
        for name in ("project", "name", "group"):
            _check_name(f"tracking.{name}", getattr(self, name))
        for tag in self.tags:
            _check_name("tracking.tags", tag)
        if len(set(self.trackers)) < len(self.trackers):
            raise ValueError(f"tracking.trackers ({list(self.trackers)}) names a tracker twice")


def _check_text(option: str, text: str | None) -> None:
    """Refuse what no file and no server could hold."""
    if text is not None and not (text.strip() and text.isprintable()):
        raise ValueError(f"{option} ({text!r}) must be printable text; leave it out where there is none")


def _check_name(option: str, name: str | None) -> None:
    """Refuse a name that W&B would refuse, whatever the trackers: it holds for all of them."""
    _check_text(option, name)
    if name is None:
        return
    if len(name) > LONGEST_NAME:
        raise ValueError(
            f"{option} ({name[:20]!r} ...) has {len(name)} characters; {LONGEST_NAME} are allowed"
        )
    if bad := sorted(set(name) & set("/\\#?%:")):
        raise ValueError(f"{option} ({name!r}) must not contain {' '.join(bad)}")
