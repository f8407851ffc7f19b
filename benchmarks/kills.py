"""How often may a run be killed: SIGKILL of one rank or of all, at random moments, until the run is done.

    python -m benchmarks.kills                          # 100 kills of 2 ranks, some minutes on two cores
    python -m benchmarks.kills --kills 20 --ranks 4

Two runs of the same configuration: one that nothing befalls, and one that is killed and resumed with
`--resume auto` again and again. Every loss, norm, evaluation and the order of the samples must be equal, bit
for bit, and after every kill the checkpoint that the pointer names must verify. A third run is stopped by
SIGUSR1, for the time from the signal to the committed checkpoint. Ranks are forked, to start in less time.
"""

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from data_shards.pack.sources.registry import synthetic
from data_shards.pack.write import pack
from parallel.checkpoint.commit import latest
from parallel.checkpoint.manifest import read_manifest
from parallel.checkpoint.verify import verify_files
from tests.faults import Ended, run
from tests.launcher.running import CONFIG, overrides, steps
from tests.launcher.short_run import assert_same


def main() -> None:
    """Run all three and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=120, help="of the run; kills beyond it start it anew")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(args, Path(folder))


def measure(args: argparse.Namespace, folder: Path) -> None:
    """The three runs."""
    for split in ("train", "val"):
        source = synthetic(256, 64, num_classes=10, image_size=32)
        pack(source, split, folder / "data" / split, samples_per_shard=64)
    reference = folder / "reference"
    start_s = time.monotonic()
    ended = run(args.ranks, line(folder, reference, args), timeout_s=3600)
    assert {rank.code for rank in ended} == {0}, ended[0].err
    straight_s = time.monotonic() - start_s
    print(f"uninterrupted: {args.steps} steps on {args.ranks} ranks in {straight_s:.0f} s", flush=True)
    killing = Killing(folder, args, straight_s)
    while killing.kills < args.kills:
        killing.run_until_done()
    took_s = time.monotonic() - start_s - straight_s
    print(
        f"{killing.kills} kills ({killing.of_all} of all ranks, {killing.of_one} of one) over {killing.runs} "
        f"run{'s' if killing.runs > 1 else ''}: {killing.starts} starts, {killing.redone} steps redone, "
        f"{len(killing.pointers)} checkpoints verified, {killing.unnamed} saves cut short, equal bit by bit: "
        f"{killing.runs}/{killing.runs}, in {took_s:.0f} s"
    )
    print(stopping(folder, args))


def line(folder: Path, run_dir: Path, args: argparse.Namespace) -> list[str]:
    """The command."""
    options = (
        f"train.duration={args.steps} steps",
        "train.eval_every=50 steps",
        "train.moe_load_every=1 steps",
        "checkpoint.every=5 steps",
        "checkpoint.crash_budget=0",
        f"parallel.ep_size={args.ranks}",
        f"train.micro_batch_size={16 // args.ranks}",
        "parallel.collective_timeout_s=60",
    )
    return ["train", str(CONFIG), "--resume", "auto", *overrides(folder / "data", run_dir, *options)]


class Killing:
    """One run after the other, killed until enough kills have been seen."""

    def __init__(self, folder: Path, args: argparse.Namespace, straight_s: float) -> None:
        self.folder, self.args, self.random = folder, args, random.Random(args.seed)
        # a session lives long enough to get on by some checkpoints, and is short against the run
        self.longest_s = max(1.0, straight_s / 12)
        self.kills = self.of_all = self.of_one = self.starts = self.redone = self.runs = self.unnamed = 0
        self.pointers: set[tuple[int, str]] = set()

    def run_until_done(self) -> None:
        """One run from nothing to its end."""
        self.runs += 1
        run_dir = self.folder / f"killed-{self.runs}"
        while True:
            self.starts += 1
            ended = self._session(run_dir)
            codes = {rank.code for rank in ended}
            if codes == {0}:
                break
            assert -signal.SIGKILL in codes, "\n".join(rank.err for rank in ended)
            assert None not in codes
            self._check(run_dir)
        assert_same(run_dir, self.folder / "reference")
        assert _samples(run_dir) == _samples(self.folder / "reference")
        shutil.rmtree(run_dir)

    def _session(self, run_dir: Path) -> list[Ended]:
        if self.kills >= self.args.kills:
            return run(self.args.ranks, line(self.folder, run_dir, self.args), timeout_s=3600)
        fired = threading.Event()

        def meddle(pids: list[int]) -> None:
            delay_s = self.random.uniform(0.0, self.longest_s)
            victims = pids if self.random.random() < 0.5 else [self.random.choice(pids)]

            def kill() -> None:
                # from the first step on the time runs: the start is long against a step
                _wait_for_growth(run_dir / "metrics.jsonl", pids)
                time.sleep(delay_s)
                for pid in victims:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        fired.set()
                self._was_all = len(victims) == len(pids)

            threading.Thread(target=kill, daemon=True).start()

        ended = run(self.args.ranks, line(self.folder, run_dir, self.args), meddle=meddle, timeout_s=600)
        if -signal.SIGKILL in {rank.code for rank in ended}:
            self.kills += 1
            self.of_all += self._was_all
            self.of_one += not self._was_all
        return ended

    def _check(self, run_dir: Path) -> None:
        """What the pointer names is whole; count the steps that the next session makes again."""
        path = latest(run_dir / "checkpoints")
        made = steps(run_dir)[-1]["step"] if (run_dir / "metrics.jsonl").exists() and steps(run_dir) else 0
        self.unnamed += len(list(run_dir.glob("checkpoints/*.tmp")))
        if path is None:
            self.redone += made
            return
        manifest = read_manifest(path)
        verify_files(path, manifest["files"])
        self.pointers.add((self.runs, path.name))
        self.redone += made - manifest["step"]


def _wait_for_growth(path: Path, pids: list[int]) -> None:
    """Until a session has written its first record, or is gone."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    while Path(f"/proc/{pids[0]}").exists():
        if path.exists() and path.stat().st_mtime_ns > before:
            return
        time.sleep(0.01)


