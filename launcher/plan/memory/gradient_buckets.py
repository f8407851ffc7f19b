"""Where gradients are during a step, and in how many copies: DeepSpeed 0.19.8 as our engine sets it up.

Legend: b bytes of an element of the model, a of an accumulated gradient, n trained elements held, p of them
this rank's part, q of the parameters that its part touches, B elements of a reduction bucket. Pairs are of
dense parameters and of experts.

- Stage 0 accumulates b n in the parameters' gradients and reduces copies of about 5e8 elements; the update
  in half precision makes fp32 gradients of all.
- Stage 1 accumulates a n; at the end of a step it moves through the bucket, of which a copy is reduced, to
  a q. In bf16, unless offloaded, it is another optimizer (BF16_Optimizer): 4 n for good, beside the b n of
  one backward pass; a copy to be reduced is made in fp32 and another as it is sent.
- Stage 2 moves each gradient into the bucket at once. A full bucket is reduced in one more copy of it, of
  dense parameters and of experts in turn, and what is this rank's goes to a q, in bf16 to 4 p.
- Stage 3 likewise, to a p that is there for good, as is the bucket; it is full earlier where dense parameters
  and experts alternate, as they are cut over different ranks.
- The update flattens one group's part at a time: a p, and 4 p beside it if that is not fp32. The fp32 parts
  of bf16 are flat as they are.

What of a bucket was never written is not resident on a CPU. On a GPU it counts, and stages 1 and 2 have two
of them, as one is reduced while the other is filled (`overlap_comm`).
"""

from collections.abc import Iterator
from dataclasses import dataclass

Pair = tuple[int, int]
REDUCED_AT_ONCE = 500_000_000  # elements: DeepSpeed's MEMORY_OPT_ALLREDUCE_SIZE


@dataclass(frozen=True, kw_only=True)
class GradientSizes:
    """Elements and bytes that a flow is made of."""

    width: int  # b
    kept: int  # a
    whole: Pair  # n
    part: Pair  # p
    touched: Pair  # q
    ranks: Pair  # that a parameter is cut over
    largest: int  # parameter, in elements
    group_parts: tuple[int, ...]  # p of each group
    bucket: int  # B
    passes: int  # micro-batches a step
    overlaps: bool  # one bucket is reduced while another is filled
    reserved: bool  # whether what of a bucket is not written counts
    offload: bool


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Bytes of gradients at one moment."""

    gradients: Pair = (0, 0)
    buckets: int = 0
    copies: int = 0


class Flow:
    """Stage 0: gradients stay with their parameters."""

    def __init__(self, sizes: GradientSizes) -> None:
        self.sizes, self.done = sizes, [0, 0]

    def before(self) -> Snapshot:
        """In a forward pass, after the micro-batches before it."""
        return Snapshot(
            gradients=_times(self.sizes.width, self.sizes.whole if self.sizes.passes > 1 else (0, 0))
        )

    def take(self, elements: int, kind: int) -> Iterator[Snapshot]:
        """As one more gradient comes, which is counted with the activations; then a reduction, if any."""
        yield self._accumulating()
        self.done[kind] += elements

    def reduction(self) -> Iterator[Snapshot]:
        """After the last gradient of a step."""
        sizes = self.sizes
        whole = _times(sizes.width, sizes.whole)
        copied = min(REDUCED_AT_ONCE + sizes.largest, max(sizes.whole))
        yield Snapshot(gradients=whole, copies=sizes.width * copied)

    def update(self) -> Iterator[Snapshot]:
        """The clipping and the optimizer: parallel/zero/engine.py squares a gradient in fp32."""
        sizes = self.sizes
        whole, halves = _times(sizes.width, sizes.whole), sizes.width < 4
        yield Snapshot(gradients=whole, copies=4 * sizes.largest * (2 if halves else 1))
        if halves:
            yield Snapshot(gradients=whole, copies=4 * sum(sizes.whole))

    def _accumulating(self) -> Snapshot:
        there = self.sizes.whole if self.sizes.passes > 1 else self.done
        return Snapshot(gradients=_times(self.sizes.width, there))


class FlatFlow(Flow):
    """Stage 1 in bf16: fp32 gradients of everything, for good."""

    def before(self) -> Snapshot:
        """In a forward pass."""
        return Snapshot(gradients=_times(4, self.sizes.whole))

    def reduction(self) -> Iterator[Snapshot]:
        """Groups are reduced in one copy of them, up to a size."""
        copied = min(REDUCED_AT_ONCE + self.sizes.largest, max(self.sizes.whole))
        yield self._with(4 * copied + self.sizes.width * copied)  # flat, and as it is sent

    def update(self) -> Iterator[Snapshot]:
        """In place; then the parameters come together."""
        yield self._with(self.sizes.width * max(self.sizes.whole))

    def _accumulating(self) -> Snapshot:
        return Snapshot(gradients=_times(4, self.sizes.whole), copies=self.sizes.width * sum(self.done))

    def _with(self, copies: int) -> Snapshot:
        """The gradients of the backward pass are still there, in the precision of the model."""
        left = self.sizes.width * sum(self.sizes.whole)
        return Snapshot(gradients=_times(4, self.sizes.whole), copies=left + copies)


class BucketFlow(Flow):
    """Stages 1 and 2: gradients through a bucket to this rank's part."""

    def __init__(self, sizes: GradientSizes, *, at_once: bool, compact: bool) -> None:
        super().__init__(sizes)
        self.at_once, self.compact = at_once, compact  # compact: fp32 parts, flat, of a half-precision model
        self.filled, self.written, self.by_kind = 0, 0, [0, 0]
        self.owned: Pair = (0, 0)

    def before(self) -> Snapshot:
        """In a forward pass."""
        if self.sizes.passes == 1:
            return Snapshot()
        return Snapshot(gradients=self._own() if self.at_once else _times(self.sizes.kept, self.sizes.whole))

    def take(self, elements: int, kind: int) -> Iterator[Snapshot]:
        """One more gradient."""
        yield self._now()
        if self._is_full(elements, kind):
            yield from self._reduce()
        self.done[kind] += elements
        if self._moves:
            self.filled += elements
            self.by_kind[kind] += elements
            self.written = max(self.written, self.filled)

    def reduction(self) -> Iterator[Snapshot]:
        """What is left, or, at stage 1 without overlap, everything."""
        if not self._moves:
            self.filled = self.written = min(self.sizes.bucket, sum(self.sizes.whole))
            self.by_kind = [min(self.filled, whole) for whole in self.sizes.whole]
        yield from self._reduce()

    def update(self) -> Iterator[Snapshot]:
        """One group at a time."""
        own = self._own()
        if self.sizes.offload:
            yield Snapshot(gradients=own)
            return
        wider = 4 if self.sizes.kept < 4 else 0
        copies = 0 if self.compact else (self.sizes.kept + wider) * max(self.sizes.group_parts)
        yield Snapshot(gradients=own, copies=copies)

    @property
    def _moves(self) -> bool:
        """Whether gradients go into the bucket as they come."""
        return self.at_once or self.sizes.overlaps

    def _is_full(self, elements: int, kind: int) -> bool:
        return self._moves and self.filled > 0 and self.filled + elements > self.sizes.bucket

    def _now(self) -> Snapshot:
        sizes = self.sizes
        there = list(self.before().gradients)
        if not self._moves:
            there = list(_times(sizes.kept, sizes.whole if sizes.passes > 1 else self.done))
        return Snapshot(gradients=_plus(there, self.owned), buckets=self._buckets())

    def _reduce(self) -> Iterator[Snapshot]:
        """A copy of what the bucket holds, then the part beside it."""
        sizes = self.sizes
        left = (0, 0) if self._moves else self._unmoved()
        copied = max(n for n, ranks in zip((0, *self.by_kind), (2, *sizes.ranks), strict=True) if ranks > 1)
        own = self._own()
        beside = _plus(self.owned, self.before().gradients) if self._moves else left
        after = own if self.owned == (0, 0) else self.owned
        bucket = self._buckets()
        yield Snapshot(gradients=beside, buckets=bucket, copies=self._bucket_width * copied)
        self.owned = after if self._moves else own
        held = _plus(self.owned, self.before().gradients) if self._moves else _plus(left, self.owned)
        yield Snapshot(gradients=held, buckets=bucket)
        self.filled, self.by_kind = 0, [0, 0]

    def _unmoved(self) -> Pair:
        """Stage 1: what is not in the bucket when it is first reduced."""
        whole = self.sizes.whole
        rest = max(0, sum(whole) - self.sizes.bucket)
        return self.sizes.kept * min(rest, whole[0]), self.sizes.kept * max(0, rest - whole[0])

    @property
    def _bucket_width(self) -> int:
        return self.sizes.width if self.at_once else self.sizes.kept

    def _buckets(self) -> int:
        buckets = 2 if self.sizes.overlaps else 1
        return self._bucket_width * (buckets * self.sizes.bucket if self.sizes.reserved else self.written)

    def _own(self) -> Pair:
        """The gradients of this rank's part."""
        if self.sizes.offload:
            return 0, 0
        return _times(self.sizes.kept, self.sizes.part if self.compact else self.sizes.touched)


