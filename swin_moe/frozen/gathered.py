"""Each expert on the tokens that chose it.

The number of these tokens is known when the model runs, so that `torch.compile` would cut the model at every
expert, and compile the parts anew for each layer and expert up to its limit. It gets an operator in their
place, of which it knows the shape of the result alone. Programs of `torch.export` have the products
themselves.

Legend: T tokens, k choices a token, E experts, M tokens of an expert, C channels, H hidden channels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from swin_moe.moe.grouped_gemm import ACTIVATIONS


def gathered_experts(
    tokens: Tensor,
    weights: Tensor,
    index: Tensor,
    first: Sequence[Tensor],
    first_bias: Sequence[Tensor],
    fc2: Tensor,
    fc2_bias: Tensor | None,
    activation: str,
) -> Tensor:
    """The weighted answers of the experts that each token chose: (T, C).

    Args:
        tokens: (T, C).
        weights: (T, E) of the answers, in the precision of the tokens.
        index: (T, k) the experts of each token; E stands for none.
        first: the weights (E, C, H) of fc1, and of the gate if the activation has one.
        first_bias: (E, H) of each.
        fc2: (E, H, C).
        fc2_bias: (E, C).
        activation: one of `ACTIVATIONS`.
    """
    activate = ACTIVATIONS[activation].value
    y = sums_like(tokens)
    for expert in range(len(fc2)):
        row = (index == expert).any(1).nonzero()[:, 0]  # (M,)
        rows = tokens.index_select(0, row)
        pairs = zip(first, first_bias, strict=True)
        answer = activate([torch.addmm(b[expert], rows, w[expert]) for w, b in pairs], None) @ fc2[expert]
        answer = answer if fc2_bias is None else answer + fc2_bias[expert]
        weighted = answer * weights[:, expert].index_select(0, row)[:, None]
        y = y.index_add(0, row, weighted.to(y.dtype))
    return y.to(tokens.dtype)


def sums_like(tokens: Tensor) -> Tensor:
    """Zeros of the shape of `tokens`, in at least 32 bits.

    A program of AOTInductor (torch 2.14) that adds rows of 16 bits by their indices ends with an error.
    """
    return torch.zeros_like(tokens, dtype=torch.promote_types(tokens.dtype, torch.float32))


_operator = torch.library.custom_op("swin_moe::gathered_experts", gathered_experts, mutates_args=())


@_operator.register_fake
def _shape(tokens: Tensor, *others: object) -> Tensor:
    return torch.empty_like(tokens)


def run_gathered(*arguments: object) -> Tensor:
    """`gathered_experts`, as one operator where `torch.compile` traces it."""
    is_traced = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
    result: Tensor = (_operator if is_traced else gathered_experts)(*arguments)  # type: ignore[arg-type]
    return result
