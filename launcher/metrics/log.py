"""What a run says of itself: metrics.jsonl, its trackers, a progress line. Rank 0 alone writes."""

import json
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from torch import Tensor

from launcher.config.schema import RunConfig
from launcher.metrics.accumulator import LayerTotals
from launcher.metrics.heat_map import heat_map, labelled
from launcher.metrics.records import read_records
from launcher.metrics.trackers.base import Status, as_image
from launcher.metrics.trackers.session import Trackers
from launcher.rundir.directory import RunDirectory
from parallel.checkpoint.async_saver import SaveResult
from parallel.durable import atomic_write

TROUBLE = (
    "bad_samples",
    "replaced",
    "retries",
    "refetches",
    "fetch_failures",
    "damaged_headers",
    "skipped_steps",
    "spikes",
    "trackers_off",
)  # shown where there is any


class MetricsLog:
    """One JSON object a step, an evaluation and a save, the same in all trackers, and a line with an ETA.

    Every record has its kind (step, eval, eval_ema or save), the step, the images and epochs trained until
    then, the time (UTC) and the seconds of all sessions together.

    Args:
        run: the directory to write into.
        config: of the run, which the trackers show too.
        num_samples: images of an epoch, if that is known.
        start_step: where this session goes on; later records of an earlier session are dropped.
        total_steps: of the run, for the ETA.
    """

    def __init__(
        self,
        run: RunDirectory,
        config: RunConfig,
        *,
        num_samples: int | None,
        start_step: int,
        total_steps: int,
    ) -> None:
        before = read_records(run.metrics)
        kept = [record for record in before if record["step"] <= start_step] if start_step else []
        atomic_write(run.metrics, "".join(json.dumps(record) + "\n" for record in kept), sync="none")
        self._file = run.metrics.open("a")
        self._has_experts = config.model.moe is not None
        self._batch, self._num_samples = config.train.global_batch_size, num_samples
        self._earlier_s = kept[-1]["elapsed_s"] if kept else 0.0
        steps = [record for record in kept if record["kind"] == "step"]
        self._earlier_data: dict[str, int] = steps[-1].get("data", {}) if steps else {}
        self._start_s = self._shown_s = time.monotonic()
        self._start_step, self._total_steps = start_step, total_steps
        self._line_open = False
        self._failed_saves = 0  # of this session
        self._trackers = Trackers(
            config,
            start_step=start_step,
            reached_step=max((record["step"] for record in before), default=0),
            say=self._say,
        )
        self._end_timeout_s = config.tracking.end_timeout_s

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
            data: what the ranks' streams counted since the session began; recorded for all sessions.
            layers: what its MoE layers did, by name.
            table: whether to record every expert's tokens and every rank's rows too.
        """
        scalars = {layer: totals.scalars() for layer, totals in layers.items()}
        data = {name: self._cumulative(name, count) for name, count in data.items()}
        record: dict[str, Any] = {**values, "data": data, "moe": scalars}
        if table and layers:
            tokens = {layer: totals.tokens for layer, totals in layers.items()}
            received = {layer: totals.received for layer, totals in layers.items()}
            record |= {"tokens_per_expert": tokens, "received_rows": received}
            picture = labelled(heat_map(list(tokens.values())), list(tokens))
            self._trackers.image("moe/load", step, as_image(picture))
        curves = {
            f"moe/{name}/{layer}": value
            for layer, figures in scalars.items()
            for name, value in figures.items()
        }
        curves |= {f"data/{name}": float(count) for name, count in data.items() if count}
        off = {"trackers_off": self._trackers.off} if self._trackers.off else {}
        self._write("step", step, record | off, "train", "", curves)
        self._progress(step, values, data | off)

    def evaluation(
        self, step: int, values: dict[str, Any], line: str, prefix: Literal["eval_", "eval_ema_"] = "eval_"
    ) -> None:
        """Record an evaluation after `step`, of the weights or of their average, and say its `line`."""
        kind = prefix.removesuffix("_")
        self._write(kind, step, values, kind, prefix)
        self._say(f"step {step}: {line}")

    def image(self, step: int, image: Tensor) -> None:
        """Show an image (3, height, width) of the evaluation after `step` in the trackers."""
        self._trackers.image("eval/pictures", step, as_image(image))

    def save(self, outcome: SaveResult) -> None:
        """Record how a save ended, and say so if it did not end well."""
        self._failed_saves += outcome.error is not None
        values = {name: getattr(outcome, name) for name in ("error", "bytes", "copy_s", "stall_s")}
        values |= {"s": outcome.save_s, "failed": self._failed_saves}
        self._write("save", outcome.step, values, "save", "save_")
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

    def close(self, status: Status = "finished", timeout_s: float | None = None) -> None:
        """Finish the files and the trackers; a second call does nothing.

        Args:
            status: how the session ends.
            timeout_s: for the trackers; by default `tracking.end_timeout_s`.
        """
        if self._file.closed:
            return
        self._end_line()
        self._file.close()
        self._trackers.end(status, self._end_timeout_s if timeout_s is None else timeout_s)

    def _cumulative(self, name: str, count: int) -> int:
        """A counter of this session with the sessions before; recent_bad, of each part too, is no counter."""
        is_recent = name.endswith("recent_bad")
        return count if is_recent else count + self._earlier_data.get(name, 0)

    def _write(
        self,
        kind: str,
        step: int,
        values: dict[str, Any],
        section: str,
        prefix: str,
        curves: Mapping[str, float] | None = None,
    ) -> None:
        """Write a record, and give its floats and further curves to the trackers."""
        images = step * self._batch
        head = {
            "kind": kind,
            "step": step,
            "epoch": round(images / self._num_samples, 4) if self._num_samples else None,
            "images": images,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "elapsed_s": round(self._earlier_s + time.monotonic() - self._start_s, 3),
        }
        named = {f"{prefix}{name}": value for name, value in values.items()}
        self._file.write(json.dumps(head | named) + "\n")
        self._file.flush()
        floats = {f"{section}/{name}": value for name, value in values.items() if isinstance(value, float)}
        self._trackers.scalars(step, {**floats, **(curves or {})})

    def _progress(self, step: int, values: dict[str, float], data: dict[str, int]) -> None:
        """One line that rewrites itself on a terminal, and a line now and then in a log file."""
        now, live = time.monotonic(), sys.stderr.isatty()
        if now - self._shown_s < (0.5 if live else 15.0) and step != self._total_steps:
            return
        self._shown_s = now
        left_s = (now - self._start_s) / (step - self._start_step) * (self._total_steps - step)
        data = {**data, **{name: int(values.get(name, 0)) for name in ("skipped_steps", "spikes")}}
        trouble = "".join(f"{data[name]} {name.replace('_', ' ')}  " for name in TROUBLE if data.get(name))
        dropped = f"dropped {values['dropped_fraction']:.1%}  " if self._has_experts else ""
        text = (
            f"step {step}/{self._total_steps}  loss {values['loss']:.3f}  {values['images_s']:.0f} images/s  "
            f"{dropped}data wait {values['data_wait_s'] * 1e3:.0f} ms  "
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
