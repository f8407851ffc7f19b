"""Sessions of a run whose steps are made up, for the tests of trackers."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

from launcher.config.load import load_config
from launcher.config.schema import RunConfig
from launcher.metrics.log import MetricsLog
from launcher.rundir.directory import RunDirectory
from tests.launcher.running import CONFIG

OWN = "tests.launcher.metrics.own_trackers"
VALUES = {"loss": 2.0, "images_s": 10.0, "dropped_fraction": 0.25, "data_wait_s": 0.002}


def config_of(run: Path, *more: str) -> RunConfig:
    return load_config(CONFIG, [f"run_dir={run}", *more])


def log_of(run: Path, *more: str, start_step: int = 0) -> MetricsLog:
    """The log of a run of 9 steps."""
    config = config_of(run, *more)
    run.mkdir(exist_ok=True)
    return MetricsLog(RunDirectory(run), config, num_samples=64, start_step=start_step, total_steps=9)


def session(run: Path, *more: str, start_step: int = 0, stop: int = 3, **end: Any) -> float:
    """A session of steps after `start_step` up to `stop`; the seconds that its end took."""
    log = log_of(run, *more, start_step=start_step)
    for step in range(start_step + 1, stop + 1):
        log.step(step, VALUES, {}, {}, table=False)
    began_s = time.monotonic()
    log.close(**end)
    return time.monotonic() - began_s


def calls(run: Path) -> list[list[Any]]:
    return [json.loads(text) for text in (run / "calls.jsonl").read_text().splitlines()]


def own(name: str) -> str:
    return f"tracking.trackers=[{OWN}:{name}]"


def curves(found: list[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """What a tracker must have of the records of metrics.jsonl: the value of each curve by step."""
    wanted: dict[str, dict[int, float]] = {}
    for record in found:
        kind, step = record["kind"], record["step"]
        section, prefix = ("train", "") if kind == "step" else (kind, f"{kind}_")
        head = {"epoch", "elapsed_s"}
        named = {f"{section}/{k.removeprefix(prefix)}": v for k, v in record.items() if k not in head}
        for layer, figures in record.get("moe", {}).items():
            named |= {f"moe/{name}/{layer}": value for name, value in figures.items()}
        floats = {name: value for name, value in named.items() if isinstance(value, float)}
        floats |= {f"data/{name}": count for name, count in record.get("data", {}).items() if count}
        for name, value in floats.items():
            wanted.setdefault(name, {})[step] = value
    return wanted


def wait_for(condition: Any) -> None:
    deadline_s = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.05)


def processes_of(run: Path) -> list[str]:
    """The processes of trackers that are still there, and what they started."""
    lines = subprocess.run(["ps", "-wweo", "pid,args"], capture_output=True, text=True, check=True).stdout
    ours = (f"--of {run}", "sleep 601.25")
    return [
        text for text in lines.splitlines() if any(word in text for word in ours) and "ps -wweo" not in text
    ]
