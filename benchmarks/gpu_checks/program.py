"""The command line from end to end, as a user runs it: pack, train, stop, resume, evaluate, export."""

import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from gpu_checks.commands import ROOT, Ended, Running, begin, compute_apps, family, launch
from gpu_checks.place import CheckContext, Row, row

CONFIG = ROOT / "configs" / "demo_cpu.yaml"
EXACT = ("loss", "aux_loss", "lr", "grad_norm", "dropped_fraction")  # of a step, whatever interrupted the run
CLASSES = 10
STOPPED = 75  # the exit status of a run that was asked to stop
COMMAND_S, COMPILE_S, REHEARSED_S = 80.0, 110.0, 230.0
RUNS_DIFFER = 0.1  # relative: last losses of two runs in bf16 whose sums are in another order
DTYPES_DIFFER = 0.03  # of the loss in fp32 and in bf16


class Sizes:
    """Of the data, the model and the run."""

    def __init__(self, rehearsal: bool) -> None:
        self.side = 28 if rehearsal else 64
        self.images = {"train": 160, "val": 40} if rehearsal else {"train": 2000, "val": 500}
        self.steps, self.save, self.stop = (10, 4, 6) if rehearsal else (240, 50, 80)
        model = (
            "image_size=16 window_size=2 embed_dim=16 depths=[1,1] num_heads=[2,4] moe.blocks=[[],[0]]"
            " moe.routing_group_images=4"
            if rehearsal
            else "image_size=64 window_size=8 embed_dim=64 depths=[2,2] num_heads=[2,4]"
        )
        global_batch, micro, evaluated = (16, 8, 20) if rehearsal else (128, 64, 128)
        self.options = [
            *(f"model.{option}" for option in model.split()),
            *("model.drop_path_rate=0.1", "model.moe.expert_dropout=0.1", "model.moe.top_k=2"),
            *(f"train.global_batch_size={global_batch}", f"train.micro_batch_size={micro}"),
            *(f"train.eval_batch_size={evaluated}", "train.precision=bf16"),
            *("data.mean=[0.5,0.5,0.5]", "data.std=[0.25,0.25,0.25]", "data.augment={}"),
            *("optim.warmup=2 steps", "optim.base_lr=4.0e-3", "parallel.ep_size=1"),
            *("parallel.collective_timeout_s=60", "checkpoint.keep_last=9"),
        ]

    def of_run(self, place: CheckContext, name: str) -> list[str]:
        """The options of a run of all steps."""
        return [
            *self.of_short_run(place, name, self.steps),
            f"train.eval_every={self.steps // 2} steps",
            f"checkpoint.every={self.save} steps",
        ]

    def of_short_run(self, place: CheckContext, name: str, steps: int) -> list[str]:
        """The options of a run that is evaluated and saved at its end alone."""
        shards = place.folder / "shards"
        places = [f"data.train={shards}/train", f"data.val={shards}/val", f"run_dir={place.folder / name}"]
        return [*self.options, *places, f"train.duration={steps} steps"]


def patience(place: CheckContext) -> float:
    """Seconds for a command: on a GPU a hang must leave time for the rest; a CPU may have other work."""
    return REHEARSED_S if place.rehearsal else COMMAND_S


def train_stop_resume(place: CheckContext) -> Iterator[Row]:
    """All of it; what needs a run that failed is left out."""
    sizes = Sizes(place.rehearsal)
    yield from _pack(place, sizes)
    whole, parted = place.folder / "whole", place.folder / "parted"
    line = ["launcher", "train", CONFIG, "--resume", "auto"]
    first = begin(place, "whole", [*line, *sizes.of_run(place, "whole")])
    second = begin(place, "parted", [*line, *sizes.of_run(place, "parted")])
    contexts = Contexts([first, second])
    if place.on_gpu:
        contexts.thread.start()
    reached = _stop_at(sizes.stop, second, parted, patience(place))
    stopped = second.wait(patience(place))
    stood_at = len(steps_of(parted))
    yield _said("train, SIGUSR1", stopped, STOPPED, signalled_after=reached, stopped_after=stood_at)
    third = begin(place, "resumed", [*line, *sizes.of_run(place, "parted")])
    contexts.watched.append(third)
    ended = first.wait(patience(place))
    yield _said("train", ended, images_s=_median([r["images_s"] for r in steps_of(whole)]))
    if ended.status == 0:
        yield from _trained(place, sizes, whole)
        yield from _evaluations(place, whole)
    ended = third.wait(patience(place))
    yield _said("train --resume auto", ended)
    if ended.status == 0:
        yield _same(steps_of(parted), steps_of(whole), stood_at, sizes.steps)
    if place.on_gpu:
        contexts.over.set()
        contexts.thread.join()
        yield contexts.row()
    yield from _further(place, sizes, whole)


