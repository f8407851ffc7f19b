"""Several training streams side by side: a fixed number of samples of each in every micro-batch.

    samplings = share_out(sampling, {"labelled": 1, "unlabelled": 4})         # 1/5 and 4/5 of each batch
    parts = {name: TrainStream(splits[name], samplings[name], transforms[name]) for name in samplings}
    for batch in MixedStream(parts): ...                                      # batch["unlabelled.image"]

Legend: B samples in a micro-batch of all parts, K parts.
"""

import time
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any

import torch

from data_shards.errors import DataError
from data_shards.order.global_order import seed_of_part
from data_shards.order.sampling import TrainSampling
from data_shards.order.state import other_data
from data_shards.stream.base import SingleIterator
from data_shards.stream.batch import Batch
from data_shards.stream.train import TrainStream

STATE_VERSION = 1


def share_out(sampling: TrainSampling, shares: Mapping[str, int]) -> dict[str, TrainSampling]:
    """The sampling of each part, by name: its share of both batch sizes, and a seed of its own.

    Args:
        sampling: of all parts together.
        shares: of each part, such as {"labelled": 1, "unlabelled": 4}.

    Raises:
        DataError: a share below 1, a micro-batch that they do not divide.
    """
    text = f"{' : '.join(shares)} = {' : '.join(map(str, shares.values()))}"
    total, micro = sum(shares.values()), sampling.micro_batch_size
    if min(shares.values()) < 1:
        raise DataError(f"the shares {text} must be at least 1")
    if micro % total:
        nearest = max(1, round(micro / total)) * total
        raise DataError(
            f"micro_batch_size ({micro}) must be a multiple of {total}, the sum of the shares {text}; "
            f"nearest: {nearest}"
        )
    return {
        name: replace(
            sampling,
            seed=seed_of_part(sampling.seed, name),
            global_batch_size=sampling.global_batch_size // total * share,
            micro_batch_size=micro // total * share,
        )
        for name, share in shares.items()
    }


class MixedStream(SingleIterator):
    """This rank's micro-batches of several training streams: the interface of TrainStream.

    A micro-batch has those of all parts one after another, in the order of `parts`. The tensors of a part are
    called PART.NAME. Position p of part k of K is p * K + k here, so that no two samples have the same. Each
    part has its own epochs, its own order and its own quarantine.

    An epoch of the stream, as durations count it, has as many samples of all parts as the first part has in
    all. `classes` are those of the first part too.

    Raises:
        DataError: no parts, or parts with different numbers of micro-batches in a step.
    """

    def __init__(self, parts: Mapping[str, TrainStream]) -> None:
        steps = {name: part.grad_accum_steps for name, part in parts.items()}
        if len(set(steps.values())) != 1:
            found = ", ".join(f"{name} has {count}" for name, count in steps.items()) or "there are no parts"
            raise DataError(f"all parts need the same number of micro-batches in a step: {found}")
        self.parts = dict(parts)
        first = next(iter(parts.values()))
        self.num_samples, self.classes = first.num_samples, first.classes
        self.grad_accum_steps = first.grad_accum_steps
        self.wait_s = 0.0  # seconds that next() waited for data; its reader may reset it to 0

    def close(self) -> None:
        """Join the threads and close the shards; the stream may be iterated again."""
        self._stop()
        for part in self.parts.values():
            part.close()

    def state_dict(self) -> dict[str, Any]:
        """The state of each part: JSON-able, equal on all ranks. RuntimeError inside of a step."""
        states = {name: part.state_dict() for name, part in self.parts.items()}
        return {"version": STATE_VERSION, "mixed": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`, with any dp_size, batch sizes, shares and threads; closes the iterator.

        DataError when the state has other parts, or a part refuses its own.
        """
        states = state.get("mixed", {})
        if state.get("version") != STATE_VERSION or states.keys() != self.parts.keys():
            saved = f"the parts {', '.join(states)}" if states else "a single data set"
            raise other_data(saved, f"the parts {', '.join(self.parts)}")
        self._stop()
        for name, part in self.parts.items():
            part.load_state_dict(states[name])

    def counts(self) -> dict[str, int]:
        """This rank's counters, summed over the parts; and of each part, PART.recent_bad."""
        summed: Counter[str] = Counter()
        recent: dict[str, int] = {}
        for name, part in self.parts.items():
            counts = part.counts()
            summed.update({key: count for key, count in counts.items() if "." not in key})
            recent |= {f"{name}.{key}": bad for key, bad in counts.items() if key.endswith("recent_bad")}
        return dict(summed) | recent

    def check_counts(self, summed: dict[str, int]) -> None:
        """DataError when all ranks together met more bad samples of a part recently than is allowed."""
        for name, part in self.parts.items():
            of_part = {
                key.removeprefix(f"{name}."): n for key, n in summed.items() if key.startswith(f"{name}.")
            }
            part.check_counts(of_part)

    def _batches(self) -> Generator[Batch, None, None]:
        with ExitStack() as stack:
            iterators = {name: iter(stack.enter_context(closing(part))) for name, part in self.parts.items()}
            while True:
                began = time.perf_counter()
                batch = joined({name: next(iterator) for name, iterator in iterators.items()})
                self.wait_s += time.perf_counter() - began
                yield batch
                del batch


def joined(parts: Mapping[str, Batch]) -> Batch:
    """The micro-batches of the parts, which are named, as one; see MixedStream for names and positions."""
    positions = [batch.positions * len(parts) + k for k, batch in enumerate(parts.values())]
    return Batch(
        tensors={
            f"{part}.{name}": tensor
            for part, batch in parts.items()
            for name, tensor in batch.tensors.items()
        },
        positions=torch.cat(positions),
        weights=torch.cat([batch.weights for batch in parts.values()]),
    )
