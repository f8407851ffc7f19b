"""Single operations of a step in the forms that they have or might have: milliseconds, and equal results."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu_checks.place import CheckContext, Row, close, row
from gpu_checks.subjects import Work, device_of, free
from swin_moe.moe.dispatch import _weighted_sum
from swin_moe.random import hashing
from swin_moe.random.keyed import DropPath, branch_scales, drop_bound, mask_preactivations_, sample_keys

BF16 = torch.bfloat16


def pieces(place: CheckContext) -> Iterator[Row]:
    """Every comparison; one that fails costs itself alone."""
    device = device_of(place)
    for make in (_mask, _drop_paths, _qkv, _layer_norm, _patches, _combine, _sort):
        try:
            yield from make(place, device)
        except Exception as error:
            yield row(make.__name__[1:], ok=False, error=f"{type(error).__name__}: {error}"[:400])
        free()


def _timed(place: CheckContext, what: str, works: dict[str, Work], moved: float = 0.0) -> Iterator[Row]:
    """A row for each way, in milliseconds and over the first one; `moved` bytes give TB/s."""
    first = None
    for name, work in works.items():
        ms = place.milliseconds(work)
        first = ms if first is None else first
        figures = {"ms": ms, "ratio_to_first": ms / first}
        if moved:
            figures["tb_s"] = moved / ms / 1e9
        yield row(f"{what}: {name}", **figures)


def _rows(place: CheckContext, small: int, large: int) -> int:
    return small if place.rehearsal else large


def _mask(place: CheckContext, device: torch.device) -> Iterator[Row]:
    """Dropout of the experts' hidden rows at a rate of 0.1: our kernel, our operators, torch's own."""
    n, rows, rate = 1536, _rows(place, 64, 18432), 0.1
    x = torch.randn(rows, n, device=device, dtype=BF16)
    keys = sample_keys(0, torch.arange(rows)).to(device)
    a, b = x.clone(), x.clone()
    mask_preactivations_(a, keys, rate)
    hashing.torch_mask_(b, keys, drop_bound(rate), 0)
    yield row("mask_preactivations_ and its operators in torch are equal", ok=bool(torch.equal(a, b)))
    share = float((a.float() < -1e30).float().mean())
    yield row("share that mask_preactivations_ drops", ok=abs(share - rate) < 0.02, share=share, rate=rate)
    works: dict[str, Work] = {
        "mask_preactivations_": lambda: mask_preactivations_(a, keys, rate),
        "its operators in torch": lambda: hashing.torch_mask_(b, keys, drop_bound(rate), 0),
        "F.dropout": lambda: F.dropout(x, rate, training=True),
    }
    yield from _timed(place, "expert dropout", works, moved=4.0 * rows * n)


def _drop_paths(place: CheckContext, device: torch.device) -> Iterator[Row]:
    """The branches of a Swin-S, 46 of them that drop: drawn together, and one by one."""
    paths = [DropPath(0.2 * (i + 1) / 48, i).to(device).train() for i in range(48)]
    keys = sample_keys(0, torch.arange(_rows(place, 4, 128))).to(device)

    def single() -> Tensor:
        return torch.cat(
            [found for path in paths if (found := branch_scales([path], keys, BF16)) is not None]
        )

    together = branch_scales(paths, keys, BF16)
    assert together is not None
    yield row("drop path draws are equal", ok=bool(torch.equal(together, single())))
    works: dict[str, Work] = {"together": lambda: branch_scales(paths, keys, BF16), "one by one": single}
    yield from _timed(place, "drop path, 48 branches", works)


def _qkv(place: CheckContext, device: torch.device) -> Iterator[Row]:
    """Attention of Swin-T's first stage, forward and backward: queries where they are, or copied."""
    images, windows, heads, n = _rows(place, 2, 128), 64, 3, 49
    bias = torch.randn(1, heads, n, n, device=device, dtype=BF16, requires_grad=True)
    qkv = torch.randn(
        images * windows, n, 3, heads, 32, device=device, dtype=BF16, requires_grad=True
    )  # as the linear layer gives them
    grad = torch.randn(images * windows, heads, n, 32, device=device, dtype=BF16)

    def attend(split: Callable[[Tensor], tuple[Tensor, ...]]) -> Tensor:
        out = F.scaled_dot_product_attention(*split(qkv), attn_mask=bias)
        out.backward(grad)
        found, qkv.grad, bias.grad = qkv.grad, None, None
        assert found is not None
        return found

    def strided(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(part.transpose(1, 2) for part in x.unbind(2))

    def copied(x: Tensor) -> tuple[Tensor, ...]:
        return x.permute(2, 0, 3, 1, 4).contiguous().unbind(0)

    yield close("qkv gradient, strided against copied", attend(strided), attend(copied), 0.02)
    works: dict[str, Work] = {"strided": lambda: attend(strided), "copied": lambda: attend(copied)}
    yield from _timed(place, "attention of stage 1, forward and backward", works)


def _layer_norm(place: CheckContext, device: torch.device) -> Iterator[Row]:
    """LayerNorm of the first stage's map with weights on 16 bytes, and 2 bytes beside."""
    c, rows = 96, _rows(place, 64, 128 * 56 * 56)
    x = torch.randn(rows, c, device=device, dtype=BF16, requires_grad=True)
    grad = torch.randn_like(x)
    flat = torch.randn(4 * c, device=device, dtype=BF16)

    def norm(start: int) -> Work:
        weight, bias = (flat[i : i + c].detach().requires_grad_() for i in (start, start + 2 * c))

        def work() -> None:
            F.layer_norm(x, (c,), weight, bias).backward(grad)
            x.grad = weight.grad = bias.grad = None

        return work

    def forward(start: int) -> Work:
        weight, bias = flat[start : start + c], flat[start + 2 * c : start + 3 * c]
        return lambda: F.layer_norm(x.detach(), (c,), weight, bias)

    works = {"aligned": norm(0), "2 bytes off": norm(1)}
    yield from _timed(place, "LayerNorm, forward and backward", works, moved=2.0 * 5 * rows * c)
    works = {"aligned": forward(0), "2 bytes off": forward(1)}
    yield from _timed(place, "LayerNorm, forward", works, moved=2.0 * 2 * rows * c)


def _patches(place: CheckContext, device: torch.device) -> Iterator[Row]:
    """The patch embedding of 224 pixels, forward and weight gradient: a convolution, or a linear layer."""
    batch, dim, p = _rows(place, 2, 128), 96, 4
    images = torch.randn(batch, 3, 224, 224, device=device, dtype=BF16)
    weight = torch.randn(dim, 3, p, p, device=device, dtype=BF16, requires_grad=True)
    bias = torch.zeros(dim, device=device, dtype=BF16, requires_grad=True)
    grad = torch.randn(batch, 56, 56, dim, device=device, dtype=BF16)

    def convolution() -> Tensor:
        return F.conv2d(images, weight, bias, stride=p).permute(0, 2, 3, 1)

    def linear() -> Tensor:
        patches = images.view(batch, 3, 56, p, 56, p).permute(0, 2, 4, 1, 3, 5).reshape(-1, 3 * p * p)
        return F.linear(patches, weight.view(dim, -1), bias).view(batch, 56, 56, dim)

    def step(project: Callable[[], Tensor]) -> None:
        project().backward(grad)
        weight.grad = bias.grad = None

    yield close("patch embedding, linear against convolution", linear(), convolution(), 0.02)
    works: dict[str, Work] = {"convolution": lambda: step(convolution), "linear": lambda: step(linear)}
    yield from _timed(place, "patch embedding, forward and backward", works)


def _combine(place: CheckContext, device: torch.device) -> Iterator[Row]:
    """The sum of a token's rows by its gates: embedding_bag, and gathers."""
    tokens, c = _rows(place, 64, 18432), 384
    for top_k in (1, 2):
        rows = torch.randn(tokens * top_k, c, device=device, dtype=BF16)
        index = torch.randperm(tokens * top_k, device=device).view(tokens, top_k)
        gates = torch.rand(tokens, top_k, device=device, dtype=BF16)

        def gathered(
            rows: Tensor = rows, index: Tensor = index, gates: Tensor = gates, top_k: int = top_k
        ) -> Tensor:
            y = rows.index_select(0, index[:, 0]) * gates[:, :1]
            for k in range(1, top_k):
                y = torch.addcmul(y, rows.index_select(0, index[:, k]), gates[:, k : k + 1])
            return y

        def bag(rows: Tensor = rows, index: Tensor = index, gates: Tensor = gates) -> Tensor:
            return _weighted_sum(rows, index, gates, masked=False)

        yield close(f"combine, k={top_k}: gathers against embedding_bag", gathered(), bag(), 0.02)
        works: dict[str, Work] = {"embedding_bag": bag, "gathers": gathered}
        yield from _timed(place, f"combine, k={top_k}", works, moved=2.0 * tokens * c * (top_k + 1))


def _sort(place: CheckContext, device: torch.device) -> Iterator[Row]:
    """A stable sort of the experts that the tokens want."""
    tokens = _rows(place, 64, 18432)
    keys = torch.randint(0, 8, (tokens,), device=device)
    works: dict[str, Work] = {}
    for dtype in (torch.int64, torch.int32, torch.int16, torch.uint8):
        own = keys.to(dtype)
        works[str(dtype).removeprefix("torch.")] = lambda own=own: own.sort(stable=True)  # type: ignore[misc]
    yield from _timed(place, f"stable sort of {tokens} keys", works)
