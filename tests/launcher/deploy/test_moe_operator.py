"""Why experts do not become ONNX Runtime's own operator: its GELU is the approximation by tanh.

Legend: T tokens, C channels, H hidden channels, E experts, k choices a token.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

T, C, H, E = 6, 8, 16, 4


def by_loop(x: Tensor, logits: Tensor, weights: list[Tensor], k: int, normalize: bool, gelu: str) -> Tensor:
    """Every token by each expert that it chose."""
    w1, b1, w2, b2 = weights
    gates, chosen = logits.softmax(-1).topk(k, -1)
    gates = gates / gates.sum(-1, keepdim=True) if normalize else gates
    y = torch.zeros_like(x)
    for t in range(T):
        for gate, e in zip(gates[t], chosen[t], strict=True):
            hidden = F.gelu(x[t] @ w1[e] + b1[e], approximate=gelu)
            y[t] += gate * (hidden @ w2[e] + b2[e])
    return y


def by_operator(x: Tensor, logits: Tensor, weights: list[Tensor], k: int, normalize: bool) -> Tensor:
    """com.microsoft.MoE on a CPU; it has weights as (E, out, in)."""
    import onnx
    import onnxruntime

    w1, b1, w2, b2 = weights
    constants = {"w1": w1.transpose(1, 2), "b1": b1, "w2": w2.transpose(1, 2), "b2": b2}
    node = onnx.helper.make_node(
        "MoE",
        ["x", "logits", *constants],
        ["y"],
        domain="com.microsoft",
        k=k,
        activation_type="gelu",
        normalize_routing_weights=int(normalize),
    )
    shapes: dict[str, list[int]] = {"x": [T, C], "logits": [T, E], "y": [T, C]}
    values = {n: onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in shapes.items()}
    initial = [onnx.numpy_helper.from_array(c.contiguous().numpy(), name) for name, c in constants.items()]
    graph = onnx.helper.make_graph([node], "moe", [values["x"], values["logits"]], [values["y"]], initial)
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs: dict[str, Any] = {"x": x.numpy(), "logits": logits.numpy()}
    return torch.from_numpy(session.run(None, inputs)[0])


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("normalize", [False, True])
def test_the_operator_has_our_gates_and_another_gelu(k: int, normalize: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(T, C), (T, E), (E, C, H), (E, H), (E, H, C), (E, C)]
    x, logits, *weights = (torch.randn(*shape, generator=generator) for shape in shapes)
    found = by_operator(x, logits, weights, k, normalize)
    tanh, exact = (by_loop(x, logits, weights, k, normalize, gelu) for gelu in ("tanh", "none"))
    torch.testing.assert_close(found, tanh, rtol=1e-5, atol=1e-5)
    assert (found - exact).abs().max() > 1e-4
