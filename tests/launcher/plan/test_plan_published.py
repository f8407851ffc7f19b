"""The shares of a predicted speed that every command prints, against predictions of the published runs."""

import pytest

from benchmarks.plan_published import scaling, timm
from launcher.plan.base.hardware import load_hardware
from launcher.plan.time.published import MOE_ON_A100, TIMM_ON_3090, Reached


@pytest.mark.slow
@pytest.mark.parametrize("reached", [MOE_ON_A100, TIMM_ON_3090], ids=["moe", "timm"])
def test_shares_are_those_of_the_published_runs(reached: Reached) -> None:
    rows = timm() if reached is TIMM_ON_3090 else scaling(load_hardware("a100-40"), {})
    shares = [row["published"] / row["predicted"] for row in rows]
    assert (min(shares), max(shares)) == pytest.approx((reached.low, reached.high), abs=0.006)
