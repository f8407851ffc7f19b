"""What the model tests share."""

import pytest
import torch


@pytest.fixture
def cosine_in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a double model normalise queries and keys in double too, so that it can be compared to 1e-10.

    Cosine attention casts them with `.float()`, by design: the normalisation is fp32 in every precision. Its
    rounding (1e-7) would hide the rest of a double layer. So `.float()` becomes `.double()` for the length of
    a test; nothing else in the comparison changes.
    """
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
