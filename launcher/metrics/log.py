"""What a run says of itself: metrics.jsonl, TensorBoard, a progress line. Rank 0 alone writes."""

import json
import sys
import time
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from launcher.metrics.accumulator import LayerTotals
from launcher.metrics.heat_map import heat_map
from launcher.rundir.directory import RunDirectory
from parallel.checkpoint.async_saver import SaveResult
from parallel.durable import atomic_write

TROUBLE = (
    "bad_samples",
    "replaced",
    "retries",
    "refetches",
    "fetch_failures",
    "skipped_steps",
    "spikes",
)  # shown where there is any


def read_records(path: Path, up_to_step: int | None = None) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, at most those up to a step, without a line that a kill cut short.

    `loss` of a step is the task's loss, whatever the version that wrote it: earlier ones wrote the total loss
    under this name, and no `total_loss`.
    """
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if up_to_step is None or record["step"] <= up_to_step:
            records.append(_with_losses_apart(record))
    return records


def _with_losses_apart(record: dict[str, Any]) -> dict[str, Any]:
    """A record of any version with the task's loss as `loss`, and with `total_loss`."""
    if "total_loss" in record or "aux_loss" not in record:
        return record
    total = record["loss"]
    return record | {"loss": total - record["aux_loss"], "total_loss": total}


class MetricsLog:
    """One JSON object a step and an evaluation, the same in TensorBoard, and a line with an ETA.

    Args:
        run: the directory to write into.
        start_step: where this session goes on; later records of an earlier session are dropped.
        total_steps: of the run, for the ETA.
    """

    def __init__(self, run: RunDirectory, *, start_step: int, total_steps: int) -> None:
        kept = read_records(run.metrics, up_to_step=start_step) if start_step else []
        atomic_write(run.metrics, "".join(json.dumps(record) + "\n" for record in kept), sync="none")
        self._file = run.metrics.open("a")
        self._board = SummaryWriter(str(run.tensorboard), purge_step=start_step + 1)
        self._earlier_s = kept[-1]["elapsed_s"] if kept else 0.0
        self._start_s = self._shown_s = time.monotonic()
        self._start_step, self._total_steps = start_step, total_steps
        self._line_open = False
        self._failed_saves = 0  # of this session

    def step(
        self,
        step: int,
        values: dict[str, float],
        data: dict[str, int],
        layers: dict[str, LayerTotals],
        *,
        table: bool,
    ) -> None:
        """Record an optimizer step.

        Args:
            step: the step.
            values: its figures.
            data: what the ranks' streams counted since the session began.
            layers: what its MoE layers did, by name.
            table: whether to record every expert's tokens and every rank's rows too.
        """
        scalars = {layer: totals.scalars() for layer, totals in layers.items()}
        record: dict[str, Any] = {**values, "data": data, "moe": scalars}
        if table and layers:
            tokens = {layer: totals.tokens for layer, totals in layers.items()}
            received = {layer: totals.received for layer, totals in layers.items()}
            record |= {"tokens_per_expert": tokens, "received_rows": received}
            self._board.add_image("moe/load", heat_map(list(tokens.values())), step)
        self._write(step, record, "train", "")
        for layer, figures in scalars.items():
            for name, value in figures.items():
                self._board.add_scalar(f"moe/{name}/{layer}", value, step)
        for name, count in data.items():
            self._board.add_scalar(f"data/{name}", count, step)
        self._progress(step, values, data)

    def evaluation(
        self, step: int, values: dict[str, Any], line: str, prefix: Literal["eval_", "eval_ema_"] = "eval_"
    ) -> None:
        """Record an evaluation after `step`, of the weights or of their average, and say its `line`."""
        self._write(step, values, prefix.removesuffix("_"), prefix)
        self._say(f"step {step}: {line}")

    def image(self, step: int, image: Tensor) -> None:
        """Show an image (3, height, width) of the evaluation after `step` in TensorBoard."""
        self._board.add_image("eval/pictures", image, step)

    def save(self, outcome: SaveResult) -> None:
        """Record how a save ended, and say so if it did not end well."""
        self._failed_saves += outcome.error is not None
        values = {name: getattr(outcome, name) for name in ("error", "bytes", "copy_s", "stall_s")}
        values |= {"s": outcome.save_s, "failed": self._failed_saves}
        self._write(outcome.step, values, "save", "save_")
        if outcome.error is not None:
            self._say(
                f"step {outcome.step}: NOT SAVED: {outcome.error}; the checkpoints before it stand "
                f"(failed saves: {self._failed_saves})"
            )
        if outcome.warning is not None:
            self._say(f"step {outcome.step}: saved, but {outcome.warning}")

    def notice(self, text: str) -> None:
        """Say what somebody should see, in a line of its own."""
        self._say(text)

    def close(self) -> None:
        """Finish the files."""
        self._end_line()
        self._file.close()
        self._board.close()

    def _write(self, step: int, values: dict[str, Any], section: str, prefix: str) -> None:
        elapsed_s = round(self._earlier_s + time.monotonic() - self._start_s, 3)
        named = {f"{prefix}{name}": value for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **named, "elapsed_s": elapsed_s}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, float):
                self._board.add_scalar(f"{section}/{name}", value, step)

    def _progress(self, step: int, values: dict[str, float], data: dict[str, int]) -> None:
        """One line that rewrites itself on a terminal, and a line now and then in a log file."""
        now, live = time.monotonic(), sys.stderr.isatty()
        if now - self._shown_s < (0.5 if live else 15.0) and step != self._total_steps:
            return
        self._shown_s = now
        left_s = (now - self._start_s) / (step - self._start_step) * (self._total_steps - step)
        data = {**data, **{name: int(values.get(name, 0)) for name in ("skipped_steps", "spikes")}}
        trouble = "".join(f"{data[name]} {name.replace('_', ' ')}  " for name in TROUBLE if data.get(name))
        text = (
            f"step {step}/{self._total_steps}  loss {values['loss']:.3f}  {values['images_s']:.0f} images/s  "
            f"dropped {values['dropped_fraction']:.1%}  data wait {values['data_wait_s'] * 1e3:.0f} ms  "
            f"{trouble}ETA {int(left_s) // 60}:{int(left_s) % 60:02d}"
        )
        sys.stderr.write(f"\r\x1b[K{text}" if live else f"{text}\n")
        sys.stderr.flush()
        self._line_open = live

    def _say(self, text: str) -> None:
        self._end_line()
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def _end_line(self) -> None:
        if self._line_open:
            sys.stderr.write("\n")
            self._line_open = False
