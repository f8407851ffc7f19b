"""Representations on Fashion-MNIST: python benchmarks/ssl_fashion.py --out runs/ssl [--nproc 2]

Each arm pre-trains a Swin on the 60,000 training images, and its encoder is read in three ways:

    knn       the 20 nearest of the 60,000 training images vote for the class of each of 10,000 test images
    probe     configs/recipes/fashion_probe.yaml, a linear classifier on frozen features, all labels
    finetune  configs/recipes/fashion_finetune.yaml, the whole model, 2,000 labels

The arms `relation`, `convolution` ... are classifiers that differ in what mixes their tokens; their reading
is `top1`. Every run is a command of `swin-moe`. Runs that have finished are not run again; one that was
interrupted goes on. Needs data/fashion-mnist (`swin-moe shards pack`) and data/fashion-2000 (`swin-moe shards
split`, see configs/recipes/fashion_finetune.yaml). docs/ssl.md has the results.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev

from recipes import Runs, command, run_options

READINGS = ("knn", "probe", "finetune")
Figures = Mapping[str, Sequence[float]]  # by reading, one a seed

V2 = ("model.attention=cosine", "model.norm=post")  # the student of fashion_distill
STILL = ("optim.base_lr=0.0", "optim.warmup_lr=0.0", "optim.min_lr=0.0", "optim.weight_decay=0.0")
ONE_STEP = ("train.duration=1 steps", "optim.warmup=0 steps", "train.eval_every=null")
WIDE = ("model.embed_dim=32", "model.num_heads=[2, 4]")
NO_COLOURS = ("moby.colours.jitter_prob=0.0", "moby.colours.solarize_prob=[0.0, 0.0]")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """How the weights of an arm come about."""

    recipe: str  # of configs/recipes, without fashion_
    options: tuple[str, ...] = ()
    teacher: str | None = None  # the arm whose run is the teacher
    model: tuple[str, ...] = ()  # the options of the model, for the runs that start from the weights
    note: str = ""


REPRESENTATIONS = {
    "random": Arm(recipe="dense", options=(*WIDE, *STILL, *ONE_STEP), note="initial weights"),
    "simmim": Arm(recipe="simmim", options=("train.duration=4 epochs",), note="for as long as MoBY"),
    "moby": Arm(recipe="moby"),
    "supervised": Arm(recipe="dense", options=WIDE, note="saw 60,000 labels: an upper bound"),
    "scratch_v2": Arm(
        recipe="dense",
        options=(*WIDE, *V2, *STILL, *ONE_STEP),
        model=V2,
        note="initial weights of the student",
    ),
    "fd_moby": Arm(recipe="distill", teacher="moby", model=V2, note="the fair student: no labels"),
    "fd_supervised": Arm(
        recipe="distill", teacher="supervised", model=V2, note="its teacher saw 60,000 labels"
    ),
}
CONTROLS = {  # expected to be worse than `moby`; the first cannot learn
    "moby_pairs": Arm(
        recipe="moby",
        options=("task=benchmarks.random_pairs:SPEC",),
        note="positives are the keys of other samples",
    ),
    "moby_crops": Arm(recipe="moby", options=NO_COLOURS, note="views without changes of colour"),
    "moby_copy": Arm(
        recipe="moby",
        options=("moby.momentum=0.0", "moby.momentum_end=0.0"),
        note="the target follows at once",
    ),
}
MIXER = "model.local_relation"
KERNEL_3 = (f"{MIXER}.aggregation=convolution", f"{MIXER}.kernel_size=3", f"{MIXER}.share=2")
MIXERS = {  # 108,482 parameters, the convolutions 108,202
    "relation": Arm(recipe="local_relation"),
    "convolution": Arm(
        recipe="local_relation", options=KERNEL_3, note="3 x 3 in groups of 2 channels, as many parameters"
    ),
    "prior": Arm(
        recipe="local_relation", options=(f"{MIXER}.aggregation=prior",), note="static weights alone"
    ),
    "content": Arm(
        recipe="local_relation", options=(f"{MIXER}.aggregation=content",), note="similarities alone"
    ),
}
ARMS = REPRESENTATIONS | CONTROLS | MIXERS
PAIRS = (  # an arm, and what it is compared with
    ("simmim", "random"),
    ("moby", "random"),
    ("moby", "simmim"),
    ("moby", "supervised"),
    ("moby_pairs", "random"),
    ("moby_crops", "moby"),
    ("moby_copy", "moby"),
    ("fd_moby", "scratch_v2"),
    ("fd_moby", "moby"),
    ("fd_moby", "simmim"),
    ("fd_supervised", "scratch_v2"),
    ("fd_supervised", "fd_moby"),
    ("relation", "convolution"),
    ("relation", "prior"),
    ("relation", "content"),
)


def pretrain(runs: Runs, name: str, seed: int) -> Path:
    """Train an arm, and its teacher before it: its run directory."""
    arm = ARMS[name]
    teacher = [f"distill.teacher.weights={pretrain(runs, arm.teacher, seed)}"] if arm.teacher else []
    runs.train(arm.recipe, seed, *arm.options, *teacher, name=name)
    return runs.path(name, seed)


def neighbours(runs: Runs, name: str, seed: int) -> float:
    """Top-1 of 20 nearest neighbours, with all training images as the bank."""
    run = pretrain(runs, name, seed)
    if not (found := sorted(run.glob("eval/*/knn.json"))):
        command("eval", str(run), "--nproc", str(runs.nproc), "--knn", "20")
        found = sorted(run.glob("eval/*/knn.json"))
    figure: float = json.loads(found[-1].read_text())["top1"]
    return figure


def downstream(runs: Runs, name: str, seed: int, recipe: str) -> float:
    """Top-1 of a run of a recipe that starts from the encoder of an arm."""
    pretrain(runs, name, seed)
    file = runs.out / f"{name}_{seed}.safetensors"
    if not file.exists():
        command("export", str(runs.path(name, seed)), str(file))
    start = (f"train.pretrained={file}", "train.pretrained_head=replace")
    figure: float = runs.train(recipe, seed, *start, *ARMS[name].model, name=f"{name}_{recipe}")["top1"]
    return figure


def top1(runs: Runs, name: str, seed: int) -> float:
    """Top-1 of a classifier at the end of its run."""
    arm = ARMS[name]
    figure: float = runs.train(arm.recipe, seed, *arm.options, name=name)["top1"]
    return figure


def read(runs: Runs, name: str) -> Figures:
    """The figures of an arm, with what is missing run now."""
    if name in MIXERS:
        return {"top1": [top1(runs, name, seed) for seed in runs.seeds]}
    return {
        "knn": [neighbours(runs, name, seed) for seed in runs.seeds],
        "probe": [downstream(runs, name, seed, "probe") for seed in runs.seeds],
        "finetune": [downstream(runs, name, seed, "finetune") for seed in runs.seeds],
    }


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What one arm is above another in a reading, seed by seed."""

    arm: str
    over: str
    reading: str
    by_seed: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return mean(self.by_seed)

    @property
    def spread(self) -> float:
        """The deviation over the seeds; 0 of one seed."""
        return stdev(self.by_seed) if len(self.by_seed) > 1 else 0.0

    @property
    def verdict(self) -> str:
        """Whether the seeds agree: a difference within their spread is a tie."""
        if len(self.by_seed) < 2:
            return "one seed: no verdict"
        if abs(self.mean) <= self.spread:
            return "tie"
        return "better" if self.mean > 0 else "worse"


