"""Window attention with its position bias and mask as one constant.

Legend: B images, S windows an image, n tokens a window, h heads, C channels, d = C / h.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from swin_moe.backbone.attention import MAX_LOGIT_SCALE, CosineAttention, WindowAttention

# Instead of -inf, which some runtimes turn into NaN. exp(x - 1e4) is 0 in fp32 for every logit x of these
# models: the attention is the same. The number is finite in fp16 too.
HIDDEN = -1e4


class FrozenAttention(nn.Module):
    """What a `WindowAttention` in evaluation computes on maps of one size.

    Windows without a mask share one bias.

    Args:
        attention: to copy.
        mask: (S, n, n) of the block's map, or None.
    """

    bias: Tensor  # (S or 1, h, n, n)

    def __init__(self, attention: WindowAttention, mask: Tensor | None) -> None:
        super().__init__()
        self.num_heads, self.scale = attention.num_heads, attention.scale
        self.qkv, self.proj = attention.qkv, attention.proj
        projection = attention.projection_bias()
        self.qkv.register_parameter("bias", None if projection is None else nn.Parameter(projection.detach()))
        bias = attention.position_bias()[None]
        if mask is not None:
            bias = bias + mask.clamp_min(HIDDEN).to(bias.dtype)[:, None]
        self.register_buffer("bias", bias.clone())

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend inside each window: (B * S, n, C) -> (B * S, n, C). The mask is part of the bias."""
        windows, n, c = x.shape
        q, k, v = self.qkv(x).view(windows, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        scores = self.scores(q, k).view(-1, *self.bias.shape) + self.bias  # (B, S, h, n, n)
        out = scores.view(windows, self.num_heads, n, n).softmax(dim=-1) @ v
        return self.proj(out.transpose(1, 2).reshape(windows, n, c))

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """The logits without their bias: (B * S, h, n, d) twice -> (B * S, h, n, n)."""
        return (q * self.scale) @ k.transpose(-2, -1)


class FrozenCosineAttention(FrozenAttention):
    """What a `CosineAttention` in evaluation computes; the temperature is a constant (h, 1, 1) in fp32."""

    temperature: Tensor

    def __init__(self, attention: WindowAttention, mask: Tensor | None) -> None:
        assert isinstance(attention, CosineAttention)
        super().__init__(attention, mask)
        temperature = attention.logit_scale.float().clamp(max=MAX_LOGIT_SCALE).exp()
        self.register_buffer("temperature", temperature.clone())

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """The logits without their bias."""
        q = F.normalize(q.float(), dim=-1) * self.temperature
        return q.to(k.dtype) @ F.normalize(k.float(), dim=-1).to(k.dtype).transpose(-2, -1)
