"""Artifacts of `swin-moe deploy` beside eager models of the same weights, ours, transformers' and timm's.

    python benchmarks/deploy.py --quick                          # the demo's model: a few minutes
    python benchmarks/deploy.py --threads 1 --json deploy.json   # all models, about an hour
    python benchmarks/deploy.py --run runs/demo_cpu --quick      # with the weights and the accuracy of a run

A row has the largest difference of a logit to our eager model in fp32 over sixteen images, absolute; the size
of the program; and for each batch the median and the 95th percentile of wall milliseconds, and `ratio`, the
median over transformers' eager model (over our eager model where transformers has none). All programs of a
model take turns, a batch at a time, after calls that warm up and do not count. `--rounds` are those of one
image; batches of 8 and 32, whose times vary less, get a quarter and an eighth of them. Weights are drawn
unless --run names a run; the top-1 of its data.val is then printed for each artifact.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_shards.augment.normalize import Normalize
from data_shards.pack.sources.registry import synthetic
from data_shards.pack.write import pack
from launcher.console.columns import aligned
from launcher.deploy.artifact import load_artifact
from launcher.deploy.build import Request, deploy, eager_logits
from launcher.deploy.data import Places, places_of
from launcher.deploy.options import DeployOptions
from launcher.deploy.source import load_classifier
from launcher.deploy.split import Split
from launcher.evaluation.loaded import LoadedModel
from parallel.zero.options import Precision
from swin_moe.errors import ModelError
from swin_moe.frozen.model import FrozenClassifier
from swin_moe.weights.export import save_weights

Run = Callable[[Tensor], Tensor]  # images (B, 3, h, w) to logits (B, K)
MODELS = {
    "Swin-T": "swin_tiny_patch4_window7_224",
    "SwinV2-T": "swinv2_tiny_patch4_window8_256",
    "Swin-MLP-T": "swin_mlp_tiny_c24_patch4_window8_256",
    "Swin-MoE-S, 8 experts": "swin_moe_small_patch4_window12_192_8expert_32gpu_22k",
    "the demo's": "demo_cpu",
}
TIMM = {"Swin-T": "swin_tiny_patch4_window7_224", "SwinV2-T": "swinv2_tiny_window8_256"}
TARGETS: tuple[tuple[Any, Precision], ...] = (
    ("pt2", "fp32"),
    ("pt2", "bf16"),
    ("onnx", "fp32"),
    ("onnx-int8", "fp32"),
)
BATCHES = (1, 8, 32)
SHARE = {1: 1, 8: 4, 32: 8}  # by which the rounds of a batch are divided
LEAST_ROUNDS = 5
WARM_UP = 2  # calls of each program and batch
Row = dict[str, Any]


def main() -> None:
    """Print a table for each model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the demo's model, few rounds")
    parser.add_argument("--only", choices=MODELS, help="one model")
    parser.add_argument("--run", help="take the weights of the demo's model from a run")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, help="of one image; default: 40, or 20 with --quick")
    parser.add_argument("--programs", default="", help="those whose names contain one of these: onnx,timm")
    parser.add_argument("--skip", default="none", help="but those whose names contain one of these: bf16")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rounds = args.rounds or (20 if args.quick else 40)
    names = [args.only] if args.only else ["the demo's"] if args.quick else list(MODELS)
    rows: list[Row] = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            run = args.run if name == "the demo's" else None
            rows += measure(name, run, Path(folder), rounds, args.programs.split(","), args.skip.split(","))
    if args.json:
        args.json.write_text(json.dumps({"threads": args.threads, "rounds": rounds, "rows": rows}, indent=1))