def gains(found: Mapping[str, Figures]) -> list[Gain]:
    """Every pair of arms that were read, in every reading that both have."""
    return [
        Gain(
            arm=arm,
            over=over,
            reading=reading,
            by_seed=tuple(a - b for a, b in zip(found[arm][reading], found[over][reading], strict=True)),
        )
        for arm, over in PAIRS
        if arm in found and over in found
        for reading in found[arm]
    ]


def show_arm(name: str, figures: Figures) -> None:
    """A line for each reading: mean, deviation, each seed."""
    note = f"  ({ARMS[name].note})" if ARMS[name].note else ""
    print(f"{name}{note}")
    for reading, values in figures.items():
        print(f"  {reading:<10} {_summary(values)}  ({', '.join(f'{value:.2%}' for value in values)})")


def show_gain(gain: Gain) -> None:
    """A line: the verdict and each seed, in points."""
    points = ", ".join(f"{100 * value:+.2f}" for value in gain.by_seed)
    what = f"{gain.arm} over {gain.over}, {gain.reading}"
    print(
        f"  {what:<42} {100 * gain.mean:+.2f} +- {100 * gain.spread:.2f} points: {gain.verdict}  ({points})"
    )


def _summary(values: Sequence[float]) -> str:
    spread = f" +- {100 * stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.2f}{spread} %"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = run_options(__doc__)
    parser.add_argument("--arms", default=",".join(REPRESENTATIONS), help=f"of {', '.join(ARMS)}")
    args = parser.parse_args()
    args.arms = args.arms.split(",")
    if unknown := [name for name in args.arms if name not in ARMS]:
        parser.error(f"--arms ({unknown[0]}): no such arm; known: {', '.join(ARMS)}")
    return args


def main() -> None:
    """Run what is missing, and print each arm as soon as it stands; then the comparisons."""
    args = parse()
    runs = Runs.of(args)
    found: dict[str, Figures] = {}
    for name in args.arms:
        found[name] = read(runs, name)
        show_arm(name, found[name])
    compared = gains(found)
    for gain in compared:
        show_gain(gain)
    print(f"longest run: {runs.longest_s / 60:.1f} minutes on {args.nproc} ranks")
    if args.json:
        verdicts = [{**asdict(gain), "verdict": gain.verdict} for gain in compared]
        record = {"seeds": args.seeds, "arms": found, "gains": verdicts}
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
