"""Our attention on every kernel that torch may choose, against fp64.

Legend: B images, S windows an image, h heads, n tokens a window, d = 32 channels a head.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend

from gpu_checks.cases import as_in_a_run, attempt, distance, not_numbers
from gpu_checks.place import CheckContext, Row, row
from swin_moe import gpu
from swin_moe.backbone import attention
from swin_moe.backbone.position_bias import TableBias
from swin_moe.backbone.windows import WindowGrid

SHAPES = {  # n: (B, S, h), of the first stages of real models, where the windows are shifted; fp64 bounds B
    49: (32, 64, 3),  # Swin-T at 224
    64: (32, 64, 3),  # SwinV2-T, windows of 8 at 256
    144: (16, 16, 3),  # Swin-MoE at 192
    256: (8, 16, 3),  # SwinV2-T, windows of 16 at 256
    36: (64, 4, 24),  # the last stage of Swin-MoE, which is 6 x 6
    576: (1, 16, 4),  # SwinV2-B, windows of 24 at 384
    1600: (1, 4, 3),  # windows of 40 at 640
}
SMALL = {49: (1, 4, 2), 64: (2, 4, 2), 36: (1, 1, 2)}  # of a rehearsal
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
BOUNDS = {torch.bfloat16: 0.03, torch.float16: 0.004, torch.float32: 1e-4}  # relative errors
KINDS = ("bias trains", "bias frozen", "no_grad")
BACKENDS = {backend.value: name for name, backend in SDPBackend.__members__.items()}
WIDTH = 32  # d


@dataclass(frozen=True)
class Inputs:
    """What one attention gets, and its exact answer and gradients."""

    qkv: Tensor  # (W, n, 3 * h * d)
    bias: Tensor  # (h, n, n)
    mask: Tensor | None  # (S, n, n)
    cotangent: Tensor  # (B, S, h, n, d) of the answer
    mixer: attention.WindowAttention
    exact: list[Tensor]  # out, dq, dk, dv, dbias in fp64

    def run(self, kind: str, *, backward: bool = True) -> tuple[Tensor, list[Tensor]]:
        """The answer, and the gradients of qkv and the bias that this kind has."""
        qkv = self.qkv.detach().requires_grad_(kind != "no_grad" and kind != "only the bias trains")
        bias = self.bias.detach().requires_grad_(kind in ("bias trains", "only the bias trains"))
        with torch.no_grad() if kind == "no_grad" else nullcontext():
            out = self.attend(qkv, bias)
        leaves = [x for x in (qkv, bias) if x.requires_grad]
        if not leaves or not backward:
            return out, []
        return out, list(torch.autograd.grad(out, leaves, self.cotangent))

    def attend(self, qkv: Tensor, bias: Tensor) -> Tensor:
        """As WindowAttention does it, without its two linear maps."""
        q, k, v = self.mixer.split_heads(qkv, 1 if self.mask is None else len(self.mask))
        if self.mask is not None:
            bias = bias + self.mask.to(bias.dtype)[:, None]
        return attention.fused_attention(q, k, v, bias.to(q.dtype), self.mixer.scale)


def kernels(place: CheckContext) -> Iterator[Row]:
    """Every window size, precision and way to train, with cuDNN off as in a run; then what cuDNN does."""
    as_in_a_run(place)
    shapes = SMALL if place.rehearsal else SHAPES
    cases = [(n, masked) for n in shapes for masked in (False, True)]
    with patch.object(gpu, "on_gpu", lambda x: True):  # also in a rehearsal
        for n, masked in cases:
            for dtype in DTYPES:
                inputs = make_inputs(place, n, shapes[n], dtype, masked=masked)
                for kind in KINDS:
                    yield measure(place, inputs, kind)
        yield attempt("far below zero", lambda: far_below_zero(place, cudnn=False))
        yield from with_cudnn(place, shapes, cases)
        yield attempt("far below zero, cuDNN on", lambda: far_below_zero(place, cudnn=True), ok=None)
        inputs = make_inputs(place, 49, shapes[49], torch.bfloat16, masked=True)
        # Last, and no mistake of ours: torch 2.11 may read address 0 (pytorch issue 148476).
        yield {**measure(place, inputs, "only the bias trains"), "ok": None}


def with_cudnn(
    place: CheckContext, shapes: dict[int, tuple[int, int, int]], cases: list[Any]
) -> Iterator[Row]:
    """What happens where a bias has no gradient and cuDNN's attention is allowed."""
    for n, masked in cases:
        inputs = make_inputs(place, n, shapes[n], torch.bfloat16, masked=masked)
        for kind in ("no_grad", "bias frozen"):
            with cudnn_attention(True):
                yield {**measure(place, inputs, kind, "cuDNN on, "), "ok": None}


