r"""Two weighted training sets: their proportions, and whether order and resume are exact on 1, 2 and 3 ranks.

    python benchmarks/weighted_sets.py                    # half a minute; --json FILE

The streams read synthetic images through the code of a run. A digest covers the pixels and the label of every
sample, by position. `planning` is the CPU time of the order of a batch of 4096 at the size of ImageNet-22K,
beside that of one set.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Mapping
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.image.geometry import TrainTransform
from data_shards.order.global_order import GlobalOrder, Order
from data_shards.order.sampling import TrainSampling
from data_shards.order.sets import Mixture, TrainSet
from data_shards.order.weighted import WeightedOrder
from data_shards.pack.sources.registry import synthetic
from data_shards.pack.write import pack
from data_shards.stream.options import StreamOptions
from data_shards.stream.train import TrainStream
from data_shards.stream.transform import LabelledImages

SIZES, PROPORTIONS = {"large": 3000, "small": 700}, {"large": 0.8, "small": 0.2}
BATCH, STEPS = 96, 100  # two and a half epochs of 3700 images
TRANSFORM = LabelledImages(TrainTransform(image_size=16))
Seen = dict[int, str]  # position -> digest of its sample


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sets = prepare(Path(folder))
        figures = {"proportions": proportions(sets), **exactness(sets), "planning": planning()}
    for name, value in figures.items():
        print(f"{name}: {json.dumps(value)}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


def prepare(folder: Path) -> dict[str, TrainSet]:
    """Two packed sets of the same classes."""
    for seed, (name, size) in enumerate(SIZES.items()):
        source = synthetic(size, 1, num_classes=10, image_size=24, seed=seed)
        pack(source, "train", folder / name, samples_per_shard=100)
    return {name: TrainSet(path=str(folder / name), proportion=PROPORTIONS[name]) for name in SIZES}


def stream(sets: Mapping[str, TrainSet], rank: int = 0, ranks: int = 1, batch: int = BATCH) -> TrainStream:
    """A rank's part of the stream, in two micro-batches a step."""
    sampling = TrainSampling(seed=0, global_batch_size=batch, micro_batch_size=batch // ranks // 2)
    return TrainStream(sets, sampling, TRANSFORM, StreamOptions(dp_rank=rank, dp_size=ranks, threads=1))


def proportions(sets: Mapping[str, TrainSet]) -> dict[str, Any]:
    """The samples of the small set in every window of a batch, and in the first epoch."""
    with stream(sets) as one:
        order, share = one.order, PROPORTIONS["small"]
        assert isinstance(order, WeightedOrder)
        chosen = order.draws(np.arange(BATCH * STEPS, dtype=np.int64))[0]
    inside = np.cumsum(np.concatenate([[0], chosen]))
    windows = inside[BATCH:] - inside[:-BATCH]
    return {
        "batch": BATCH,
        "expected": round(BATCH * share, 2),
        "fewest": int(windows.min()),
        "most": int(windows.max()),
        "deviation_by_chance": round((BATCH * share * (1 - share)) ** 0.5, 2),
        "of_an_epoch": [int(inside[order.num_samples]), order.num_samples],
    }


def exactness(sets: Mapping[str, TrainSet]) -> dict[str, Any]:
    """Whether 1, 2 and 3 ranks see the same, and whether they do after a stop at random steps."""
    alone, rng = seen(sets, 1, STEPS)[0], random.Random(0)
    order = {ranks: seen(sets, ranks, STEPS)[0] == alone for ranks in (1, 2, 3)}
    resumed = {}
    for before, after in ((1, 2), (2, 3), (3, 1), (3, 2)):
        steps = 2 * rng.randint(1, STEPS // 2 - 1)
        first, state = seen(sets, before, steps)
        rest = seen(sets, after, (STEPS - steps) // 2, state, 2 * BATCH)[0]
        resumed[f"{before} to {after} ranks after step {steps}"] = first | rest == alone
    return {"digest": digest(alone), "same_order_on_ranks": order, "resumed_with_twice_the_batch": resumed}


def seen(
    sets: Mapping[str, TrainSet], ranks: int, steps: int, state: Any = None, batch: int = BATCH
) -> tuple[Seen, Any]:
    """What all ranks see at each position in some steps from a state, and the state after them."""
    found: Seen = {}
    for rank in range(ranks):
        with stream(sets, rank, ranks, batch) as one:
            if state:
                one.load_state_dict(state)
            for part in islice(one, steps * one.grad_accum_steps):
                rows = zip(
                    part.positions.tolist(), part["image"].numpy(), part["label"].tolist(), strict=True
                )
                found |= {p: sha256(image.tobytes() + bytes([label])).hexdigest() for p, image, label in rows}
            after = json.loads(json.dumps(one.state_dict()))
    return found, after


def digest(found: Seen) -> str:
    """One digest of all samples by position."""
    return sha256("".join(found[position] for position in sorted(found)).encode()).hexdigest()[:16]


def planning() -> dict[str, float]:
    """CPU milliseconds of the order of a batch of 4096 images, of one set and of two."""
    one = GlobalOrder(np.full(14_200, 1000), seed=0)
    sizes = [np.full(14_200, 1000), np.full(1_300, 1000)]
    two = WeightedOrder(["a", "b"], sizes, Mixture(weights=(4, 1), samples=15_500_000), 0, 64, 4096)
    return {"one_set_ms": batch_ms(one), "two_sets_ms": batch_ms(two)}


def batch_ms(order: Order) -> float:
    """The best of three rounds of 20 batches."""
    rounds = []
    for number in range(3):
        began = time.process_time()
        for step in range(20):
            order.locate(order.global_batch(9_000_000 + (20 * number + step) * 4096, 4096))
        rounds.append((time.process_time() - began) / 20)
    return round(min(rounds) * 1e3, 2)


if __name__ == "__main__":
    main()
