"""MoBY whose positives are the keys of other samples, which cannot learn: see benchmarks/ssl_fashion.py."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from launcher.tasks.moby import SPEC as MOBY
from launcher.tasks.moby.task import MoBYTask


class RandomPairsTask(MoBYTask):
    """MoBY with the key of the next sample of the micro-batch in the place of a sample's own."""

    def keys_of(self, views: Sequence[Tensor], keys: Tensor) -> Tensor:
        """As MoBY's, moved on by one sample: (V, B, D)."""
        return super().keys_of(views, keys).roll(1, dims=1)


SPEC = replace(MOBY, build=RandomPairsTask)
