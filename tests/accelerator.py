"""Whether DeepSpeed's accelerator says that it computes fp16, set by a test on any processor.

DeepSpeed takes the answer from the processor's instructions. Torch itself computes fp16 on every processor,
only slowly where the instructions are missing, so that a test may give either answer anywhere.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import pytest

ANSWER = "SWIN_MOE_TEST_FP16"  # "1" or "0"; the ranks that a test forks get it from their parent


class Surroundings(NamedTuple):
    """What a rank takes from the test that forks it; the fork server has those of the first such test."""

    directory: str
    answer: str | None

    @classmethod
    def of_this_test(cls) -> "Surroundings":
        return cls(os.getcwd(), os.environ.get(ANSWER))

    def enter(self) -> None:
        """Work there from now on, with an accelerator that gives this answer."""
        os.chdir(self.directory)
        if self.answer is not None:
            os.environ[ANSWER] = self.answer
            _patch().start()


def on_either_processor(*values: object) -> list[Any]:
    """Two entries of `parametrize` with the same values, one for each answer; the one with fp16 is slow.

    That engines work at either answer is in tests/parallel/zero, quickly.
    """
    without, with_fp16 = (pytest.mark.fp16_instructions(answer) for answer in (False, True))
    return [pytest.param(*values, marks=without), pytest.param(*values, marks=[with_fp16, pytest.mark.slow])]


@contextmanager
def answering(fp16: bool) -> Iterator[bool]:
    """Within it, the accelerator of this process and of the ranks that it forks gives this answer."""
    with mock.patch.dict(os.environ, {ANSWER: str(int(fp16))}), _patch():
        yield fp16


def _patch() -> "mock._patch[object]":
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    fp16 = os.environ[ANSWER] == "1"
    return mock.patch.object(CPU_Accelerator, "is_fp16_supported", return_value=fp16)
