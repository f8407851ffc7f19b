"""What mixes the tokens of a window: attention of two kinds, or a linear map a head.

Legend: B images or clips, S windows of each, n tokens a window, h heads, C channels, d = C / h.
A mixer takes windows (B * S, n, C) and an additive mask, (S, n, n), a `PatternMask` or None, and returns
windows.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from swin_moe import gpu
from swin_moe.backbone.position_bias import PositionBias
from swin_moe.backbone.window_masks import PatternMask

SHORTEST = 1e-12  # vectors below are not brought to their length
MAX_LOGIT_SCALE = math.log(100.0)  # Liu et al. 2022, section 3.2: the temperature is not below 0.01


class WindowAttention(nn.Module):
    """Multi-head dot-product attention with a relative position bias (Liu et al. 2021, equation 4).

    Args:
        dim: C.
        num_heads: h.
        position_bias: called without arguments, gives (h, n, n).
        qkv_bias: whether queries, keys and values have one.
        attention_chunk: 0 for all windows at once; else so many at a time, recomputed in the backward pass,
            which bounds the memory of the attention (Liu et al. 2022, section 3.4).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        position_bias: PositionBias,
        *,
        qkv_bias: bool = True,
        attention_chunk: int = 0,
    ) -> None:
        super().__init__()
        self.num_heads, self.attention_chunk = num_heads, attention_chunk
        self.scale = (dim // num_heads) ** -0.5  # of the logits
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.position_bias = position_bias

    def forward(self, x: Tensor, mask: Tensor | PatternMask | None = None) -> Tensor:
        """Attend inside each window: (B * S, n, C) -> (B * S, n, C).

        A window of fewer tokens than the position bias has (`window_padding=fitted`) gets its first n rows
        and columns, as in the released models of clips. These are the biases of other offsets where the
        height or the width is smaller; where time alone is, they are the right ones.
        """
        bias = self.position_bias()
        if (n := x.shape[1]) < bias.shape[-1]:
            bias = bias[:, :n, :n]
        if isinstance(mask, PatternMask):
            return self._attend_by_pattern(x, bias, mask)
        return self._attend_in_chunks(x, bias, mask)

    def _attend_by_pattern(self, x: Tensor, bias: Tensor, mask: PatternMask) -> Tensor:
        """Attend in the windows of one pattern after another, each with a bias (h, n, n) for all of them."""
        windows = x.unflatten(0, (-1, len(mask.order)))  # (B, S, n, C)
        pieces = []
        for own, order in zip(mask.masks, mask.order.split(mask.counts), strict=True):
            piece = windows.index_select(1, order)
            out = self._attend_in_chunks(piece.flatten(0, 1), bias + own.to(bias.dtype), None)
            pieces.append(out.view_as(piece))
        return torch.cat(pieces, 1).index_select(1, mask.place).flatten(0, 1)

    def _attend_in_chunks(self, x: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
        """Attend in `attention_chunk` windows at a time."""
        step = self.attention_chunk
        if step == 0 or len(x) <= step:
            return self._attend(x, bias, mask)
        pieces = []
        for start in range(0, len(x), step):
            piece = x[start : start + step]
            own = None if mask is None else mask[torch.arange(start, start + len(piece)) % len(mask)]
            pieces.append(checkpoint(self._attend, piece, bias, own, use_reentrant=False))
        return torch.cat(pieces)

    def _attend(self, x: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
        windows, n, c = x.shape
        q, k, v = self.split_heads(self.project(x), 1 if mask is None else len(mask))
        if mask is not None:
            bias = bias + mask.to(bias.dtype)[:, None]  # (S, h, n, n)
        q, k = self._prepare(q, k)
        out = _attention(q, k, v, bias.to(q.dtype), self.scale)
        return self.proj(out.transpose(2, 3).reshape(windows, n, c))

    def split_heads(self, qkv: Tensor, per_image: int) -> tuple[Tensor, ...]:
        """(B * S, n, 3 * C) -> queries, keys and values, (B, S, h, n, d) each.

        Where S is 1 the kernels of a GPU read them where they are, and their gradients are put together in
        one pass. Otherwise they are copied once, which is also faster on a CPU.
        """
        windows, n, _ = qkv.shape
        qkv = qkv.view(windows // per_image, per_image, n, 3, self.num_heads, -1)
        if per_image == 1 and gpu.on_gpu(qkv):
            return tuple(x.transpose(2, 3) for x in qkv.unbind(3))
        return qkv.permute(3, 0, 1, 4, 2, 5).contiguous().unbind(0)

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values side by side: (W, n, C) -> (W, n, 3 * C)."""
        return self.qkv(x)

    def projection_bias(self) -> Tensor | None:
        """The bias of queries, keys and values: (3 * C,)."""
        return self.qkv.bias

    def _prepare(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys whose product, times `scale`, is the logits."""
        return q, k


def _attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """softmax(scale q k^T + bias) v: (B, S, h, n, d) and (h, n, n) or (S, h, n, n) -> (B, S, h, n, d)."""
    if not gpu.on_gpu(bias):
        # There SDPA has no kernel for a bias that learns, and a slow one for small windows: the attention
        # takes 1.1-1.2 times as long as with these lines in training, a model 1.1 in evaluation.
        scores = (q if scale == 1.0 else q * scale) @ k.transpose(-2, -1)
        return scores.add_(bias).softmax(dim=-1) @ v
    return fused_attention(q, k, v, bias, scale)


def fused_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """`_attention` by the kernels of a GPU, which take four dims; of five torch makes plain products.

    The windows of an image count as heads, so that one bias (1, S * h, n, n) serves all images as it is.
    """
    shape, bias = q.shape, bias.reshape(1, -1, *bias.shape[-2:])
    q, k, v = q.flatten(1, 2), k.flatten(1, 2), v.flatten(1, 2)  # (B, S * h, n, d)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale).view(shape)


class CosineAttention(WindowAttention):
    """Scaled cosine attention with a learned temperature a head (Liu et al. 2022, equation 2).

    Keys have no bias. Normalisation and temperature are fp32 whatever the precision of the model.
    """

    def __init__(self, dim: int, num_heads: int, *args: Any, qkv_bias: bool = True, **options: Any) -> None:
        super().__init__(dim, num_heads, *args, qkv_bias=False, **options)
        self.scale = 1.0  # the learned one is part of the queries
        self.q_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.logit_scale = nn.Parameter(torch.full((num_heads, 1, 1), math.log(10.0)))

    def project(self, x: Tensor) -> Tensor:
        return F.linear(x, self.qkv.weight, self.projection_bias())

    def projection_bias(self) -> Tensor | None:
        if self.q_bias is None or self.v_bias is None:
            return None
        return torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))

    def _prepare(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        scale = self.logit_scale.float().clamp(max=MAX_LOGIT_SCALE).exp()
        return _normalized(q, scale), _normalized(k)


def _normalized(x: Tensor, length: Tensor | None = None) -> Tensor:
    """Vectors (..., d) of this length, or of length 1.

    Not F.normalize, which divides whole tensors, three times in its gradient; here one number a vector.
    """
    if gpu.on_gpu(x) and not torch.compiler.is_compiling():
        return _Normalized.apply(x, length)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=_precision(x))
    return (x * ((1.0 if length is None else length) / norm.clamp_min(SHORTEST))).to(x.dtype)


def _precision(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


class _Normalized(torch.autograd.Function):
    """The same with half of the launches and passes over memory: y = f x with f = length / |x|.

    With e = x / |x| and g the gradient of y: dx = f (g - e <e, g>), and dlength = <e, g>.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, length: Tensor | None) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=_precision(x))
        inverse = norm.clamp_min_(SHORTEST).reciprocal_()
        ctx.save_for_backward(x, inverse, length)
        return torch.mul(x, inverse if length is None else inverse * length, out=torch.empty_like(x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        x, inverse, length = ctx.saved_tensors
        wide = grad.to(inverse.dtype)
        along = (wide * x).sum(-1, keepdim=True).mul_(inverse)  # <e, g>
        across = torch.addcmul(wide, x, along * inverse, value=-1)
        factor = inverse if length is None else inverse * length
        by_length = None if length is None else along.sum_to_size(length.shape)
        return torch.mul(across, factor, out=torch.empty_like(x)), by_length


class SpatialMLP(nn.Module):
    """Swin-MLP's mixer: one linear map over the tokens of a window for each head, no attention."""

    def __init__(self, dim: int, num_heads: int, window: tuple[int, ...]) -> None:
        super().__init__()
        n = math.prod(window)
        self.num_heads = num_heads
        self.spatial_mlp = nn.Conv1d(num_heads * n, num_heads * n, kernel_size=1, groups=num_heads)

    def forward(self, x: Tensor, mask: object = None) -> Tensor:
        """Mix the tokens of each window: (B * S, n, C) -> (B * S, n, C)."""
        assert mask is None, "Swin-MLP pads its shifted windows and never masks"
        windows, n, c = x.shape
        heads = x.view(windows, n, self.num_heads, -1).transpose(1, 2)  # (B * S, h, n, d)
        weight = self.spatial_mlp.weight.view(self.num_heads, n, n)
        bias = self.spatial_mlp.bias.view(self.num_heads, n, 1)  # type: ignore[union-attr]
        mixed = torch.matmul(weight, heads) + bias
        return mixed.transpose(1, 2).reshape(windows, n, c)
