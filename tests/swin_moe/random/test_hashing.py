"""The hashes as one operator each, and as Triton kernels, against torch's operators: bit for bit.

Triton's interpreter runs the kernels on a CPU; it is chosen when triton loads, hence in another process.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from swin_moe import gpu
from swin_moe.random import hashing
from swin_moe.random.keyed import fold_in, keep_mask, mask_preactivations_, normal, sample_keys, uniform

EDGES = torch.tensor([0, -1, 2**63 - 1, -(2**63), 2**31, 2**32 - 1])
KEYS = torch.cat([EDGES, sample_keys(5, torch.arange(60))])
BOUNDS = [int(0.1 * 2**32) - 2**31, -(2**31), 2**31 - 1]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CODE = "import tests.swin_moe.random.test_hashing as t; t.compare_kernels()"
needs_triton = pytest.mark.skipif(not hashing.importlib.util.find_spec("triton"), reason="pip install triton")


def special(n: int, dtype: torch.dtype) -> Tensor:
    """Numbers (66, n), with those that an addition may treat in its own way."""
    x = (torch.randn(len(KEYS), n, generator=torch.Generator().manual_seed(n)) * 3).to(dtype)
    x[0], x[1], x[2], x[3] = -0.0, float("nan"), float("inf"), torch.finfo(dtype).min
    return x


def bits(x: Tensor) -> Tensor:
    """The bits of numbers, of which all that are not numbers count as one."""
    integers = {2: torch.int16, 4: torch.int32}[x.element_size()]
    return x.where(~x.isnan(), 0.0).view(integers) + x.isnan().to(integers)


def compare_kernels() -> None:
    """Run by `test_triton_kernels` in a process of its own."""
    from swin_moe.random import triton_hashing

    assert torch.equal(triton_hashing.mix(KEYS), hashing.mix(KEYS))
    assert torch.equal(triton_hashing.mix(KEYS.view(2, 3, 11).mT), hashing.mix(KEYS.view(2, 3, 11).mT))
    assert triton_hashing.mix(KEYS[:0]).shape == (0,)
    for n, start in [(1, 0), (50, 7), (1100, 3), (0, 0)]:
        words = hashing.words(KEYS, n, start)
        assert torch.equal(triton_hashing.words(KEYS, n, start), words)
        for dtype in DTYPES if n else []:
            for bound in BOUNDS:
                got, expected = special(n, dtype), special(n, dtype)
                triton_hashing.mask_(got, KEYS, bound, start, hashing.lowest(dtype))
                hashing.mask_(expected, KEYS, bound, start)
                assert torch.equal(bits(got), bits(expected)), (n, dtype, bound)
    wide, expected = special(64, torch.float32), special(64, torch.float32)  # some columns of a wider matrix
    triton_hashing.mask_(wide[:, 8:40], KEYS, 0, 8, hashing.lowest(torch.float32))
    hashing.mask_(expected[:, 8:40], KEYS, 0, 8)
    assert torch.equal(bits(wide), bits(expected))


@pytest.mark.long
@needs_triton
def test_triton_kernels() -> None:
    root = Path(__file__).parents[3]
    path = os.pathsep.join([str(root), *sys.path])
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            CODE,
        ],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
def test_triton_kernels_compile_without_a_gpu(capability: int) -> None:
    """For the dtypes of a run; the main one reads whole 16 bytes."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from swin_moe.random import triton_hashing

    integers = ("rows", "n", "stride", "start", "bound")
    signature = {"x_ptr": "*bf16", "keys_ptr": "*i64", **dict.fromkeys(integers, "i32"), "amount": "fp32"}
    source = ASTSource(
        fn=triton_hashing.mask_kernel,
        signature={**signature, "ROWS": "constexpr", "COLUMNS": "constexpr"},
        constexprs={(8,): 1, (9,): 1024},
        attrs={(i,): [["tt.divisibility", 16]] for i in (0, 3, 4)},
    )
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert "ld.global.v4" in built.asm["ptx"]


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "on_gpu", lambda x: True)


def draws() -> list[Tensor]:
    """Every kind of draw."""
    masked = special(50, torch.bfloat16)
    mask_preactivations_(masked, KEYS, 0.3, start=7)
    return [
        fold_in(KEYS, 3),
        fold_in(KEYS[:, None], torch.arange(4)),
        sample_keys(1, torch.arange(5)),
        uniform(KEYS, 9),
        normal(KEYS, 9),
        keep_mask(KEYS, 9, 0.3, start=2),
        bits(masked),
    ]


def test_operators_give_the_same_draws(request: pytest.FixtureRequest) -> None:
    expected = draws()
    request.getfixturevalue("as_on_a_gpu")
    for got, wanted in zip(draws(), expected, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_operators_know_tensors_without_values() -> None:
    keys = KEYS.to("meta")
    assert (fold_in(keys, 3).shape, normal(keys, 9).shape) == ((66,), (66, 9))
    mask_preactivations_(torch.empty(66, 5, device="meta"), keys, 0.3)
    for operator, arguments in [
        (torch.ops.swin_moe.mix, (KEYS,)),
        (torch.ops.swin_moe.words, (KEYS, 5, 2)),
        (torch.ops.swin_moe.mask_, (torch.zeros(66, 5), KEYS, 3, 2)),
    ]:
        torch.library.opcheck(operator, arguments)
