"""The statistics of each image: what its own tokens chose and lost, counted by hand from the routing."""

import pytest
import torch

from swin_moe.moe.layer import MoELayer
from swin_moe.moe.overrides import RoutingOverrides
from swin_moe.moe.routers.base import Routing
from tests.swin_moe.moe.layers import EXPERTS, GROUP, IMAGES, LENGTH, keys_of, make_images, make_layer

ROUTERS = ("linear", "sigmoid", "expert_choice", "hash", "random")
CALL = RoutingOverrides(capacity_factor=0.5, by_image=True)


def counts_by_hand(layer: MoELayer, routing: Routing) -> tuple[list[list[int]], list[int]]:
    """Choices (B, E) and losses (B,): group after group, in the order of service, two slots an expert."""
    size, index = GROUP * LENGTH, routing.expert_index.tolist()
    slots = layer.config.top_k * int(0.5 * -(-size // EXPERTS))
    choices, lost = [[0] * EXPERTS for _ in range(IMAGES)], [0] * IMAGES
    for order in routing.priority.flatten(1).tolist():
        used = [0] * EXPERTS
        for token, choice in (divmod(one, routing.expert_index.shape[1]) for one in order):
            image, expert = token // LENGTH, index[token][choice]
            if expert == EXPERTS:
                lost[image] += choice == 0
                continue
            choices[image][expert] += 1
            used[expert] += 1
            lost[image] += used[expert] > slots
    return choices, lost


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("top_k", [1, 2])
def test_choices_and_losses_by_hand(
    router: str, backend: str, top_k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    factor = 1.0 if router == "expert_choice" else 0.0  # of evaluation, which the call changes
    layer = make_layer(router=router, backend=backend, top_k=top_k, eval_capacity_factor=factor).eval()
    seen: list[Routing] = []
    forward = layer.router.forward

    def spy(*args: object) -> Routing:
        seen.append(forward(*args))
        return seen[-1]

    monkeypatch.setattr(layer.router, "forward", spy)
    _, stats = layer(make_images(), keys_of(), CALL)
    choices, lost = counts_by_hand(layer, seen[0])
    assert stats.choices.tolist() == choices
    assert stats.lost.tolist() == lost
    assert sum(lost) > 0
    assert stats.choices.sum(0).tolist() == stats.load.tolist()
    assert stats.lost.sum() == stats.dropped
    some = stats.of_images(torch.tensor([1.0, 0, 0, 1, 0, 0]))
    assert some.load.tolist() == [a + b for a, b in zip(choices[0], choices[3], strict=True)]
    assert some.dropped == lost[0] + lost[3]


def test_a_soft_router_has_the_same_slots_of_every_image() -> None:
    layer = make_layer(router="soft", slots_per_expert=3).eval()
    _, stats = layer(make_images(), keys_of(), RoutingOverrides(by_image=True))
    assert stats.choices.tolist() == [[3] * EXPERTS] * IMAGES
    assert stats.choices.sum(0).tolist() == stats.load.tolist()
    assert stats.lost.tolist() == [0] * IMAGES


def test_nobody_pays_who_does_not_ask() -> None:
    _, stats = make_layer().eval()(make_images(), keys_of())
    assert stats.choices is stats.lost is None
