"""Our engine at every ZeRO stage and precision against the CPU."""

import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from gpu_checks.commands import ON_CPU, Running, begin
from gpu_checks.place import CheckContext, Row, row

REFERENCE, STEPS, AT_A_TIME, CASES_S = "1-fp32", 4, 3, 200.0
BOUNDS = {"fp32": 1e-4, "bf16": 3e-2, "fp16": 3e-2}  # relative, of losses and of the weights
FP32_STAGES = 1e-5  # of fp32 at one stage against another, on the same device
GROUPS = (  # a process each: the default of a run first
    ("1-bf16", "1-fp32", "1-fp16"),
    ("3-bf16", "3-fp32", "3-fp16"),
    ("0-fp32", "0-bf16", "0-fp16"),
    ("2-bf16", "2-fp32", "2-fp16"),
)
OFFLOADED = ("1-bf16-offload", "2-fp32-offload", "3-bf16-offload")
REHEARSED = (("1-bf16", "1-fp32", "0-bf16", "3-fp32"),)
Outcome = dict[str, Any]


def stages(place: CheckContext) -> Iterator[Row]:
    """Losses and masters of a few steps against the CPU's in fp32, and a step that a NaN spoils."""
    groups = [*(REHEARSED if place.rehearsal else GROUPS)]
    compiler = shutil.which("c++") and shutil.which("g++")
    if not place.rehearsal and compiler:
        groups.insert(1, OFFLOADED)  # early, as its operator is compiled first
    else:
        yield row("CPU offload", note="left out in the rehearsal" if compiler else "no C++ compiler here")
    found: dict[str, Outcome] = {}
    for name, outcome in outcomes(place, groups):
        found[name] = outcome
        if REFERENCE + "-reference" not in found:
            continue
        reference = found[REFERENCE + "-reference"]
        for known in [key for key in found if not key.endswith("-reference")]:
            if "told" not in found[known]:
                found[known]["told"] = True
                yield from judge(known, found[known], reference)
    yield from _stages_agree(found)


def outcomes(place: CheckContext, groups: Sequence[Sequence[str]]) -> Iterator[tuple[str, Outcome]]:
    """What each case found, as it is known; the CPU's reference is called so.

    A process that dies costs the case that it was at: the next one goes on with the others.
    """
    waiting = [_Group.reference(place), *(_Group(place, names) for names in groups)]
    running: list[_Group] = []
    end = time.monotonic() + CASES_S
    while waiting or running:
        while waiting and len(running) < AT_A_TIME:
            running.append(waiting.pop(0))
            running[-1].begin()
        time.sleep(0.1)
        for group in list(running):
            has_ended = group.has_ended(end)
            yield from group.new()
            if has_ended:
                running.remove(group)
                waiting[:0] = group.rest()


class _Group:
    """Cases of one process, one after the other."""

    made = 0

    def __init__(self, place: CheckContext, names: Sequence[str], *, is_reference: bool = False) -> None:
        self.place, self.is_reference = place, is_reference
        self.left = list(names)
        self.died: list[tuple[str, Outcome]] = []
        self.running: Running | None = None

    @staticmethod
    def reference(place: CheckContext) -> "_Group":
        """The CPU's, in fp32."""
        return _Group(place, [REFERENCE], is_reference=True)

    @property
    def folder(self) -> Path:
        return self.place.folder / ("reference" if self.is_reference else "cases")

    def begin(self) -> None:
        """Start the process."""
        self.folder.mkdir(exist_ok=True)
        on_gpu = self.place.on_gpu and not self.is_reference
        steps = 2 if self.place.rehearsal else STEPS
        arguments = ["gpu_checks.stage_cases", self.folder, "cuda" if on_gpu else "cpu", steps, *self.left]
        _Group.made += 1
        self.running = begin(self.place, f"cases-{_Group.made}", arguments, **({} if on_gpu else ON_CPU))

    def has_ended(self, end: float) -> bool:
        """Whether the process is gone, of itself or at the end of its time."""
        assert self.running is not None
        if self.running.process.poll() is None and time.monotonic() < end:
            return False
        ended = self.running.wait(0.01)
        missing = [name for name in self.left if not (self.folder / f"{name}.pt").exists()]
        if missing:  # it died at the first of them
            print(ended.out[-3000:], ended.err[-6000:], flush=True)
            said = ended.last_line or "no word"
            self.died.append((missing[0], {"error": f"its process ended with {ended.status}: {said}"}))
        return True

    def new(self) -> Iterator[tuple[str, Outcome]]:
        """Cases whose outcome was not there before."""
        suffix = "-reference" if self.is_reference else ""
        for name in [name for name in self.left if (self.folder / f"{name}.pt").exists()]:
            self.left.remove(name)
            yield name + suffix, torch.load(self.folder / f"{name}.pt", map_location="cpu")
        for name, outcome in self.died:
            self.left.remove(name)
            yield name + suffix, outcome
        self.died = []

    def rest(self) -> list["_Group"]:
        """What a process that died has left undone."""
        return [_Group(self.place, self.left, is_reference=self.is_reference)] if self.left else []


