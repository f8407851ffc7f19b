"""Local relation by loops over every image, aggregation, token and neighbour, for the tests."""

from collections.abc import Callable

import torch
from torch import Tensor

from swin_moe.backbone.neighbourhood import Neighbourhood

# of a query and a key, numbers of Python
BY_HAND: dict[str, Callable[[float, float], float]] = {
    "product": lambda q, k: q * k,
    "key": lambda q, k: k,
    "distance": lambda q, k: -abs(q - k),
    "relative_distance": lambda q, k: -abs(q - k) / (abs(q) + abs(k) + 1),
    "relative_square": lambda q, k: -((q - k) ** 2) / (abs(q * k) + 1),
    "square": lambda q, k: -((q - k) ** 2),
}


def relation_by_hand(
    query: Tensor | None,
    key: Tensor | None,
    value: Tensor,
    prior: Tensor | None,
    neighbourhood: Neighbourhood,
    *,
    groups: int,
    similarity: str = "square",
    scale: float = 1.0,
) -> Tensor:
    """As `local_relation`: (B, C, h, w) float64, without a gradient."""
    query, key, prior = (None if x is None else x.detach() for x in (query, key, prior))
    n, side = neighbourhood, neighbourhood.kernel_size
    depth = 0 if key is None else key.shape[1] // groups
    images, channels, height, width = value.shape
    result = torch.zeros(images, channels, n.outputs(height), n.outputs(width), dtype=torch.float64)
    for image in range(images):
        for group in range(groups):
            for row in range(result.shape[2]):
                for column in range(result.shape[3]):
                    logits, places = [], []
                    for dy in range(side):
                        for dx in range(side):
                            y = row * n.stride + dy * n.dilation - n.margin
                            x = column * n.stride + dx * n.dilation - n.margin
                            logit, inside = -100.0, 0 <= y < height and 0 <= x < width
                            if inside:
                                logit = 0.0
                                for at in range(group * depth, (group + 1) * depth):
                                    assert key is not None
                                    q = 0.0 if query is None else float(query[image, at, row, column])
                                    logit += BY_HAND[similarity](q, float(key[image, at, y, x]))
                                logit *= scale if similarity == "product" else 1.0
                            logits.append(logit + (0.0 if prior is None else float(prior[group, dy, dx])))
                            places.append((y, x) if inside else None)
                    weights = torch.tensor(logits, dtype=torch.float64).softmax(0)
                    size = channels // groups
                    for c in range(group * size, (group + 1) * size):
                        result[image, c, row, column] = sum(
                            float(weight) * float(value.detach()[image, c, *place])
                            for weight, place in zip(weights, places, strict=True)
                            if place is not None
                        )
    return result
