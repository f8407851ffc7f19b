"""Keyed draws and the augmentation on the device against those on the CPU: bit for bit where they must be.

Legend: N rows, n elements a row, B pictures.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu_checks.cases import as_in_a_run, attempt
from gpu_checks.place import CheckContext, Row, row
from swin_moe.random import hashing
from swin_moe.random import keyed as randomness
from swin_moe.random.keyed import sample_keys

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LEVEL = 1 / 255 / 0.22  # one level of a uint8 picture, normalised
ROUNDING = 1e-5  # of normalised pictures: a mixture is one fused multiplication and addition on a GPU
OFF: dict[str, Any] = {
    "auto_augment": None,
    "color_jitter": 0.0,
    "erase_prob": 0.0,
    "mixup_alpha": 0.0,
    "cutmix_alpha": 0.0,
}
AUGMENTS: dict[str, dict[str, Any]] = {  # what may differ by a rounding; all others are equal
    "the recipe": {},
    "RandAugment": {**OFF, "auto_augment": "rand-m9-mstd0.5-inc1"},
    "RandAugment, bilinear": {**OFF, "auto_augment": "rand-m9-mstd0.5-inc1", "resample": "bilinear"},
    "color jitter": {**OFF, "color_jitter": 0.4},
    "normalising": OFF,
    "erasing": {**OFF, "erase_prob": 0.5},
    "mixup": {**OFF, "mixup_alpha": 0.8},
    "cutmix": {**OFF, "cutmix_alpha": 1.0},
}
ROUNDED = {"the recipe", "RandAugment", "RandAugment, bilinear", "mixup"}


def keyed(place: CheckContext) -> Iterator[Row]:
    """All of them: the model's draws, dropout forward and backward, the augmentation."""
    as_in_a_run(place)
    yield from model_draws(place)
    yield from dropout(place)
    yield from data_draws(place)
    yield from operations(place)
    yield from augmentation(place)


def keys_of(rows: int) -> Tensor:
    """Keys (N,) on the CPU: the edges of int64 and of its halves, then those of samples."""
    edges = torch.tensor([0, -1, 2**63 - 1, -(2**63), 2**31, 2**32 - 1])
    return torch.cat([edges, sample_keys(5, torch.arange(rows - len(edges)))])


def bits(x: Tensor) -> Tensor:
    """What equality of bits compares: integers and bools as they are, of floats all NaN as one."""
    x = x.detach().cpu()
    if not x.is_floating_point():
        return x
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    return x.where(~x.isnan(), 0.0).view(kind) + x.isnan().to(kind)


def equal(what: str, got: Tensor, wanted: Tensor) -> Row:
    """A row that holds that all bits are equal."""
    same_kind = got.shape == wanted.shape and got.dtype == wanted.dtype
    different = int((bits(got) != bits(wanted)).sum()) if same_kind else wanted.numel()
    return row(what, ok=same_kind and different == 0, different=different, of=wanted.numel())


def within(what: str, got: Tensor, wanted: Tensor, bound: float) -> Row:
    """A row that holds the largest absolute difference under `bound`, with it in units of the last place."""
    got, wanted = got.detach().cpu(), wanted.detach().cpu()
    largest = float((got.double() - wanted.double()).abs().max())
    step = wanted.abs().clamp(min=torch.finfo(wanted.dtype).tiny)
    step = torch.nextafter(step, torch.full_like(step, torch.inf)).double() - step.double()
    last_place = float(((got.double() - wanted.double()).abs() / step).max())
    shares = {
        "different_share": float((got != wanted).double().mean()),
        "beyond_rounding_share": float(((got - wanted).abs() > ROUNDING).double().mean()),
    }
    numbers = {"largest": largest, "bound": bound, "last_places": last_place, **shares}
    return row(what, ok=largest <= bound, **numbers)


def both(place: CheckContext, what: str, work: Callable[[torch.device], Tensor]) -> Row:
    """The same work on the device and on the CPU."""

    def compare() -> Row:
        place.poison(0.25)
        return equal(what, work(place.device), work(torch.device("cpu")))

    return attempt(what, compare)


