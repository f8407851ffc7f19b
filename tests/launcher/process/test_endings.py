"""What an exception that ends a rank amounts to."""

import pytest
import torch.distributed as dist

from launcher.exit_codes import ExitCode
from launcher.process.classify_exit import as_run_error
from parallel.ranks.identity import node_name
from parallel.watchdog.options import WatchdogOptions
from parallel.watchdog.watch import Watchdog


@pytest.fixture
def watch() -> Watchdog:
    found = Watchdog(dist.HashStore(), 3, 1, WatchdogOptions(timeout_s=60, hang_code=81, lost_code=80))
    found.begin(7)
    return found


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be reported later",
        "CUDA error: uncorrectable NVLink error detected during the execution",
        "CUDA error: hardware stack error",
        "CUDA error: unspecified launch failure",
        "Unable to determine the device handle for GPU0: 0000:1B:00.0: GPU is lost",
    ],
)
def test_a_gpu_that_fails_is_named_with_its_node_and_the_run_goes_on_elsewhere(
    watch: Watchdog, text: str
) -> None:
    found = as_run_error(RuntimeError(text), watch, 8, 1)
    assert found is not None
    assert found.code == ExitCode.HARDWARE
    assert found.code.is_worth_restarting
    assert not found.code.is_of_another_rank
    assert str(found).startswith(
        f"rank 3 (node {node_name()}), step 7: its GPU failed: {text.splitlines()[0]}; "
    )
    assert "\n" not in str(found)


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: device-side assert triggered",
        "CUDA error: misaligned address",
    ],
)
def test_a_kernels_mistake_is_a_bug(watch: Watchdog, text: str) -> None:
    assert as_run_error(RuntimeError(text), watch, 8, 1) is None
