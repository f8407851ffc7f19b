"""TensorBoard: event files in RUN/tensorboard."""

from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from launcher.metrics.trackers.base import Image, Status, TrackedRun, Tracker
from launcher.rundir.paths import RunFiles


class TensorBoardTracker(Tracker):
    """Writes event files; values of steps that a kill undid are purged when the run goes on."""

    _board: SummaryWriter

    def start(self, run: TrackedRun) -> Mapping[str, str]:
        """Open an event file, and show the configuration as text and as hyperparameters."""
        directory: Path = RunFiles(run.directory).tensorboard
        self._board = SummaryWriter(str(directory), purge_step=run.start_step + 1)
        writer = self._board.file_writer
        assert writer is not None  # until it is closed
        for summary in hparams(dict(run.options), {"train/loss": 0.0}):
            writer.add_summary(summary)
        return {}

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each curve."""
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def image(self, name: str, step: int, image: Image) -> None:
        """Add an image (3, H, W)."""
        self._board.add_image(name, image, step)

    def text(self, name: str, step: int, text: str) -> None:
        """Add a text, which TensorBoard shows as Markdown."""
        self._board.add_text(name, f"```yaml\n{text}```", step)

    def end(self, status: Status) -> None:
        """Close the event file, which has no place for a status."""
        self._board.close()
