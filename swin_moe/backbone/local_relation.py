"""Local relation (Hu et al. 2019, arXiv:1904.11491): each token aggregates the k x k tokens around it.

The weights of an aggregation are a softmax over the window, of the similarity of the query of its centre and
the key of a neighbour, plus a prior that depends on the offset alone. Neighbouring channels of the values
share an aggregation.

Values are read as k * k shifted views of one padded map; no copy of them is k * k times as large. Backward
computes the weights again. Results are the same bits on every call: nothing adds by atomics.

Legend: B images, H x W tokens of a map, h x w tokens of the result, k side of the window, C channels of the
values, G aggregations, D channels of a query. Inside, images are the last dim, so that the rows of small maps
are long too: values are (G, C / G, H, W, B).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from swin_moe.backbone.neighbourhood import Neighbourhood
from swin_moe.errors import require
from swin_moe.relation_config import Similarity

OUTSIDE = (
    -100.0
)  # the similarity to a token outside of the map, as in microsoft/Swin-Transformer, branch LR-Net
MOST_WEIGHTS = 2**24  # of the images that are computed at once: 64 MiB in fp32


def _relative_distance(q: Tensor, k: Tensor) -> Tensor:
    return -(q - k).abs() / (q.abs() + k.abs() + 1.0)


def _relative_square(q: Tensor, k: Tensor) -> Tensor:
    return -(q - k).square() / ((q * k).abs() + 1.0)


# by their numbers in the kernel of the branch LR-Net: 0, 1, ... 5
SIMILARITIES: dict[Similarity, Callable[[Tensor, Tensor], Tensor]] = {
    "product": lambda q, k: q * k,
    "key": lambda q, k: k.expand(torch.broadcast_shapes(q.shape, k.shape)),
    "distance": lambda q, k: -(q - k).abs(),
    "relative_distance": _relative_distance,
    "relative_square": _relative_square,
    "square": lambda q, k: -(q - k).square(),
}


def local_relation(
    query: Tensor | None,
    key: Tensor | None,
    value: Tensor,
    prior: Tensor | None,
    neighbourhood: Neighbourhood,
    *,
    groups: int,
    similarity: Similarity = "square",
    scale: float = 1.0,
) -> Tensor:
    """Aggregate the tokens of each window by their similarity to its centre and by their place.

    Channel c of the values belongs to aggregation c // (C / G). Similarities of a query and a key of several
    channels are sums over them. Weights and sums are fp32 at least, whatever the dtype of the values.

    Args:
        query: (B, G * D, h, w) of the centres. None for the similarity `key`, and where key is None.
        key: (B, G * D, H, W); None: the weights depend on the prior alone.
        value: (B, C, H, W).
        prior: (G, k, k) that is added to the similarities, or None.
        neighbourhood: the windows.
        groups: G.
        similarity: of a query q and a key k: `product` scale * q * k; `key` k; `distance` -|q - k|;
            `relative_distance` -|q - k| / (|q| + |k| + 1); `relative_square` -(q - k)^2 / (|q * k| + 1);
            `square` -(q - k)^2.
        scale: of the products.

    Returns:
        (B, C, h, w) in the dtype of the values.

    Raises:
        ModelError: G does not divide the channels, or queries have other sides than the result.
    """
    channels = value.shape[1] if key is None else key.shape[1]
    require(
        value.shape[1] % groups == 0 and channels % groups == 0,
        f"local relation: {groups} aggregations must divide {value.shape[1]} channels of the values and "
        f"{channels} of the keys",
    )
    sides = neighbourhood.outputs(value.shape[2]), neighbourhood.outputs(value.shape[3])
    require(
        (query is None) == (key is None or similarity == "key"),
        f"local relation: queries and keys go together, but for similarity=key (got {similarity})",
    )
    require(
        query is None or query.shape[2:] == sides,
        f"local relation: a map of {list(value.shape[2:])} has {list(sides)} windows, each with a query",
    )
    weights = _Weights(neighbourhood, groups, similarity, scale, (value.shape[2], value.shape[3]))
    return _local_relation(query, key, value, prior, weights)


@torch.compiler.disable  # a compiler would unroll k * k views, and breaks its graph here
def _local_relation(
    query: Tensor | None, key: Tensor | None, value: Tensor, prior: Tensor | None, weights: "_Weights"
) -> Tensor:
    y: Tensor = _LocalRelation.apply(query, key, value, prior, weights)
    return y


@dataclass(frozen=True)
class _Weights:
    """The weights of all windows of maps of `sides`."""

    neighbourhood: Neighbourhood
    groups: int
    similarity: Similarity
    scale: float
    sides: tuple[int, int]  # H, W

    @property
    def outputs(self) -> tuple[int, int]:
        """h, w."""
        return self.neighbourhood.outputs(self.sides[0]), self.neighbourhood.outputs(self.sides[1])

    def at_once(self) -> int:
        """Images whose weights are computed at once."""
        height, width = self.outputs
        return max(1, MOST_WEIGHTS // (self.neighbourhood.kernel_size**2 * self.groups * height * width))

    def __call__(self, query: Tensor | None, key: Tensor | None, prior: Tensor | None) -> Tensor:
        """(G, D, h, w, B), (G, D, H, W, B) and (G, k, k) -> (k * k, G, h, w, B), or 1 for B without keys."""
        inside = self.neighbourhood.inside(self.sides, self._device(key, prior))
        logits = self._similarities(query, key, like=prior)
        logits = torch.where(inside[:, :, None, :, :, None], logits, OUTSIDE)
        if prior is not None:
            logits = logits + prior.permute(1, 2, 0)[..., None, None, None]
        return logits.flatten(0, 1).softmax(0)

    def _similarities(self, query: Tensor | None, key: Tensor | None, like: Tensor | None) -> Tensor:
        """(k, k, G, h, w, B)."""
        if key is None:
            assert like is not None
            return like.new_zeros((1,) * 6)
        between, total = SIMILARITIES[self.similarity], None
        keys = self.neighbourhood.windows(self.neighbourhood.pad(key))
        for channel in range(key.shape[1]):
            own = keys[:, :, :, channel]
            centre = own if query is None else query[:, channel]
            part = between(centre, own)
            total = part if total is None else total + part
        assert total is not None
        return self.scale * total if self.similarity == "product" and self.scale != 1.0 else total

    @staticmethod
    def _device(key: Tensor | None, prior: Tensor | None) -> torch.device:
        given = prior if key is None else key
        assert given is not None, "local relation needs keys or a prior"
        return given.device


class _LocalRelation(torch.autograd.Function):
    """The aggregation of windows; backward computes the weights again, and lets autograd derive them."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor | None,
        key: Tensor | None,
        value: Tensor,
        prior: Tensor | None,
        weights: _Weights,
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, prior)
        ctx.weights = weights
        pieces = [
            _aggregate(weights(q, k, p), v, weights)
            for q, k, v, p in _pieces(query, key, value, prior, weights)
        ]
        return torch.cat(pieces).to(value.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weights: _Weights = ctx.weights
        saved = ctx.saved_tensors
        grads: list[list[Tensor | None]] = []
        outputs = _images_last(grad, weights.groups).split(weights.at_once(), dim=-1)
        for (q, k, v, p), out in zip(
            _pieces(saved[0], saved[1], saved[2], saved[3], weights), outputs, strict=True
        ):
            given = [x.detach().requires_grad_() if x is not None else None for x in (q, k, p)]
            with torch.enable_grad():
                shares = weights(*given)
            by_share, by_value = _aggregate_backward(shares.detach(), v, out, weights)
            wanted = [x for x in given if x is not None]
            by_input = iter(torch.autograd.grad(shares, wanted, by_share))
            by_query, by_key, by_prior = (None if x is None else next(by_input) for x in given)
            grads.append([by_query, by_key, by_value, by_prior])
        query, key, value, prior = zip(*grads, strict=True)
        return (
            _joined(query, saved[0]),
            _joined(key, saved[1]),
            _joined(value, saved[2]),
            None if saved[3] is None else torch.stack(prior).sum(0).to(saved[3].dtype),
            None,
        )


def _pieces(
    query: Tensor | None, key: Tensor | None, value: Tensor, prior: Tensor | None, weights: _Weights
) -> Iterator[tuple[Tensor | None, Tensor | None, Tensor, Tensor | None]]:
    """Queries, keys, values and the prior of some images at a time, images last, fp32 at least."""
    wide = torch.promote_types(value.dtype, torch.float32)
    count, prior = weights.at_once(), None if prior is None else prior.to(wide)
    for start in range(0, len(value), count):
        q, k, v = (
            None if x is None else _images_last(x[start : start + count], weights.groups)
            for x in (query, key, value)
        )
        assert v is not None
        yield q, k, v, prior


def _images_last(x: Tensor, groups: int) -> Tensor:
    """(B, C, H, W) -> (G, C / G, H, W, B), contiguous, fp32 at least."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.permute(1, 2, 3, 0).to(wide, memory_format=torch.contiguous_format).unflatten(0, (groups, -1))


def _images_first(x: Tensor) -> Tensor:
    """The inverse of `_images_last`."""
    return x.flatten(0, 1).permute(3, 0, 1, 2)


def _joined(pieces: tuple[Tensor | None, ...], like: Tensor | None) -> Tensor | None:
    """The gradient (B, C, H, W) of some images each, in the dtype of what it is of."""
    if like is None:
        return None
    return torch.cat([_images_first(piece) for piece in pieces if piece is not None]).to(like.dtype)


def _aggregate(shares: Tensor, value: Tensor, weights: _Weights) -> Tensor:
    """Sums of the values, weighted: (k * k, G, h, w, B) and (G, C / G, H, W, B) -> (B, C, h, w)."""
    y = value.new_zeros(*value.shape[:2], *weights.outputs, value.shape[-1])
    padded = weights.neighbourhood.pad(value)
    for share, view in zip(shares, weights.neighbourhood.shifted(padded, weights.outputs), strict=True):
        y.addcmul_(share[:, None], view)
    return _images_first(y)


def _aggregate_backward(
    shares: Tensor, value: Tensor, grad: Tensor, weights: _Weights
) -> tuple[Tensor, Tensor]:
    """The gradients of the weights and of the values, from that of the sums (G, C / G, h, w, B)."""
    neighbourhood, padded = weights.neighbourhood, weights.neighbourhood.pad(value)
    by_share, by_value = torch.empty_like(shares), torch.zeros_like(padded)
    views = neighbourhood.shifted(padded, weights.outputs)
    targets = neighbourhood.shifted(by_value, weights.outputs)
    for offset, (share, view, target) in enumerate(zip(shares, views, targets, strict=True)):
        products = (grad * view).sum(1)
        by_share[offset] = products.sum_to_size(by_share[offset].shape)
        target.addcmul_(share[:, None], grad)
    return by_share, neighbourhood.crop(by_value)