class PartitionFlow(BucketFlow):
    """Stage 3: the part and the bucket are there for good."""

    def __init__(self, sizes: GradientSizes) -> None:
        super().__init__(sizes, at_once=True, compact=False)
        self.kind: int | None = None

    def before(self) -> Snapshot:
        """In a forward pass."""
        return Snapshot(gradients=self._own(), buckets=self._buckets())

    def _is_full(self, elements: int, kind: int) -> bool:
        changes, self.kind = self.kind not in (None, kind), kind
        return super()._is_full(elements, kind) or (changes and self.filled > 0)

    def _now(self) -> Snapshot:
        return self.before()

    def _reduce(self) -> Iterator[Snapshot]:
        yield Snapshot(gradients=self._own(), buckets=self._buckets(), copies=self.sizes.width * self.filled)
        self.filled = 0

    def _buckets(self) -> int:
        sizes = self.sizes
        return sizes.width * (sizes.bucket if sizes.reserved else min(sizes.bucket, max(sizes.whole)))

    def _own(self) -> Pair:
        return (0, 0) if self.sizes.offload else _times(self.sizes.kept, self.sizes.part)


def flow_of(stage: int, sizes: GradientSizes) -> Flow:
    """The flow of a ZeRO stage."""
    if stage == 0:
        return Flow(sizes)
    if stage == 1 and sizes.kept != sizes.width and not sizes.offload:
        return FlatFlow(sizes)
    if stage == 3:
        return PartitionFlow(sizes)
    return BucketFlow(sizes, at_once=stage == 2, compact=stage == 2 and sizes.kept != sizes.width)


def _times(width: int, pair: tuple[int, ...] | list[int]) -> Pair:
    return width * pair[0], width * pair[1]


def _plus(a: tuple[int, ...] | list[int], b: tuple[int, ...] | list[int]) -> Pair:
    return a[0] + b[0], a[1] + b[1]
