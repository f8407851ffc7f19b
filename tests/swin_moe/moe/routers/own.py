"""A router of another package, as `model.moe.router=tests.swin_moe.moe.routers.own:HalvedRouter` names it."""

from torch import Tensor

from swin_moe.moe.routers.topk import LinearTopKRouter


class HalvedRouter(LinearTopKRouter):
    """The linear router with half of its logits."""

    def logits(self, tokens: Tensor) -> Tensor:
        """(T, C) -> (T, E)."""
        return super().logits(tokens) / 2