def measure(
    name: str, run: str | None, folder: Path, rounds: int, wanted_programs: list[str], skipped: list[str]
) -> list[Row]:
    """The rows of a model, which are printed too."""
    source = run or MODELS[name]
    loaded = load_classifier(source)
    places = places_of(source, None, None, None) if run else made_up(loaded, folder)
    programs: dict[str, tuple[Run, Row]] = {}
    for label, make in contestants(name, loaded, source, places, folder).items():
        chosen = any(part in label for part in wanted_programs) and not any(part in label for part in skipped)
        if label != "ours eager" and not chosen:
            continue
        try:
            programs[label] = make()
        except (ImportError, KeyError, ModelError) as error:
            print(f"{name}, without {label}: {error}")
    images = pictures(loaded, places)
    wanted = eager_logits(loaded, torch.device("cpu"), images[:16])
    for program, row in programs.values():
        row["difference"] = (program(images[:16]) - wanted).abs().max().item()
    for batch in BATCHES:
        count = max(LEAST_ROUNDS, rounds // SHARE[batch])
        times_ms = in_turns(
            {label: program for label, (program, _) in programs.items()}, images[:batch], count
        )
        medians = {label: statistics.median(values) for label, values in times_ms.items()}
        base = medians.get("transformers eager", medians["ours eager"])
        for label, values in times_ms.items():
            of_batch = {"p50_ms": medians[label], "p95_ms": statistics.quantiles(values, n=20)[-1]}
            programs[label][1][f"batch_{batch}"] = of_batch | {"ratio": medians[label] / base}
    rows = [{"model": name, "program": label, **row} for label, (_, row) in programs.items()]
    print(f"\n{name} ({source}), {torch.get_num_threads()} threads, largest logit {wanted.abs().max():.2f}")
    print("\n".join(aligned([head(), *map(cells, rows)], right=True)), flush=True)
    return rows


def contestants(
    name: str, loaded: LoadedModel, source: str, places: Places, folder: Path
) -> dict[str, Callable[[], tuple[Run, Row]]]:
    """What makes each program of a model, by name."""
    artifacts = {
        target if precision == "fp32" else f"{target} {precision}": partial(
            in_artifact, target, precision, source, places, folder
        )
        for target, precision in TARGETS
    }
    return {
        "ours eager": lambda: (partial(eager_logits, loaded, torch.device("cpu")), {}),
        "ours frozen": lambda: (first_of(FrozenClassifier(loaded.model)), {}),
        "ours compiled": lambda: (first_of(torch.compile(FrozenClassifier(loaded.model))), {}),
        "transformers eager": lambda: (in_transformers(loaded, folder), {}),
        "timm eager": lambda: (in_timm(name, loaded, folder), {}),
        **artifacts,
    }


def first_of(program: Any) -> Run:
    """The logits of a program that gives more."""
    return lambda images: program(images)[0]


def in_artifact(
    target: Any, precision: Precision, source: str, places: Places, folder: Path
) -> tuple[Run, Row]:
    """An artifact, with its size and accuracy."""
    out = folder / f"{target}-{precision}"
    options = DeployOptions(target=target, precision=precision, out=out)
    deploy(Request(source=source, options=options, places=places), say=lambda text: None)
    artifact = load_artifact(out)
    checked = artifact.card.checked
    row = {"size_mib": artifact.card.program.size_bytes / 2**20, "top1": checked and checked.top1}
    return (lambda images: artifact.run(images).logits), row


def in_transformers(loaded: LoadedModel, folder: Path) -> Run:
    """Their model with our weights."""
    from transformers import AutoModelForImageClassification

    path = save_weights(loaded.model, folder / "hf", "hf")
    model = AutoModelForImageClassification.from_pretrained(path).eval()

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = model(images).logits
        return logits

    return run


def in_timm(name: str, loaded: LoadedModel, folder: Path) -> Run:
    """Its model with our weights."""
    import timm  # type: ignore[import-not-found, unused-ignore]

    path = save_weights(loaded.model, folder / "timm.pth", "timm")
    model = timm.create_model(TIMM[name], num_classes=loaded.model.config.num_classes).eval()
    model.load_state_dict(torch.load(path, weights_only=True), strict=False)  # its masks are buffers

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = model(images)
        return logits

    return run


def pictures(loaded: LoadedModel, places: Places) -> Tensor:
    """The images that every program gets: of the split, drawn by a seed, and normalized."""
    place = places.val or places.train
    assert place is not None
    split = Split(place=place, sides=loaded.model.config.image_sides, inputs=loaded.inputs)
    normalize = Normalize(loaded.inputs.mean, loaded.inputs.std, torch.device("cpu"))
    return normalize(split.draw(max(BATCHES), seed=9))


def made_up(loaded: LoadedModel, folder: Path) -> Places:
    """Shards of synthetic images for golden images and calibration; their labels mean nothing."""
    side = max(loaded.model.config.image_sides)
    pack(synthetic(128, 1, num_classes=10, image_size=side), "train", folder / "train")
    return Places(train=str(folder / "train"))


def in_turns(programs: dict[str, Run], images: Tensor, rounds: int) -> dict[str, list[float]]:
    """Wall milliseconds of each program in each round."""
    for program in programs.values():
        for _ in range(WARM_UP):
            program(images)
    times_ms: dict[str, list[float]] = {label: [] for label in programs}
    for _ in range(rounds):
        for label, program in programs.items():
            began = time.perf_counter()
            program(images)
            times_ms[label].append(1e3 * (time.perf_counter() - began))
    return times_ms


def head() -> list[str]:
    """The names of the columns."""
    of_batches = [f"{what} b{batch}" for batch in BATCHES for what in ("p50", "p95", "ratio")]
    return ["program", "difference", "MiB", "top-1", *of_batches]


def cells(row: Row) -> list[str]:
    """A row as text."""
    size, top1 = row.get("size_mib"), row.get("top1")
    first = [f"{row['difference']:.1e}", f"{size:.1f}" if size else "", f"{top1:.2%}" if top1 else ""]
    times = [row[f"batch_{batch}"] for batch in BATCHES]
    shown = [f"{one[key]:.2f}" for one in times for key in ("p50_ms", "p95_ms", "ratio")]
    return [row["program"], *first, *shown]


if __name__ == "__main__":
    main()