def _samples(run_dir: Path) -> Any:
    """Where the stream stands at the end, and what the router saw on the way: a function of every sample."""
    tables = [record["tokens_per_expert"] for record in steps(run_dir) if "tokens_per_expert" in record]
    path = latest(run_dir / "checkpoints")
    assert path is not None
    return read_manifest(path)["state"]["data"], tables


def stopping(folder: Path, args: argparse.Namespace, times: int = 5) -> str:
    """The time from SIGUSR1 to a committed checkpoint."""
    found = []
    for number in range(times):
        run_dir = folder / f"stopped-{number}"

        def meddle(pids: list[int], run_dir: Path = run_dir) -> None:
            def ask() -> None:
                _wait_for_growth(run_dir / "metrics.jsonl", pids)
                time.sleep(0.5 + 0.1 * random.random())
                os.kill(pids[0], signal.SIGUSR1)

            threading.Thread(target=ask, daemon=True).start()

        ended = run(args.ranks, line(folder, run_dir, args), meddle=meddle, timeout_s=600)
        (told,) = re.findall(r"saved in ([\d.]+) s", ended[0].err)
        rates = [record["images_s"] for record in steps(run_dir)]
        found.append((float(told), 16 / statistics.median(rates)))
    seconds, step_s = (statistics.median(column) for column in zip(*found, strict=True))
    (saved, *_) = (
        json.loads(path.read_text()) for path in folder.glob("stopped-0/checkpoints/*/manifest.json")
    )
    megabytes = sum(entry["bytes"] for entry in saved["files"].values()) / 1e6
    return (
        f"SIGUSR1 to committed checkpoint: median {seconds:.2f} s of {times}, {seconds / step_s:.1f} steps "
        f"of {step_s * 1e3:.0f} ms ({megabytes:.1f} MB)"
    )


if __name__ == "__main__":
    main()