def judge(name: str, found: Outcome, reference: Outcome) -> Iterator[Row]:
    """The rows of one case."""
    stage, precision, *offload = name.split("-")
    what = f"ZeRO {stage}, {precision}{', offloaded' if offload else ''}"
    if "error" in reference:
        yield row(what, ok=False, error=f"no reference: {reference['error']}")
        return
    if "error" in found:
        lacks = precision == "fp16" and "not supported on your device" in found["error"]
        yield row(what, ok=None if lacks else False, error=found["error"], at=found.get("at", ""))
        return
    bound = BOUNDS[precision]
    loss, weights = loss_error(found, reference), weight_error(found, reference)
    yield row(
        what,
        ok=max(loss, weights) <= bound and found["finite"] and not any(found["skipped"]),
        loss_error=loss,
        weight_error=weights,
        bound=bound,
        losses=[round(value, 5) for value in found["losses"]],
        skipped=sum(found["skipped"]),
        optimizer=found["optimizer"],
        peak_gb=found["peak_gb"],
        seconds=round(found["seconds"], 1),
    )
    wanted = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[precision]
    same = found["computes_in"] == wanted
    # at stage 3 weights made under zero.Init stay in fp32: DeepSpeed casts none that it has cut
    yield row(
        f"{what}: computes in it",
        ok=True if same else None if stage == "3" else False,
        computes_in=found["computes_in"],
        wanted=wanted,
    )
    spoiled = found["spoiled"]
    good = spoiled["skipped"] and spoiled["kept_weights"] and spoiled["next_is_taken"]
    halved = spoiled["scale_ratio"] == (0.5 if precision == "fp16" else None)
    yield row(f"{what}: a NaN gradient is skipped", ok=good and halved, **spoiled)


def loss_error(found: Outcome, reference: Outcome) -> float:
    """The largest relative difference of a step's loss."""
    pairs = zip(found["losses"], reference["losses"], strict=True)
    errors = torch.tensor([abs(a - b) / abs(b) for a, b in pairs])
    return float(errors.max())  # of a NaN a NaN


def weight_error(found: Outcome, reference: Outcome) -> float:
    """|difference| / |weights| over all parameters."""
    wanted, got = reference["weights"], found["weights"]
    squares = [
        ((got[name] - w).double().square().sum(), w.double().square().sum()) for name, w in wanted.items()
    ]
    difference, size = (torch.stack(parts).sum().sqrt() for parts in zip(*squares, strict=True))
    return float(difference / size)


def _stages_agree(found: dict[str, Outcome]) -> Iterator[Row]:
    known = {name: one for name, one in found.items() if name.endswith("-fp32") and "error" not in one}
    first = known.pop(REFERENCE, None)
    for name, one in known.items() if first else ():
        loss, weights = loss_error(one, first), weight_error(one, first)
        yield row(
            f"fp32: ZeRO {name[0]} against 1 on the same device",
            ok=max(loss, weights) <= FP32_STAGES,
            loss_error=loss,
            weight_error=weights,
            bound=FP32_STAGES,
        )