def make_inputs(
    place: CheckContext, n: int, shape: tuple[int, int, int], dtype: torch.dtype, *, masked: bool
) -> Inputs:
    """Standard normal queries, keys and values, and a bias; without a mask all windows are in the batch."""
    images, windows, heads = shape
    side = math.isqrt(n)
    generator = torch.Generator(place.device).manual_seed(n)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=place.device).to(dtype)

    mask = None
    if masked:
        across = side * max(2, math.isqrt(windows))
        mask = WindowGrid(window=(side, side), shifted=True).mask(across, across)
        assert mask is not None
        windows, mask = len(mask), mask.to(place.device)
    with torch.device("meta"):
        mixer = attention.WindowAttention(heads * WIDTH, heads, TableBias((side, side), heads))
    total, together = images * windows, windows if masked else 1
    qkv, bias = draw(total, n, 3 * heads * WIDTH), draw(heads, n, n)
    cotangent = draw(total // together, together, heads, n, WIDTH)
    return Inputs(qkv, bias, mask, cotangent, mixer, exact_answer(qkv, bias, mask, cotangent, heads))


def exact_answer(
    qkv: Tensor, bias: Tensor, mask: Tensor | None, cotangent: Tensor, heads: int
) -> list[Tensor]:
    """Out, dq, dk, dv (B, S, h, n, d) and dbias (h, n, n) in fp64, by plain products."""
    shape = cotangent.shape
    q, k, v = (
        x.double().view(*shape[:2], shape[3], heads, WIDTH).transpose(2, 3).contiguous().requires_grad_()
        for x in qkv.chunk(3, dim=-1)
    )
    wide = bias.double().requires_grad_()
    scores = (q * WIDTH**-0.5) @ k.mT + wide
    scores = scores if mask is None else scores + mask.double()[:, None]
    out = scores.softmax(-1) @ v
    return [out.detach(), *torch.autograd.grad(out, [q, k, v, wide], cotangent.double())]


def measure(place: CheckContext, inputs: Inputs, kind: str, prefix: str = "") -> Row:
    """One row: the kernel, its errors, its time and its memory."""
    _, n, _ = inputs.qkv.shape
    dtype, shape = inputs.qkv.dtype, tuple(inputs.cotangent.shape[:3])
    what = (
        f"{prefix}n {n}, {str(dtype).removeprefix('torch.')}, {kind}{', masked' * (inputs.mask is not None)}"
    )

    def work() -> Row:
        place.poison(0.5)
        errors, ok = errors_of(inputs, kind)
        numbers = {
            "shape": f"{shape}",
            "kernel": choice(inputs, kind),
            "kernel_cudnn_on": choice(inputs, kind, cudnn=True),
            **errors,
            **times_of(place, inputs, kind),
            "peak_gb": place.peak_gb(lambda: inputs.run(kind)),
        }
        return row(what, ok=ok, **numbers)

    return attempt(what, work)


def errors_of(inputs: Inputs, kind: str) -> tuple[dict[str, float | None], bool]:
    """Relative errors of the answer and of each gradient (None where there is none), and the verdict."""
    out, gradients = inputs.run(kind)
    found = {"out": out}
    if kind in ("bias trains", "bias frozen"):
        parts = inputs.mixer.split_heads(gradients[0], 1 if inputs.mask is None else len(inputs.mask))
        found |= dict(zip(("dq", "dk", "dv"), parts, strict=True))
    if kind in ("bias trains", "only the bias trains"):
        found["dbias"] = gradients[-1]
    exact = dict(zip(("out", "dq", "dk", "dv", "dbias"), inputs.exact, strict=True))
    errors = {name: distance(x, exact[name]) for name, x in found.items()}
    bad = not_numbers(list(found.values()))
    ok = bad == 0 and max(errors.values()) <= BOUNDS[inputs.qkv.dtype]
    return {name: errors.get(name) for name in exact} | {"not_numbers": bad}, ok


def times_of(place: CheckContext, inputs: Inputs, kind: str) -> dict[str, float | None]:
    """Milliseconds of a forward pass, and of a backward pass where there is one."""
    forward = place.milliseconds(lambda: inputs.run(kind, backward=False))
    if kind == "no_grad":
        return {"forward_ms": forward, "backward_ms": None}
    return {
        "forward_ms": forward,
        "backward_ms": max(0.0, place.milliseconds(lambda: inputs.run(kind)) - forward),
    }


def choice(inputs: Inputs, kind: str, *, cudnn: bool = False) -> str:
    """The kernel that torch takes for what `fused_attention` hands to it."""
    found: list[int] = []

    def ask(q: Tensor, k: Tensor, v: Tensor, *, attn_mask: Tensor, scale: float) -> Tensor:
        found.append(torch._fused_sdp_choice(q, k, v, attn_mask=attn_mask, scale=scale))
        return q

    with patch.object(F, "scaled_dot_product_attention", ask), cudnn_attention(cudnn):
        inputs.run(kind, backward=False)
    return BACKENDS[found[0]].removesuffix("_ATTENTION").lower()


@contextmanager
def cudnn_attention(enabled: bool) -> Iterator[None]:
    """Allow cuDNN's attention, or not."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(enabled)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def far_below_zero(place: CheckContext, *, cudnn: bool) -> Row:
    """A frozen bias with rows of -100, as far as SwinV2's logits reach: no gradient may be NaN at n = 64.

    A kernel whose logsumexp of such a row underflows would give NaN (pytorch issue 196678).
    """
    shape = (SMALL if place.rehearsal else SHAPES)[64]
    inputs = make_inputs(place, 64, shape, torch.bfloat16, masked=True)
    with torch.no_grad():
        inputs.bias[:, ::3] = -100.0  # a constant in a row, which softmax does not see
    mask = inputs.mask
    exact = exact_answer(inputs.qkv, inputs.bias, mask, inputs.cotangent, inputs.mixer.num_heads)
    inputs = Inputs(inputs.qkv, inputs.bias, mask, inputs.cotangent, inputs.mixer, exact)
    with cudnn_attention(cudnn):
        errors, ok = errors_of(inputs, "bias frozen")
        kernel = choice(inputs, "bias frozen", cudnn=cudnn)
    what = f"n 64, bfloat16, bias frozen, rows of -100{', cuDNN on' * cudnn}"
    return row(what, ok=None if cudnn else ok, kernel=kernel, **errors)
