"""Studies whose trials are run by a program that only writes down what `swin-moe train` and `eval` would."""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from launcher.cli.program import main
from tests.launcher.running import CONFIG, TINY

# As `python -u -m launcher train CONFIG ...` or `eval RUN ...`. A file `fail-train` (WORD|STATUS|REASON) or
# `slow-train` (WORD|) in the study tells how a trial with that word in its name ends.
PROGRAM = """\
import json, os, shutil, signal, sys, time
command, place, *options = sys.argv[4:]
run = os.path.dirname(place) if command == "train" else place
name, study = os.path.basename(run), os.path.dirname(os.path.dirname(run))
with open(study + "/calls", "a") as calls:
    calls.write(json.dumps([command, name, os.environ.get("OMP_NUM_THREADS"), options]) + chr(10))

def rule(kind):
    path = f"{study}/{kind}-{command}"
    word, _, rest = open(path).read().partition("|") if os.path.exists(path) else ("", "", "")
    return rest if word and word in name else None

def end(code, reason):
    if command == "train" and code != 2:
        with open(run + "/sessions.jsonl", "a") as sessions:
            for record in ({"event": "start", "from_step": 0, "pid": os.getpid()},
                           {"event": "end", "code": code, "reason": reason}):
                sessions.write(json.dumps({"time": "now", **record}) + chr(10))
    sys.exit(code)

if (told := rule("fail")) is not None:
    code, reason = told.split("|")
    print("DivergedError: " + reason)
    end(int(code), "DivergedError: " + reason)
if command == "train":
    shutil.copy(place, run + "/config.yaml")
if rule("slow") is not None:
    requested = []
    signal.signal(signal.SIGTERM, lambda *_: requested.append(1))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    open(study + "/ready", "w").close()
    while not requested:
        time.sleep(0.01)
    end(75, "Stopped: saved at step 3")
if command == "train":
    summary = {"steps": 5, "top1": 0.5, "loss": 1.25, "images_s": 100.0, "wall_s": 7.0}
    json.dump(summary, open(run + "/summary.json", "w"))
    end(0, "finished")
os.makedirs(run + "/eval/step-00000005", exist_ok=True)
given = dict(zip(options[::2], options[1::2]))
factors, choices = given.get("--sweep-capacity"), given.get("--sweep-top-k")
rows = [{"capacity_factor": float(f), "top_k": int(k), "images": 10, "images_s": 5.0}
        for k in (choices or "").split(",") if k for f in factors.split(",")]
file = "sweep" if factors else "evaluation"
json.dump({"rows": rows}, open(f"{run}/eval/step-00000005/{file}.json", "w"))
"""


class Said(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


class FakeStudy:
    """A study in a directory of its own; `calls` are the commands that its trials ran."""

    def __init__(self, home: Path, shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.file, self.directory, self._capsys = home / "study.yaml", home / "study", capsys
        self._shards = shards
        self.directory.mkdir()

    def write(self, text: str = "axes: {optim.base_lr: [0.1, 0.2, 0.3]}", **overrides: Any) -> None:
        """The file; `text` is what follows the head."""
        tiny = dict(item.split("=", 1) for item in TINY if item != "data.augment={}")
        data = {"data.train": f"{self._shards}/train", "data.val": f"{self._shards}/val"}
        options = {**tiny, **data, "train.duration": "5 steps", **overrides}
        lines = "".join(f"  {name}: {value}\n" for name, value in options.items())
        head = f"study_dir: {self.directory}\nconfig: {CONFIG}\noverrides:\n{lines}"
        sweep = "" if "evaluate:" in text else "evaluate: {capacity_factors: [0.5, 0], top_k: [1]}\n"
        self.file.write_text(head + sweep + text + "\n")

    def rule(self, kind: str, word: str = "", rest: str = "") -> None:
        """`fail-train`, `slow-train`, `fail-eval`: for the trials with that word in their names."""
        (self.directory / kind).write_text(f"{word}|{rest}")

    def say(self, *arguments: str) -> Said:
        """`swin-moe study ...`."""
        code = main(["study", *arguments])
        return Said(code, *self._capsys.readouterr())

    def run(self, *options: str) -> Said:
        """`swin-moe study run`."""
        return self.say("run", str(self.file), *options)

    def states(self) -> dict[str, tuple[str, str]]:
        """The state of every trial and its reason, by the part of its name before the seed."""
        found = json.loads(self.say("status", str(self.directory), "--json").out)["cells"]
        return {trial["name"].rpartition(",")[0]: (trial["state"], trial["reason"]) for trial in found}

    def calls(self) -> list[tuple[str, str]]:
        """Every command so far, with its trial."""
        path = self.directory / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(command, name.rpartition(",")[0]) for command, name, *_ in map(json.loads, lines)]


@pytest.fixture
def study(
    tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> FakeStudy:
    """A study whose trials take milliseconds."""
    program, script = tmp_path / "program", tmp_path / "trial.py"
    script.write_text(PROGRAM)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E {script} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setattr("launcher.study.run.worker.sys", type("sys", (), {"executable": str(program)}))
    monkeypatch.setattr("launcher.study.run.run.POLL_S", 0.01)
    return FakeStudy(tmp_path, shards, capsys)