# --- the data


def _pack(place: CheckContext, sizes: Sizes) -> Iterator[Row]:
    began = time.monotonic()
    draw_images(place.folder / "images", sizes)
    drawn_s = time.monotonic() - began
    source = ["--source", "folder", "--directory", place.folder / "images"]
    more = ["--out", place.folder / "shards", "--samples-per-shard", "500", "--workers", "2"]
    packed = launch(place, "pack", "shards", "pack", *source, *more, seconds=patience(place))
    yield _said("shards pack", packed, drawn_s=round(drawn_s, 1))
    if packed.status != 0:
        raise RuntimeError("nothing to train on")


def draw_images(folder: Path, sizes: Sizes) -> None:
    """PNG files of coloured shapes on noise; the class decides shape and colour, and not their place."""
    generator = np.random.default_rng(0)
    for split, count in sizes.images.items():
        for number in range(CLASSES):
            (folder / split / f"class{number}").mkdir(parents=True)
        for index in range(count):
            number = index % CLASSES
            image = draw(number, sizes.side, generator)
            image.save(folder / split / f"class{number}" / f"{index:05}.png", compress_level=1)


def draw(number: int, side: int, generator: np.random.Generator) -> Image.Image:
    """One image of a class: one of five shapes, in one of two colours."""
    noise = generator.integers(0, 96, (side, side, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    pen, colour = ImageDraw.Draw(image), (220, 60, 60) if number < 5 else (60, 120, 230)
    radius = side // 4 + int(generator.integers(0, side // 8))
    x, y = (int(v) for v in generator.integers(radius, side - radius, 2))
    box = (x - radius, y - radius, x + radius, y + radius)
    shape = number % 5
    if shape == 0:
        pen.ellipse(box, fill=colour)
    elif shape == 1:
        pen.rectangle(box, fill=colour)
    elif shape == 2:
        pen.rectangle((x - radius, y - radius // 3, x + radius, y + radius // 3), fill=colour)
    else:
        pen.regular_polygon((x, y, radius), 3 if shape == 3 else 5, fill=colour)
    return image


# --- the run that is stopped, and the one that is not


def steps_of(run: Path) -> list[dict[str, Any]]:
    """The records of a run's steps so far, without a line that is being written."""
    return [record for record in _records(run) if "loss" in record]


def _records(run: Path) -> list[dict[str, Any]]:
    file, found = run / "metrics.jsonl", []
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def _stop_at(step: int, running: Running, run: Path, seconds: float) -> int:
    """Ask a run to stop once it has taken so many steps; how many it had taken by then."""
    end = time.monotonic() + seconds
    while (taken := len(steps_of(run))) < step:
        if running.process.poll() is not None or time.monotonic() > end:
            break
        time.sleep(0.02)
    running.process.send_signal(signal.SIGUSR1)
    return taken


class Contexts:
    """How many contexts each training process has, looked up now and then by a thread (A4)."""

    PAUSE_S = 1.0

    def __init__(self, watched: Sequence[Running]) -> None:
        self.watched = list(watched)
        self.over, self.thread = threading.Event(), threading.Thread(target=self._watch, daemon=True)
        self.most: Counter[int] = Counter()  # by process
        self.devices: set[str] = set()
        self.looks, self.error, self.listed = 0, "", 0

    def _watch(self) -> None:
        while not self.over.wait(self.PAUSE_S):
            try:
                self._look()
            except Exception as error:
                self.error = f"{type(error).__name__}: {error}"[:200]

    def _look(self) -> None:
        apps = compute_apps()
        ours = {pid for one in self.watched for pid in family(one.process.pid)}
        counts = Counter(pid for _, pid, _ in apps if pid in ours)
        self.devices |= {uuid for uuid, pid, _ in apps if pid in ours}
        self.most |= counts
        self.looks, self.listed = self.looks + 1, max(self.listed, len(apps))

    def row(self) -> Row:
        """Each process has one; in a container the ids may be the host's, which say nothing."""
        seen = bool(self.most)
        good = max(self.most.values(), default=0) == 1 and len(self.most) <= len(self.watched)
        return row(
            "contexts of the training processes (A4)",
            ok=good if seen else None,
            processes_with_a_context=len(self.most),
            most_of_one=max(self.most.values(), default=0),
            gpus=len(self.devices),
            looks=self.looks,
            listed_in_all=self.listed,
            error=self.error,
        )


def _same(found: list[Row], wanted: list[Row], stood_at: int, steps: int) -> Row:
    """The resumed run against the uninterrupted one, step by step.

    Runs on a GPU may differ in their last bits, because some sums have no fixed order. A difference that
    starts at the very step after the stop is of the resume.
    """
    numbers = [record["step"] for record in found]
    complete = numbers == [record["step"] for record in wanted] == list(range(1, steps + 1))
    differing = [a["step"] for a, b in zip(found, wanted, strict=False) if any(a[k] != b[k] for k in EXACT)]
    errors = [abs(a["loss"] - b["loss"]) / abs(b["loss"]) for a, b in zip(found, wanted, strict=False)]
    first = differing[0] if differing else None
    largest = float(torch.tensor(errors).max()) if errors else float("nan")
    tenth = max(1, steps // 10)
    ends = [sum(record["loss"] for record in records[-tenth:]) for records in (found, wanted)]
    return row(
        "the resumed run is the uninterrupted one",
        ok=complete and first != stood_at + 1 and abs(ends[0] / ends[1] - 1) <= RUNS_DIFFER,
        equal_bits=not differing,
        first_difference=first,
        stopped_after=stood_at,
        differing_steps=len(differing),
        largest_before_stop=float(torch.tensor(errors[:stood_at] or [0.0]).max()),
        largest_difference=largest,
        every_step_once=complete,
    )


def _trained(place: CheckContext, sizes: Sizes, run: Path) -> Iterator[Row]:
    """Whether it learned anything, and how its saves went."""
    records = _records(run)
    losses = [record["loss"] for record in records if "loss" in record]
    evaluations = [record for record in records if "eval_loss" in record]
    saves = [record for record in records if "save_s" in record]
    tenth = max(1, len(losses) // 10)
    begun, ended = (sum(part) / tenth for part in (losses[:tenth], losses[-tenth:]))
    yield row(
        "the loss falls",
        ok=None if place.rehearsal else ended < begun,
        first_loss=begun,
        last_loss=ended,
        top1=[round(record["eval_top1"], 4) for record in evaluations],
        skipped=max(record.get("skipped_steps", 0) for record in records),
        data_wait_ms=_median([r["data_wait_s"] for r in records if "data_wait_s" in r]) * 1e3,
        step_ms=_median([_global(sizes) / r["images_s"] * 1e3 for r in records if "images_s" in r]),
    )
    bad = [record["save_error"] for record in saves if record["save_error"]]
    yield row(
        "saves",
        ok=bool(saves) and not bad,
        saves=len(saves),
        stall_ms=[round(record["save_stall_s"] * 1e3, 1) for record in saves],
        copy_ms=[round(record["save_copy_s"] * 1e3, 1) for record in saves],
        mb=saves[-1]["save_bytes"] / 1e6 if saves else None,
        errors="; ".join(map(str, bad)),
    )


def _global(sizes: Sizes) -> int:
    return next(int(o.partition("=")[2]) for o in sizes.options if o.startswith("train.global_batch_size"))


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2] if values else float("nan")


# --- what is asked of the trained weights


def _evaluations(place: CheckContext, run: Path) -> Iterator[Row]:
    """In the run's precision it is the evaluation of its training, in fp32 it is close to it (A5)."""
    trained = [record for record in _records(run) if "eval_loss" in record][-1]
    before: dict[str, float] = {}
    for precision in ("bf16", "fp32"):
        more = [] if precision == "bf16" else ["--precision", "fp32"]
        ended = launch(place, f"eval-{precision}", "eval", run, *more, seconds=patience(place))
        yield _said(f"eval {' '.join(more)}".strip(), ended)
        files = sorted((run / "eval").glob("*/evaluation.json"))
        if ended.status or not files:
            continue
        told = json.loads(files[-1].read_text())
        mode = told["modes"][-1]  # at the capacity of training's own evaluations, where there is one
        error = min(abs(one["loss"] - trained["eval_loss"]) / trained["eval_loss"] for one in told["modes"])
        before[precision] = mode["loss"]
        bound = 2e-3 if precision == "bf16" else DTYPES_DIFFER
        yield row(
            f"eval in {precision} against the evaluation in training",
            ok=told.get("precision") == precision and error <= bound,
            precision=told.get("precision"),
            loss_error=error,
            bound=bound,
            top1=mode["top1"],
            images_s=mode["images_s"],
        )


def _further(place: CheckContext, sizes: Sizes, run: Path) -> Iterator[Row]:
    """Everything else, side by side: other evaluations, weights, compiled blocks, a profile."""
    weights = place.folder / "weights.safetensors"
    exported = launch(place, "export", "export", run, weights, seconds=patience(place))
    yield _said("export", exported)
    more = ["--sweep-capacity", "0.5,1.25,0", "--sweep-top-k", "1,2", "--few-shot", "2", "--knn", "5"]
    passes = ["--throughput", "--passes", 3 if place.rehearsal else 20, "--confusion", "--affinity"]
    started: dict[str, Running] = {}
    if not place.rehearsal:  # minutes of compiling on a CPU
        line = [*sizes.of_short_run(place, "compiled", 4), "train.compile=true"]
        cache = str(place.folder / "inductor")
        started["train, compiled"] = begin(
            place, "compiled", ["launcher", "train", CONFIG, *line], TORCHINDUCTOR_CACHE_DIR=cache
        )
    started["eval with everything"] = begin(place, "studies", ["launcher", "eval", run, *more, *passes])
    if exported.status == 0:
        line = [*sizes.of_short_run(place, "pretrained", 2), "train.eval_first=true", "--nproc", "1"]
        started["train --pretrained"] = begin(
            place, "pretrained", ["launcher", "train", CONFIG, *line, "--pretrained", weights]
        )
        yield from _load(place, run, weights)
    if not place.rehearsal:
        profile = place.folder / "here.yaml"
        started["plan --calibrate"] = begin(place, "calibrate", ["launcher", "plan", "--calibrate", profile])
    for name in reversed(started):  # what compiles is waited for last
        ended = started[name].wait(COMPILE_S if "compiled" in name else patience(place))
        yield _said(name, ended)
        if ended.status == 0:
            yield from _results(name, place, run)


def _load(place: CheckContext, run: Path, weights: Path) -> Iterator[Row]:
    """Exported weights as a library loads them, on the device."""
    import swin_moe
    from launcher.config.load import load_config

    try:
        config = load_config(run / "config.yaml", [])
        model = swin_moe.build_model(config.model)
        said = str(swin_moe.load_weights(model, weights))
        model = model.to(place.device).eval()
        side = config.model.image_size
        with torch.no_grad():
            logits = model(torch.randn(4, 3, side, side, device=place.device)).logits.float().cpu()
        yield row("load_weights", ok=bool(torch.isfinite(logits).all()), said=said.splitlines()[-1][:200])
    except Exception as error:
        yield row("load_weights", ok=False, error=f"{type(error).__name__}: {error}"[:300])


def _results(name: str, place: CheckContext, run: Path) -> Iterator[Row]:
    """What a further command has left behind."""
    if name == "train --pretrained":
        trained = [record["eval_loss"] for record in _records(run) if "eval_loss" in record]
        first = next((r for r in _records(place.folder / "pretrained") if "eval_loss" in r), None)
        error = abs(first["eval_loss"] / trained[-1] - 1) if first and trained else float("nan")
        yield row("exported weights evaluate as the run did", ok=error <= 5e-3, loss_error=error, bound=5e-3)
    if name == "train, compiled":
        records = steps_of(place.folder / "compiled")
        plain = steps_of(run)[: len(records)]
        errors = [abs(a["loss"] / b["loss"] - 1) for a, b in zip(records, plain, strict=False)]
        # the schedule is another, as the run is shorter: the first steps alone are alike
        yield row(
            "compiled blocks", ok=bool(errors) and errors[0] <= 1e-2, loss_error=errors[:1], steps=len(errors)
        )
    if name == "eval with everything":
        files = sorted((run / "eval").glob("*/throughput.json"))
        for mode in json.loads(files[-1].read_text())["modes"] if files else ():
            ms = {f"{key}_ms": mode[f"{key}_s"] * 1e3 for key in ("median", "fastest", "slowest")}
            yield row(f"throughput, {mode['way']}", images_s=mode["images_s"], **ms, batch=mode["batch_size"])


def _said(name: str, ended: Ended, wanted: int = 0, **numbers: object) -> Row:
    """A row of a command; what it wrote goes to the log where it failed."""
    if ended.status != wanted:
        print(f"--- {name}\n{ended.out[-3000:]}\n{ended.err[-6000:]}", flush=True)
    return row(f"swin-moe {name}", ok=ended.status == wanted, **ended.said, **numbers)
