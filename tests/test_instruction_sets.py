"""What depends on the processor's instruction sets, run once with those of a smaller processor.

oneDNN, MKL and torch's own kernels choose their code by the processor. With AVX2 alone they take the paths of
a processor without AVX-512, AMX and fp16 instructions, which must give results as right as the others.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.deploy.targets.processor import instructions

ROOT = Path(__file__).parents[1]
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
KERNELS = (
    "tests/swin_moe/moe/test_experts.py",  # in bf16 and fp16 too
    "tests/swin_moe/moe/test_grouped_gemm.py",
    "tests/swin_moe/backbone/test_attention.py",
    "tests/data_shards/augment/test_operations.py",  # augmentation on the device
)
ENGINES = ("tests/parallel/zero/test_init.py",)  # ZeRO stage 3 from its construction, made of those kernels
HERE = instructions()
WIDER = ("avx512", "avx_", "avx10", "amx")  # 512 bits, or more kinds of products of 256
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        "avx2" in HERE and not any(name.startswith(WIDER) for name in HERE),
        reason="this processor has AVX2 alone, so that these tests themselves show it",
    ),
]


@pytest.mark.parametrize(
    "tests", [KERNELS, pytest.param(ENGINES, marks=pytest.mark.slow)], ids=["kernels", "engines"]
)
def test_what_depends_on_instruction_sets_holds_with_avx2_alone(
    tests: tuple[str, ...], tmp_path: Path
) -> None:
    chosen = [str(ROOT / test) for test in tests]
    # gradients against differences are of formulas in fp64, which no kernel of another processor changes
    chosen = ["-k", "not gradcheck", *chosen]
    options = ["-p", "no:cacheprovider", f"--basetemp={tmp_path / 'tests'}", f"--rootdir={ROOT}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *chosen],
        cwd=ROOT,
        env={**os.environ, **AVX2},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def test_the_processor_has_no_fp16_instructions_then() -> None:
    asked = "import torch; print(torch.ops.mkldnn._is_mkldnn_fp16_supported())"
    done = subprocess.run(
        [sys.executable, "-c", asked], env={**os.environ, **AVX2}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
