"""The dense MLP of a block, and the shared expert of an MoE layer.

Legend: B images, L tokens an image, C channels.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from swin_moe.random.keyed import Dropout, SiteCounter


class MLP(nn.Module):
    """Linear, GELU, linear, with dropout after each."""

    def __init__(self, dim: int, hidden: int, *, dropout: float, fc2_bias: bool, sites: SiteCounter) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim, bias=fc2_bias)
        self.drop1 = Dropout(dropout, sites.next())
        self.drop2 = Dropout(dropout, sites.next())

    def forward(self, x: Tensor, keys: Tensor, call: object = None) -> tuple[Tensor, None]:
        """(B, L, C) with the images' keys (B,) -> (B, L, C), and no statistics; `call` is for MoE layers."""
        x = self.drop1(F.gelu(self.fc1(x)), keys)
        return self.drop2(self.fc2(x), keys), None