def model_draws(place: CheckContext) -> Iterator[Row]:
    """Draws of swin_moe: keys, uniforms, normals, masks, SimMIM's patches, drop path."""
    from swin_moe.heads.simmim import draw_masks

    rows, n = (200, 70) if place.rehearsal else (20_000, 1536)
    keys = keys_of(rows)
    works: dict[str, Callable[[torch.device], Tensor]] = {
        "sample_keys": lambda at: sample_keys(3, torch.arange(rows, device=at)),
        "mix of a transposed tensor": lambda at: hashing.mix(keys[:198].to(at).view(2, 3, 33).mT),
        "fold_in by a number": lambda at: randomness.fold_in(keys.to(at), 7),
        "fold_in by tokens": lambda at: randomness.fold_in(keys.to(at)[:, None], torch.arange(9, device=at)),
        "split_keys": lambda at: randomness.split_keys(keys.to(at), 49),
        "uniform": lambda at: randomness.uniform(keys.to(at), 9),
        "words": lambda at: hashing.words(keys.to(at), n, 0),
        "words, one a row": lambda at: hashing.words(keys.to(at), 1, 3),
        "words from element 5 of 1025": lambda at: hashing.words(keys.to(at), 1020, 5),
        "keep_mask": lambda at: randomness.keep_mask(keys.to(at), n, 0.1),
        "keep_mask of some columns": lambda at: randomness.keep_mask(keys.to(at), 24, 0.3, start=24),
        "draw_masks": lambda at: draw_masks(keys[:128].to(at), 6, 6, 0.6),
    }
    for dtype in DTYPES:
        works[f"drop path's scales, {dtype}"] = lambda at, dtype=dtype: scales(keys, at, dtype)
    for what, work in works.items():
        yield both(place, what, work)
    normals = [randomness.normal(keys.to(at), 9) for at in (place.device, "cpu")]
    # sqrt and products are exact; log, cos and sin of a GPU are within 2 in the last place
    yield within("normal", *normals, bound=2e-6)
    yield within("the residual sum", *(residual(keys, at) for at in (place.device, "cpu")), bound=4e-6)


def scales(keys: Tensor, at: torch.device, dtype: torch.dtype) -> Tensor:
    """Drop path's draws of 24 branches."""
    paths = [randomness.DropPath(0.02 * i, i + 3).to(at) for i in range(24)]
    found = randomness.branch_scales(paths, keys.to(at), dtype)
    assert found is not None
    return found


def residual(keys: Tensor, at: torch.device | str) -> Tensor:
    """x + scale * y, in one kernel on a GPU."""
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(64, 9, 32, generator=generator).to(at) for _ in range(2))
    return randomness.add_branch(x, y, scales(keys, torch.device(at), x.dtype)[5, :64])


def special(n: int, dtype: torch.dtype, rows: int) -> Tensor:
    """Numbers (N, n), with those that an addition may treat in its own way."""
    x = (torch.randn(rows, n, generator=torch.Generator().manual_seed(n)) * 3).to(dtype)
    x[0], x[1], x[2], x[3] = -0.0, float("nan"), float("inf"), torch.finfo(dtype).min
    return x


def dropout(place: CheckContext) -> Iterator[Row]:
    """Dropout by marks (the experts') and by masks (the others'), forward and backward."""
    rows, n = (100, 70) if place.rehearsal else (4096, 1536)
    keys = keys_of(rows)
    for dtype in DTYPES:
        for width, start in ((n, 0), (1, 0), (33, 7)):
            x = special(width, dtype, rows)
            name = f"mask_preactivations_, {dtype}, {width} columns"
            yield both(place, name, lambda at, x=x, start=start: sunk(x, keys, at, start))
            if place.on_gpu:
                yield attempt(
                    name, lambda x=x, start=start, name=name: by_operators(place, x, keys, start, name)
                )
        yield both(
            place,
            f"mask_preactivations_, {dtype}, of a wider tensor",
            lambda at, d=dtype: strided(d, keys, at),
        )
        for name, function in (("GELU", F.gelu), ("SiLU", F.silu)):
            what = f"{name} of what mask_preactivations_ sank, {dtype}"
            yield attempt(
                what, lambda f=function, d=dtype, what=what: ends_at_zero(place, f, keys, n, d, what)
            )
    yield both(place, "Dropout, forward and backward", lambda at: masked(keys, at))
    if place.on_gpu:
        yield attempt("mask_preactivations_ past 2^31 elements", lambda: past_32_bits(place))


