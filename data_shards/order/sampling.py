"""The options of a training stream that decide which samples it gives, and when."""

from dataclasses import dataclass

from data_shards.errors import DataError
from data_shards.order.global_order import INTERLEAVE


@dataclass(frozen=True, kw_only=True)
class TrainSampling:
    """The order and the batches of a training stream.

    Shuffling interleaves `interleave` segments of the shuffled shards, each through a buffer of
    `shuffle_buffer` samples (`data_shards.order.global_order`). None is the default of the stream.
    """

    seed: int
    global_batch_size: int
    micro_batch_size: int
    interleave: int = INTERLEAVE
    shuffle_buffer: int | None = None

    def grad_accum_steps(self, dp_size: int) -> int:
        """Micro-batches of a rank in an optimizer step; DataError unless the sizes divide."""
        step = dp_size * self.micro_batch_size
        if step < 1 or self.global_batch_size < 1 or self.global_batch_size % step:
            multiple = max(1, round(self.global_batch_size / step)) * step if step > 0 else 0
            equation = f"dp_size ({dp_size}) x micro_batch_size ({self.micro_batch_size}) = {step}"
            raise DataError(
                f"global_batch_size ({self.global_batch_size}) must be a multiple of {equation}; "
                f"nearest: {multiple or 'a positive micro_batch_size'}"
            )
        return self.global_batch_size // step
