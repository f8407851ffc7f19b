"""This checkout beside an earlier commit: training steps and forward passes of models, and data, interleaved.

    python benchmarks/against.py 4d1664b                 # a few minutes
    python benchmarks/against.py 4d1664b --rounds 15 --only moe

Each side is a process of its own that imports one checkout through its public names: `build_model` of
`swin_moe` and the output's `logits` and `aux_loss`; `TrainStream`, which reads shards of JPEGs with one
thread (data_images.py). The sides take turns, one case at a time, in an order
that alternates. A figure is process CPU seconds of one thread, which a busy neighbour hardly moves, and
`ratio` is before over now, the median of the rounds, and that of the fastest round of each side: above 1 this
checkout is faster.
"""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SWIN, SWIN_V2 = "swin_tiny_patch4_window7_224", "swinv2_tiny_patch4_window8_256"
SWIN_MOE = "swin_moe_small_patch4_window12_192_8expert_32gpu_22k"
SMALL = {"depths": (2, 2, 6, 2), "image_size": 192, "num_classes": 1000}


def _moe(**options: Any) -> dict[str, Any]:
    blocks = ((), (), (1, 3, 5), (1,))
    return SMALL | {"moe": {"blocks": blocks, "routing_group_images": 2, **options}}


CASES: dict[str, tuple[str, dict[str, Any], bool]] = {  # the model, its options, whether it trains
    "Swin-T, a training step": (SWIN, {}, True),
    "Swin-T, a forward pass": (SWIN, {}, False),
    "SwinV2-T, a training step": (SWIN_V2, {}, True),
    "SwinV2-T, a forward pass": (SWIN_V2, {}, False),
    "Swin-MoE of 8 experts, top-1 at 1.25": (SWIN_MOE, _moe(top_k=1, capacity_factor=1.25), True),
    "Swin-MoE of 8 experts, top-2 at 1.25": (SWIN_MOE, _moe(top_k=2, capacity_factor=1.25), True),
    "Swin-MoE of 8 experts, top-1 dropless": (SWIN_MOE, _moe(top_k=1, capacity_factor=0.0), True),
}
BATCH = 4
REGION = "data_shards/image/_region"
DATA = "Shards to batches of 64 images"
BATCHES = 24  # of a round; one is decoded ahead


def main() -> None:
    """Print one row a case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commit", help="of this repository, before")
    parser.add_argument("--rounds", type=int, default=9, help="default: %(default)s")
    parser.add_argument("--only", default="", metavar="TEXT", help="the cases whose name has it")
    parser.add_argument("--serve", type=Path, metavar="SHARDS", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(Path(args.commit), args.serve)
        return
    names = [name for name in (*CASES, DATA) if args.only.lower() in name.lower()]
    with ExitStack() as stack:
        before = stack.enter_context(checkout(args.commit))
        shards = before.parent / "shards"
        if DATA in names:
            pack_jpegs(shards)
        sides = {
            side: stack.enter_context(Side(path, shards))
            for side, path in {"before": before, "now": ROOT}.items()
        }
        for name in names:
            seconds = interleaved(sides, name, args.rounds)
            ratio = median(b / n for b, n in zip(seconds["before"], seconds["now"], strict=True))
            figures = "  ".join(f"{side} {median(values):.3f} s" for side, values in seconds.items())
            fastest = min(seconds["before"]) / min(seconds["now"])
            print(f"{name:40} {figures}  ratio {ratio:.3f}, of the fastest {fastest:.3f}", flush=True)


def interleaved(sides: dict[str, "Side"], name: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of each side by round, after one round that warms up."""
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds + 1):
        for side in sorted(sides, reverse=bool(number % 2)):
            taken_s = sides[side].take(name)
            if number:
                seconds[side].append(taken_s)
    return seconds


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """A work tree of a commit, which is removed afterwards."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "before"
        subprocess.run(["git", "worktree", "add", "--detach", "-q", path, commit], cwd=ROOT, check=True)
        try:
            for built in ROOT.glob(f"{REGION}*.so"):  # what `pip install` built here, which git does not have
                if (path / REGION).parent.is_dir():
                    shutil.copy(built, path / built.relative_to(ROOT))
            yield path
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", path], cwd=ROOT, check=True)


class Side:
    """A process that times the cases in a checkout."""

    def __init__(self, path: Path, shards: Path) -> None:
        line = [sys.executable, __file__, str(path), "--serve", str(shards)]
        threads = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(path)}
        self._process = subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=threads, cwd=path
        )

    def take(self, name: str) -> float:
        """CPU seconds of one case."""
        assert self._process.stdin
        assert self._process.stdout
        print(name, file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


def serve(path: Path, shards: Path) -> None:
    """Time the case that each line of standard input names; print its seconds."""
    sys.path[0] = str(path)  # in the place of this file's folder
    import swin_moe

    assert Path(swin_moe.__file__).is_relative_to(path), swin_moe.__file__
    steps: dict[str, Callable[[], None]] = {}
    for line in sys.stdin:
        name = line.strip()
        make = partial(stream, shards) if name == DATA else partial(case, name)
        steps = {name: steps.get(name) or make()}  # the models of one case at a time
        began_s = time.process_time()
        steps[name]()
        print(time.process_time() - began_s, flush=True)


def case(name: str) -> Callable[[], None]:
    """What is timed, with a model of its own."""
    import torch
    import torch.nn.functional as F

    from swin_moe import build_model

    which, options, trains = CASES[name]
    model = build_model(which, **options).train(trains)
    side = model.config.image_size
    images = torch.randn(BATCH, 3, side, side, generator=torch.Generator().manual_seed(0))
    keys, labels = torch.arange(BATCH), torch.arange(BATCH)

    def train() -> None:
        output = model(images, keys)
        (F.cross_entropy(output.logits, labels) + output.aux_loss).backward()
        model.zero_grad()

    def evaluate() -> None:
        with torch.no_grad():
            model(images, keys)

    return partial(train if trains else evaluate)


def pack_jpegs(split: Path) -> None:
    """Shards of JPEGs of many sizes, as this checkout writes them."""
    import numpy as np
    from data_images import JpegSamples, jpegs

    from data_shards.format.samples import Source
    from data_shards.pack.write import pack

    samples = JpegSamples(jpegs(64), np.arange(64 * BATCHES))
    pack(Source("against", "noise", tuple(map(str, range(1000))), {"train": samples}), "train", split)


def stream(split: Path) -> Callable[[], None]:
    """Reads, decodes and collates batches of one stream, which goes on."""
    from data_shards.image.geometry import TrainTransform
    from data_shards.order.sampling import TrainSampling
    from data_shards.stream.options import StreamOptions
    from data_shards.stream.train import TrainStream

    transform: Any = TrainTransform(image_size=192)
    with contextlib.suppress(ImportError):  # before there were transforms of samples
        from data_shards.stream.transform import LabelledImages

        transform = LabelledImages(transform)
    sampling = TrainSampling(seed=0, global_batch_size=64, micro_batch_size=64)
    batches = iter(TrainStream(split, sampling, transform, StreamOptions(threads=1, prefetch=1)))

    def read() -> None:
        for _ in range(BATCHES):
            next(batches)

    return read


if __name__ == "__main__":
    main()
