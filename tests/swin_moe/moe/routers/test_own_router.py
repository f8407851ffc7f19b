"""A router of another package: found by its path, with the balance loss that its class says."""

import pytest
import torch

from swin_moe.errors import ModelError
from swin_moe.moe.routers import ROUTERS, build_router
from swin_moe.moe.routers.base import RoutingRequest
from swin_moe.moe_config import MoEConfig
from swin_moe.router_names import ROUTER_NAMES
from tests.swin_moe.moe.routers.own import HalvedRouter

PATH = "tests.swin_moe.moe.routers.own:HalvedRouter"


def test_a_subclass_of_a_softmax_router_trains_with_its_balance_loss() -> None:
    """The loss is that of the function on half of the logits, before the noise and after it."""
    moe = MoEConfig(blocks=((0,),), num_experts=3, router=PATH)
    router = build_router(4, moe, 0)
    assert type(router) is HalvedRouter
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(router.weight, generator=generator)
    tokens, keys = torch.randn(6, 4, generator=generator), torch.arange(6)
    request = RoutingRequest(groups=2, length=3, top_k=1, factor=1.25, slots=2)
    plain = build_router(4, MoEConfig(blocks=((0,),), num_experts=3), 0)
    assert isinstance(plain.weight, torch.nn.Parameter)
    plain.weight.data = router.weight.data / 2
    found, wanted = router(tokens, keys, request), plain(tokens, keys, request)
    assert found.losses["balance"] > 0
    torch.testing.assert_close(found.losses["balance"], wanted.losses["balance"])


def test_names_and_balance_losses_of_built_in_routers_are_those_of_their_classes() -> None:
    assert set(ROUTERS) == set(ROUTER_NAMES)
    for name in ROUTER_NAMES:
        factor = 1.0 if name == "expert_choice" else 0.0
        moe = MoEConfig(blocks=((0,),), num_experts=2, router=name, eval_capacity_factor=factor)
        assert build_router(4, moe, 0).auto_balance == moe.balance


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lineer", r"model.moe.router \(lineer\): no such router; did you mean linear\?"),
        ("zzz", "known here: linear, cosine"),
        ("nowhere:Router", "cannot be imported: No module named 'nowhere'"),
        ("os:getcwd", "is no subclass of Router"),
        ("tests.swin_moe.moe.routers.own:Other", "cannot be imported: module"),
    ],
)
def test_a_router_that_is_none(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        MoEConfig(blocks=((0,),), num_experts=2, router=name)


def test_the_noise_rule_holds_for_a_subclass() -> None:
    with pytest.raises(ModelError, match="importance_load needs model.moe.gate_noise"):
        MoEConfig(blocks=((0,),), num_experts=2, router=PATH, gate_noise=0.0)
