"""Trackers by name: those that come with this program, entry points of other packages, and dotted paths."""

from collections.abc import Sequence
from importlib.util import find_spec

from launcher.config.tracking import TrackingConfig
from launcher.metrics.trackers.base import Tracker
from parallel.plug_ins import UnknownNameError, imported, path_of

GROUP = "swin_moe.trackers"  # entry points of other packages
TENSORBOARD = "tensorboard"  # which always writes
BUILT_IN = {
    TENSORBOARD: "launcher.metrics.trackers.tensorboard:TensorBoardTracker",
    "wandb": "launcher.metrics.trackers.wandb:WandbTracker",
    "mlflow": "launcher.metrics.trackers.mlflow:MlflowTracker",
}
EXTRAS = ("wandb", "mlflow")  # packages, and the extras of setup.py that install them


class NotATrackerError(TypeError):
    """What a path leads to has not the methods of a tracker."""


def tracker_path(name: str) -> str:
    """MODULE:CLASS of a tracker.

    Raises:
        UnknownNameError: there is no such tracker.
    """
    return BUILT_IN.get(name) or path_of(name, GROUP, BUILT_IN, "my_package.trackers:MyTracker")


def tracker_class(path: str) -> type[Tracker]:
    """The class at MODULE:CLASS.

    Raises:
        ImportError: it cannot be imported.
        NotATrackerError: it is no tracker.
    """
    found = imported(path)
    if not (isinstance(found, type) and issubclass(found, Tracker)):
        raise NotATrackerError(f"{path} is no Tracker, see docs/extending.md")
    return found


def tracking_errors(tracking: TrackingConfig) -> list[str]:
    """What is wrong with the trackers of a run, a line each; wandb and mlflow are not imported."""
    errors = [error for name in tracking.trackers for error in _errors_of(name, tracking)]
    if tracking.options and not set(tracking.trackers) - set(BUILT_IN):
        names = ", ".join(map(str, tracking.options))
        errors.append(
            f"tracking.options ({names}) are of trackers of other packages, and tracking.trackers "
            f"({list(tracking.trackers)}) names none"
        )
    return errors


def _errors_of(name: str, tracking: TrackingConfig) -> Sequence[str]:
    option = f"tracking.trackers ({name})"
    if name in EXTRAS and not _is_installed(name):
        return [f"{option}: the package {name} is not installed; pip install 'swin-moe[{name}]'"]
    if name in BUILT_IN:
        return []
    try:
        return tracker_class(tracker_path(name)).problems(tracking)
    except UnknownNameError as error:
        return [f"{option}: no such tracker; {error}"]
    except ImportError as error:
        return [f"{option} cannot be imported: {error}"]
    except NotATrackerError as error:
        return [f"{option}: {error}"]
    except Exception as error:  # of the module, or of its check: it is not ours
        return [f"{option} cannot be checked: {type(error).__name__}: {error}"]


def _is_installed(package: str) -> bool:
    """Whether a package can be imported; a directory of its name that is no package does not count."""
    spec = find_spec(package)
    return spec is not None and spec.origin is not None