def sunk(x: Tensor, keys: Tensor, at: torch.device, start: int) -> Tensor:
    """A copy of x on a device, with its dropped elements sunk."""
    x = x.to(at, copy=True)
    randomness.mask_preactivations_(x, keys.to(at), 0.1, start=start)
    return x


def by_operators(place: CheckContext, x: Tensor, keys: Tensor, start: int, name: str) -> Row:
    """The Triton kernel against torch's operators, both on the GPU."""
    wanted = x.to(place.device, copy=True)
    hashing.torch_mask_(wanted, keys.to(place.device), randomness.drop_bound(0.1), start)
    got = sunk(x, keys, place.device, start)
    return equal(name, got, wanted)


def strided(dtype: torch.dtype, keys: Tensor, at: torch.device) -> Tensor:
    """Some columns of a wider tensor; the others must stay."""
    x = special(64, dtype, len(keys)).to(at)
    randomness.mask_preactivations_(x[:, 8:40], keys.to(at), 0.3, start=8)
    return x


def ends_at_zero(
    place: CheckContext,
    function: Callable[[Tensor], Tensor],
    keys: Tensor,
    n: int,
    dtype: torch.dtype,
    what: str,
) -> Row:
    """What is dropped must have value and derivative zero, and what is kept must be as without dropout."""
    x = torch.randn(len(keys), n, generator=torch.Generator().manual_seed(2)).to(place.device, dtype)
    keys = keys.to(place.device)
    keep = randomness.keep_mask(keys, n, 0.3)
    low = x.clone()
    randomness.mask_preactivations_(low, keys, 0.3)
    low.requires_grad_()
    whole = x.clone().requires_grad_()
    value, expected = function(low), function(whole)
    (slope,), (wanted,) = (
        torch.autograd.grad(y, z, torch.ones_like(y)) for y, z in ((value, low), (expected, whole))
    )
    not_zero = sum(int((part.masked_select(~keep) != 0).sum()) for part in (value, slope))
    changed = sum(
        int((got != want).masked_select(keep).sum()) for got, want in ((value, expected), (slope, wanted))
    )
    return row(what, ok=not_zero == changed == 0, dropped_not_zero=not_zero, kept_changed=changed)


def masked(keys: Tensor, at: torch.device) -> Tensor:
    """Value and gradient of the module Dropout."""
    x = torch.randn(len(keys), 5, 8, generator=torch.Generator().manual_seed(3)).to(at).requires_grad_()
    y = randomness.Dropout(0.2, 11).to(at)(x, keys.to(at))
    (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y))
    return torch.stack([y.detach(), gradient])


def past_32_bits(place: CheckContext) -> Row:
    """The last rows of a tensor of more than 2^31 elements."""
    rows, n = 2**17 + 8, 2**14 + 16
    keys = sample_keys(1, torch.arange(rows, device=place.device))
    x = torch.zeros(rows, n, dtype=torch.bfloat16, device=place.device)
    randomness.mask_preactivations_(x, keys, 0.1)
    wanted = torch.zeros_like(x[-9:])
    hashing.torch_mask_(wanted, keys[-9:], randomness.drop_bound(0.1), 0)
    return equal("mask_preactivations_ past 2^31 elements", x[-9:], wanted)


def data_draws(place: CheckContext) -> Iterator[Row]:
    """Draws of data_shards on tensors of the device, and the table of noise."""
    from data_shards.augment.erasing import noise_table
    from data_shards.format import rng_tensor as tensor_draws
    from data_shards.format.rng import Purpose

    positions = torch.arange(5000)

    def keys(at: torch.device) -> Tensor:
        return tensor_draws.keys(Purpose.ERASE, 3, positions.to(at))

    yield both(place, "keys of positions", keys)
    yield both(
        place, "64 bits a draw", lambda at: tensor_draws.bits(keys(at)[:, None], torch.arange(5, device=at))
    )
    yield both(place, "uniforms of 53 bits", lambda at: tensor_draws.uniforms(keys(at), 7))
    yield both(place, "noise by its table", lambda at: noise_table().to(at)[(keys(at) >> 48) & 0xFFFF])


def pictures(count: int, sides: tuple[int, int]) -> Tensor:
    """Random pictures (B, 3, H, W) uint8."""
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (count, 3, *sides), generator=generator, dtype=torch.uint8)


