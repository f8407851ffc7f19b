"""What srun said on its standard error of how tasks and nodes ended (Slurm 22.05 and newer); without torch.

srun: error: n2: task 1: Killed
srun: error: n1: tasks 0,2-3: Exited with exit code 81
srun: error: Node failure on n3
slurmstepd: error: *** STEP 12.0 ON n1 CANCELLED AT 2026-11-23T02:32:29 DUE TO TIME LIMIT ***
slurmstepd: error: Detected 1 oom-kill event(s) in StepId=12.0. Some of your processes may have been ...
"""

import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["signal", "exit", "memory", "node", "limit", "preempted", "launch"]

TASKS = re.compile(r"srun: error: (?P<node>\S+): tasks? (?P<tasks>[\d,\-]+): (?P<how>.+)")
EXITED = re.compile(r"Exited with exit code (\d+)")
MARKS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("limit", re.compile(r"(?:STEP|JOB) \S+ ON (?P<node>\S+) CANCELLED AT \S+ DUE TO TIME LIMIT")),
    ("preempted", re.compile(r"(?:STEP|JOB) \S+ ON (?P<node>\S+) CANCELLED AT \S+ DUE TO PREEMPTION")),
    ("node", re.compile(r"Node failure on (?P<node>\S+)")),
    ("node", re.compile(r"(?:STEP|JOB) \S+ ON (?P<node>\S+) CANCELLED AT \S+ DUE TO NODE FAILURE")),
    ("memory", re.compile(r"Detected \d+ oom.kill event|cgroup out-of-memory handler")),
    ("launch", re.compile(r"srun: error: .*(?:Unable to create step|Task launch .* failed|launch failed)")),
)
SIGNALS = {signal.strsignal(number): number for number in signal.Signals}


@dataclass(frozen=True, kw_only=True)
class Event:
    """One line that tells how something ended.

    Args:
        kind: what befell it.
        line: the whole line.
        tasks: of the step, which are ranks; empty where the line names none.
        node: where, by Slurm's name; "" where the line names none.
        number: the signal, or the exit status.
    """

    kind: Kind
    line: str
    tasks: tuple[int, ...] = ()
    node: str = ""
    number: int = 0


def events(text: str) -> list[Event]:
    """Every event, in the order in which srun learnt of them."""
    parsed = (_event(line.strip()) for line in text.splitlines())
    return [event for event in parsed if event is not None]


def _event(line: str) -> Event | None:
    if match := TASKS.search(line):
        kind, number = _how(match["how"])
        tasks = tuple(numbers(match["tasks"]))
        return Event(kind=kind, line=line, tasks=tasks, node=match["node"], number=number) if kind else None
    for kind, pattern in MARKS:
        if match := pattern.search(line):
            return Event(kind=kind, line=line, node=match.groupdict().get("node", ""))
    return None


def _how(text: str) -> tuple[Kind | None, int]:
    """`Killed (core dumped)`, `Out Of Memory`, `Exited with exit code 137` (a shell's word for SIGKILL)."""
    if match := EXITED.match(text):
        number = int(match[1])
        return ("signal", number - 128) if 128 < number <= 128 + signal.SIGRTMAX else ("exit", number)
    if text.startswith("Out Of Memory"):
        return "memory", 0
    number = SIGNALS.get(text.removesuffix(" (core dumped)"), 0)
    return ("signal", number) if number else (None, 0)


def numbers(text: str) -> Iterator[int]:
    """`0,2-3` -> 0, 2, 3."""
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first.isdecimal():
            yield from range(int(first), int(last or first) + 1)
