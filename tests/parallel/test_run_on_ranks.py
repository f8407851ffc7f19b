"""The tests' own tool: values in rank order, failures that name the rank, nothing left behind."""

import multiprocessing.util
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.distributed import RankError, run_on_ranks


def whoami(word: str) -> tuple[str, int, int, int]:
    return word, dist.get_rank(), dist.get_world_size(), torch.get_num_threads()


def second_rank_raises() -> None:
    if dist.get_rank() == 1:
        raise KeyError("the needle")
    dist.barrier()


def second_rank_dies() -> None:
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def second_rank_hangs(directory: Path) -> None:
    (directory / str(dist.get_rank())).write_text(str(os.getpid()))
    if dist.get_rank() == 1:
        time.sleep(60)


@pytest.fixture(autouse=True)
def no_trace_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    multiprocessing.util.get_temp_dir()  # of this whole process; holds the server's socket
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "own"))
    (tmp_path / "own").mkdir()
    yield
    assert list((tmp_path / "own").iterdir()) == []


def test_the_values_come_in_rank_order_from_single_threaded_ranks() -> None:
    assert run_on_ranks(whoami, 3, "hello") == [("hello", rank, 3, 1) for rank in range(3)]


TENSORS = {
    "strided": torch.arange(6.0).reshape(2, 3).T,
    "scalar": torch.tensor(2.5, dtype=torch.float64),
    "empty": torch.empty(0, 3, dtype=torch.int32),
    "bf16": torch.tensor([1.5, -0.0, float("inf"), float("nan")], dtype=torch.bfloat16),
    "bool": torch.tensor([[True], [False]]),
}


def twice(tensors: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    return [tensors, dict(reversed(tensors.items()))]


def test_tensors_come_back_bit_for_bit() -> None:
    ((first, second),) = run_on_ranks(twice, 1, TENSORS)
    assert list(first) == list(TENSORS)
    assert list(second) == list(TENSORS)[::-1]
    for name, value in TENSORS.items():
        assert (first[name].dtype, first[name].shape) == (value.dtype, value.shape)
        bits = [each.contiguous().flatten().view(torch.uint8) for each in (first[name], value)]
        assert torch.equal(*bits)
    first["strided"].add_(1)  # memory of its own, which may be written
    assert second["strided"][0, 0] == 1  # the same object of one pickle
    assert TENSORS["strided"][0, 0] == 0


def test_a_failing_rank_is_named_with_its_traceback() -> None:
    with pytest.raises(RankError, match=r"(?s)^rank 1 of 2 raised\n.*second_rank_raises.*the needle"):
        run_on_ranks(second_rank_raises, 2)


def test_a_dead_rank_is_named_with_its_exit_code() -> None:
    with pytest.raises(RankError, match="^rank 1 of 2 died with exit code -9$"):
        run_on_ranks(second_rank_dies, 2)


def test_a_hung_rank_is_killed_and_named_with_its_stack(tmp_path: Path) -> None:
    with pytest.raises(RankError, match=r"(?s)^rank 1 of 2 hung: no answer in 4 s\n.*in second_rank_hangs"):
        run_on_ranks(second_rank_hangs, 2, tmp_path, timeout_s=4)
    for rank in "01":
        assert not Path("/proc", (tmp_path / rank).read_text()).exists()