def operations(place: CheckContext) -> Iterator[Row]:
    """Each operation of RandAugment: tables are equal, warps within one level of a few pixels."""
    from data_shards.augment.operations import WARPS
    from data_shards.augment.randaugment import ImageOp, op_arguments

    count, sides = (4, (23, 37)) if place.rehearsal else (32, (191, 224))
    images = pictures(count, sides)
    strength = torch.linspace(0.0, 1.0, count, dtype=torch.float64)[:, None]
    sign = torch.ones_like(strength)
    sign[::2] = -1.0
    arguments = op_arguments(strength, sign, sides)[:, :, 0].float()  # (15, B)
    for op in ImageOp:
        if op == ImageOp.NOTHING:
            continue
        chosen = torch.full((count,), int(op))
        for mode in ("bicubic", "bilinear") if op in WARPS else ("bicubic",):
            what = f"{op.name.lower()}{f', {mode}' * (op in WARPS)}"

            def compare(what: str = what, op: int = op, mode: str = mode, chosen: Tensor = chosen) -> Row:
                results = [operated(images, chosen, arguments[op], mode, at) for at in (place.device, "cpu")]
                apart = (results[0].int() - results[1].int()).abs()
                levels, share = int(apart.max()), float((apart > 0).double().mean())
                ok = levels <= 1 and share < 0.05 if op in WARPS else levels == 0
                return row(what, ok=ok, levels=levels, different_share=share)

            yield attempt(what, compare)


def operated(images: Tensor, ops: Tensor, arguments: Tensor, mode: str, at: torch.device | str) -> Tensor:
    """The pictures after one operation on a device, on the CPU."""
    from data_shards.augment.operations import operate

    copy = images.to(at, copy=True)
    operate(copy, ops, arguments, torch.tensor([124, 116, 104], dtype=torch.uint8, device=at), mode)
    return copy.cpu()


def augmentation(place: CheckContext) -> Iterator[Row]:
    """Whole augmentations of a batch: equal, or within one level where a resampling or a mixture rounds."""
    sizes = [(8, (23, 37))] if place.rehearsal else [(64, (23, 37)), (64, (224, 224))]
    for count, sides in sizes:
        for name, changes in AUGMENTS.items():
            what = f"{name}, {count} pictures of {sides[0]} x {sides[1]}"

            def compare(
                what: str = what,
                changes: dict[str, Any] = changes,
                name: str = name,
                batch: tuple[int, tuple[int, int]] = (count, sides),
            ) -> Row:
                (ours, targets), (theirs, wanted) = (
                    augmented(changes, *batch, at) for at in (place.device, torch.device("cpu"))
                )
                found = within(what, ours, theirs, bound=2 * LEVEL if name in ROUNDED else 0.0)
                same = all(bool((bits(a) == bits(b)).all()) for a, b in zip(targets, wanted, strict=True))
                few = found["beyond_rounding_share"] < 0.05
                return {**found, "ok": found["ok"] and same and few, "targets_equal": same}

            yield attempt(what, compare)
    if place.on_gpu:
        yield attempt("the augmentation waits for nothing", lambda: without_waiting(place))


def augmented(
    changes: dict[str, Any], count: int, sides: tuple[int, int], at: torch.device
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Images and targets of a batch."""
    from data_shards.augment.pipeline import Augment, AugmentConfig

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    augment = Augment(AugmentConfig(**changes), seed=3, mean=mean, std=std, device=at)
    labels, positions = torch.arange(count) % 10, torch.arange(500, 500 + count)
    images, targets = augment(pictures(count, sides), labels, positions)
    return images, (*targets, targets.soft(10))


def without_waiting(place: CheckContext) -> Row:
    """With a batch on the host; torch raises where the host would wait for the device."""
    augmented({}, 16, (64, 64), place.device)  # what is only loaded once may wait
    torch.cuda.synchronize()
    from data_shards.augment.pipeline import Augment, AugmentConfig

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    augment = Augment(AugmentConfig(), seed=3, mean=mean, std=std, device=place.device)
    images, labels, positions = pictures(64, (64, 64)), torch.arange(64) % 10, torch.arange(64)
    torch.cuda.set_sync_debug_mode("error")
    try:
        augment(images, labels, positions)[1].soft(10)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return row("the augmentation waits for nothing", ok=True)
