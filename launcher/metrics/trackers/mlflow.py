"""MLflow: a tracking server, a database, or a directory (the file store), by MlflowClient alone.

The file store needs the package mlflow-skinny and no server. MLflow 3 refuses it unless
MLFLOW_ALLOW_FILE_STORE is set, which this module does for its own process. MLflow sends usage data to its
makers unless MLFLOW_DISABLE_TELEMETRY is set; it is set here where the environment does not say otherwise.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported

from mlflow.entities import Metric, Param, RunStatus  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.tracking import MlflowClient  # noqa: E402

from launcher.config.tracking import PROJECT  # noqa: E402
from launcher.metrics.trackers.base import Image, Status, TrackedRun, Tracker, TrackerError  # noqa: E402
from parallel.durable import lock_file  # noqa: E402

STORE = "mlruns"  # MLflow's name of the directory
MOST_METRICS = 1000  # of one request
MOST_PARAMS = 100
LONGEST_PARAM = 6000
LONGEST_WAIT_S = 5.0  # of values, while further ones come
STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class MlflowTracker(Tracker):
    """One run of MLflow for all sessions of a run, continued by its id.

    MLflow keeps all values of a step that came twice. So steps that a kill undid are compared with the
    history in the store, and what it has is not sent again.
    """

    _client: MlflowClient
    _id: str

    def start(self, run: TrackedRun) -> Mapping[str, str]:
        """Make a run in the experiment of the project, or go on with the one of an earlier session."""
        self._uri = store_uri(run)
        directory = _directory(self._uri)
        if directory is not None:
            os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
            directory.mkdir(parents=True, exist_ok=True)
        self._client = MlflowClient(tracking_uri=self._uri)
        self._reached_step, self._steps = run.reached_step, dict[str, set[int]]()
        self._held: list[Metric] = []
        self._sent_s = time.monotonic()
        if run.state.get("uri") == self._uri:
            self._id = run.state["id"]
            self._client.update_run(self._id, RunStatus.to_string(RunStatus.RUNNING))
        else:
            with _locked(directory) if directory else nullcontext():
                experiment = self._experiment(run.tracking.project)
            self._id = self._new_run(run, experiment)
        return {"id": self._id, "uri": self._uri}

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Hold the values until a request is full, or old, or no further values wait."""
        now_ms = int(time.time() * 1000)
        for name, value in values.items():
            if step > self._reached_step or step not in self._known_steps(name):
                self._held.append(Metric(name, value, now_ms, step))
        if len(self._held) >= MOST_METRICS or time.monotonic() - self._sent_s > LONGEST_WAIT_S:
            self.flush()

    def image(self, name: str, step: int, image: Image) -> None:
        """Log an image (3, H, W)."""
        self._client.log_image(self._id, image.transpose(1, 2, 0), key=name, step=step)

    def text(self, name: str, step: int, text: str) -> None:
        """Keep a text among the artifacts of the run."""
        self._client.log_text(self._id, text, f"{name}.txt")

    def flush(self) -> None:
        """Send what is held."""
        held, self._held, self._sent_s = self._held, [], time.monotonic()
        for first in range(0, len(held), MOST_METRICS):
            self._client.log_batch(self._id, metrics=held[first : first + MOST_METRICS])

    def end(self, status: Status) -> None:
        """Send what is held, and set the status: FINISHED, KILLED or FAILED."""
        self.flush()
        self._client.set_terminated(self._id, STATUS[status])

    def where(self) -> str:
        """The store and the id of the run."""
        return f"run {self._id} in {self._uri}"

    def _known_steps(self, name: str) -> set[int]:
        """The steps of a curve that the store has."""
        if name not in self._steps:
            history = self._client.get_metric_history(self._id, name)
            self._steps[name] = {metric.step for metric in history}
        return self._steps[name]

    def _experiment(self, project: str | None) -> str:
        """The id of the experiment; it is made if there is none."""
        name = project or os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        found = self._client.get_experiment_by_name(name)
        if found is not None and found.lifecycle_stage == "deleted":
            raise TrackerError(f"the experiment {name} is deleted: restore it, or set tracking.project")
        if found is not None:
            return str(found.experiment_id)
        try:
            return str(self._client.create_experiment(name))
        except MlflowException:  # another run made it in the meantime
            found = self._client.get_experiment_by_name(name)
            if found is None:
                raise
            return str(found.experiment_id)

    def _new_run(self, run: TrackedRun, experiment: str) -> str:
        """The id of a run that is made now, with every option as a parameter."""
        tags = {"group": run.group, "run_dir": str(run.directory), "tags": ", ".join(run.tracking.tags)}
        named = {name: text for name, text in tags.items() if text}
        made = self._client.create_run(experiment, tags=named, run_name=run.name)
        params = [Param(name, str(value)[:LONGEST_PARAM]) for name, value in run.options.items()]
        for first in range(0, len(params), MOST_PARAMS):
            self._client.log_batch(made.info.run_id, params=params[first : first + MOST_PARAMS])
        return str(made.info.run_id)


def store_uri(run: TrackedRun) -> str:
    """Where the run is kept: the option, MLFLOW_TRACKING_URI, the place of the earlier session, or mlruns."""
    place = run.tracking.mlflow.uri or os.environ.get("MLFLOW_TRACKING_URI") or run.state.get("uri") or STORE
    return place if urlsplit(place).scheme else Path(place).absolute().as_uri()


def _directory(uri: str) -> Path | None:
    """The directory of a file store; None for another store."""
    parts = urlsplit(uri)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep other runs from making an experiment of the same name: the file store does not."""
    with (directory / ".swin-moe.lock").open("a") as file:
        with suppress(OSError):  # of a file system without locks
            lock_file(file)
        yield
