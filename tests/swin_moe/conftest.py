"""What the model tests share."""

import pytest
import torch


@pytest.fixture
def router_in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a double model route in double too, so that its layers can be compared to 1e-10.

    The router casts tokens and weights with `.float()`, by design: routing is fp32 in every precision. Its
    rounding (1e-7) would hide the rest of a double layer, and fp32 GEMMs of other sizes round otherwise. So
    `.float()` becomes `.double()` for the length of a test; nothing else in the comparison changes.
    """
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
