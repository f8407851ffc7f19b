"""Records in files: those of all ranks, each position once, in order, however the bytes travel."""

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from data_shards.errors import DataError
from data_shards.stream.batch import Batch
from launcher.metrics import spool
from launcher.metrics.spool import Spool, SpoolMetric
from tests.distributed import run_on_ranks

POSITIONS = [4, 0, 3, 1, 2, 5, -1, -1]  # -1 is padding; batches of two, dealt to the ranks in turn


class Texts(SpoolMetric):
    """The texts of all samples."""

    primary, higher_is_better = "count", True

    def record(self, prediction: list[str], batch: Batch, row: int) -> str:
        assert prediction[row] != "padding"  # nobody asks for it
        return prediction[row]

    def values(self, records: Iterable[str]) -> dict[str, Any]:
        return {"count": len(list(records)), "all": list(records)}

    def line(self, values: Mapping[str, Any]) -> str:
        return f"{values['count']}"


def text(position: int) -> str:
    """Of a length of its own, longer than a chunk for most."""
    return "padding" if position < 0 else str(position) * 40 * (1 + position)


def batches(positions: list[int], rank: int, ranks: int) -> Iterable[tuple[list[str], Tensor]]:
    for start in range(2 * rank, len(positions), 2 * ranks):
        part = positions[start : start + 2]
        yield [text(position) for position in part], torch.tensor(part)


def evaluated(positions: list[int]) -> dict[str, Any] | int:
    """The values of all ranks, on rank 0; the records that are left, on others."""
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    metric = Texts()
    for texts, places in batches(positions, rank, ranks):
        batch = Batch(tensors={}, positions=places, weights=(places >= 0).float())
        metric.update(texts, batch)
    with patch.object(spool, "CHUNK", 64):
        metric.reduce()
    return metric.compute() if rank == 0 else len(metric.spool)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_any_number_of_ranks_gives_all_records_in_order(ranks: int) -> None:
    first, *others = run_on_ranks(evaluated, ranks, POSITIONS)
    assert first == {"count": 6, "all": [text(position) for position in range(6)]}
    assert others == [0] * (ranks - 1)


def test_a_position_counts_once() -> None:
    first, _ = run_on_ranks(evaluated, 2, [1, 0, 1, 0, 2, -1])
    assert first["all"] == [text(position) for position in range(3)]


def test_what_is_read_is_what_was_written_and_the_file_has_no_name(tmp_path: Path) -> None:
    records = Spool(tmp_path)
    assert (list(records), len(records)) == ([], 0)
    for position in (2, 0, 1):
        records.append(position, {"position": position, "bytes": bytes(range(position))})
        assert len(list(records)) == len(records)  # reading in between changes nothing
    records.gather()
    wanted = [{"position": position, "bytes": bytes(range(position))} for position in range(3)]
    assert list(records) == list(records) == wanted
    assert list(tmp_path.iterdir()) == []
    assert len(pickle.dumps(wanted)) < records._end


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    full = Spool(tmp_path)
    full.append(0, "first")
    with (
        patch.object(full, "_file", open("/dev/full", "wb", buffering=0)) as file,  # noqa: SIM115
        file,
        pytest.raises(
            DataError, match=r"cannot be written to .* \(No space left on device\): make room, or set"
        ),
    ):
        full.append(1, "second")
    assert list(full) == ["first"]
