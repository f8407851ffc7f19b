"""Bad samples: the same replacement whoever finds them, a file for people, an end to patience."""

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from data_shards.errors import DataError
from data_shards.format.index import Manifest, read_index
from data_shards.stream.options import ReadOptions
from data_shards.stream.quarantine import Quarantine
from data_shards.stream.reader import SampleError
from tests.data_shards.conftest import PER_SHARD, SAMPLES
from tests.data_shards.streams import Seen, eval_stream, expected, seen, tiny_stream
from tests.data_shards.tiny_splits import bodies_of

BAD = {7, 31, 77}

pytestmark = pytest.mark.filterwarnings("ignore:quarantined")


def flip(split: Path, number: int) -> None:
    shard, row = divmod(number, PER_SHARD)
    path = split / f"{shard:06d}.tar"
    body = bytearray(path.read_bytes())
    body[int(read_index(path.with_suffix(".idx"))["image"]["offset"][row]) + 90] ^= 4
    path.write_bytes(body)


@pytest.fixture
def damaged(shards: Path, tmp_path: Path) -> Path:
    split = Path(shutil.copytree(shards, tmp_path / "split"))
    for number in BAD:
        flip(split, number)
    return split


def together(split: Path, ranks: int, **options: object) -> Seen:
    """The five steps of all ranks, one rank after the other."""
    found: Seen = {}
    for rank in range(ranks):
        found |= seen(tiny_stream(split, rank, ranks, **options))
    return found


def test_the_replacement_depends_on_bytes_alone(shards: Path, damaged: Path, tmp_path: Path) -> None:
    """One rank or eight, an empty file, one that knows all, one that accuses healthy samples: the same."""
    truth = expected(tiny_stream(shards), *bodies_of(shards), BAD)
    healthy = expected(tiny_stream(shards), *bodies_of(shards), set())
    assert {p for p in truth if truth[p] != healthy[p]}  # it matters
    path = tmp_path / "q.jsonl"
    for ranks in (1, 2, 3, 8):
        assert together(damaged, ranks, quarantine=path) == truth
    assert together(damaged, 2, quarantine=tmp_path / "other.jsonl", threads=5) == truth
    lie = json.loads(path.read_text().splitlines()[0]) | {"shard": "000000.tar", "row": 1, "position": 0}
    path.write_text(path.read_text() + json.dumps(lie) + "\n" + '{"torn')
    assert together(damaged, 3, quarantine=path) == truth
    assert together(shards, 3, quarantine=path) == healthy  # repaired: read again, although written down


@pytest.mark.parametrize("url", ["{}", "pipe:cat {}/{{}}"])
def test_through_the_cache_it_is_the_same(shards: Path, damaged: Path, tmp_path: Path, url: str) -> None:
    """Shards whose digest is wrong at the source are kept for their sound samples."""
    truth = expected(tiny_stream(shards), *bodies_of(shards), BAD)
    read = ReadOptions(cache=tmp_path / "cache", cache_bytes=64 << 20, deadline_s=30)
    path = tmp_path / "q.jsonl"
    for _ in range(2):
        assert together(url.format(damaged), 2, quarantine=path, read=read) == truth
    names = {f"{n // PER_SHARD:06d}.tar" for n in BAD}
    said = [json.loads(line) for line in path.read_text().splitlines()]
    kept = {copy.name.removesuffix(".damaged") for copy in (tmp_path / "cache").glob("*/*.damaged")}
    assert kept == {line["shard"] for line in said if "SHA-256 differs" in line.get("notice", "")}
    assert kept == names or (url == "{}" and kept <= names)  # a pipe needs every shard whole
    # a thread that meets a sample at an earlier position than another thread did adds a second line
    assert {(line["shard"], line["row"]) for line in said if "reason" in line} == {
        (f"{n // PER_SHARD:06d}.tar", n % PER_SHARD) for n in BAD
    }


def test_the_file_names_each_bad_sample_once(damaged: Path, tmp_path: Path) -> None:
    path = tmp_path / "run" / "quarantine.jsonl"
    together(damaged, 4, quarantine=path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = {(line["shard"], line["row"]): line for line in lines}
    assert set(found) == {(f"{n // PER_SHARD:06d}.tar", n % PER_SHARD) for n in BAD}
    line = found["000000.tar", 7]
    assert set(line) == {
        *("time", "host", "data", "manifest", "shard", "row", "key", "member", "offset", "reason", "position")
    }
    assert (line["key"], line["member"], line["data"]) == ("00000007", "image", "synthetic/train")
    assert line["reason"].endswith("fails its checksum")
    again = tiny_stream(damaged, quarantine=path)
    before = path.read_text()
    seen(again, 20)
    assert path.read_text() == before
    totals = again.telemetry.totals()
    assert totals["bad_samples"] == 0  # known already
    assert totals["replaced"] >= 3 * 4  # every epoch anew


def test_without_a_file_a_bad_sample_ends_the_run(damaged: Path) -> None:
    with pytest.raises(DataError, match=r"00000\d.tar: sample 000000\d\d at byte \d+ .* fails its checksum"):
        seen(tiny_stream(damaged))


def test_the_states_digest_is_the_same_on_every_rank(damaged: Path, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    streams = [tiny_stream(damaged, rank, 2, quarantine=path) for rank in range(2)]
    empty = streams[0].state_dict()["quarantine"]
    iterators = [iter(stream) for stream in streams]
    states = []
    for _ in range(5):
        for iterator in iterators:
            next(iterator)
        states.append([stream.state_dict() for stream in streams])
    for stream in streams:
        stream.close()
    for one, other in states:
        assert one == other
        assert len(json.dumps(one)) < 1024
    digests = [one["quarantine"] for one, _ in states]
    assert digests[-1] != empty
    assert Quarantine(path, Manifest.load(damaged)).count() == 3
    # The digest of step k takes what was met below its position, whatever was prefetched since.
    alone = tiny_stream(damaged, quarantine=tmp_path / "alone.jsonl", prefetch=1)
    with alone:
        for digest, _ in zip(digests, alone, strict=False):
            assert alone.state_dict()["quarantine"] == digest


def test_resuming_without_the_file_warns_and_goes_on_exactly(damaged: Path, tmp_path: Path) -> None:
    whole = seen(tiny_stream(damaged, quarantine=tmp_path / "q.jsonl"), 8)
    stream = tiny_stream(damaged, quarantine=tmp_path / "r.jsonl")
    with stream:
        for _ in zip(range(4), stream, strict=False):
            pass
        state = stream.state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny_stream(damaged, quarantine=tmp_path / "r.jsonl").load_state_dict(state)
    (tmp_path / "r.jsonl").unlink()
    resumed = tiny_stream(damaged, quarantine=tmp_path / "r.jsonl")
    with pytest.warns(UserWarning, match="not as when the state was made"):
        resumed.load_state_dict(state)
    assert seen(resumed, 4) == {p: whole[p] for p in range(96, 192)}
    old = {key: value for key, value in state.items() if key != "quarantine"}
    tiny_stream(damaged).load_state_dict(old)  # a state from before there was a quarantine


def test_too_many_end_the_run_with_the_worst_shards(shards: Path, tmp_path: Path) -> None:
    split = Path(shutil.copytree(shards, tmp_path / "split"))
    for number in [45, 46, 47, 48, 49, 50, 51, 90, 91, 92]:
        flip(split, number)
    path = tmp_path / "q.jsonl"
    assert seen(tiny_stream(split, quarantine=path)) == expected(
        tiny_stream(shards), *bodies_of(shards), {*range(45, 52), 90, 91, 92}
    )
    flip(split, 52)
    with pytest.raises(
        DataError, match=r"11 bad samples \(at most .*= 10\), most in 000002.tar \(8\), 000004.tar \(3\)"
    ):
        seen(tiny_stream(split, quarantine=path), 10)
    with pytest.raises(DataError, match="11 bad samples"):  # and again, until somebody repairs them
        seen(tiny_stream(split, quarantine=path), 10)


def fake(row: int) -> SampleError:
    return SampleError("x/000001.tar", "000001.tar", row, str(row), 0, "is bad", "")


def test_a_burst_ends_a_large_run_before_the_total_does(shards: Path) -> None:
    """Of 20 million samples 200 may be bad, but not 11 within 10,000 positions."""
    manifest = Manifest.load(shards)
    manifest.__dict__["samples"] = 20_000_000
    quarantine = Quarantine(None, manifest)
    assert quarantine.limit == 200
    for i in range(100):
        quarantine.add(fake(i), 1000 * i)  # ten in any 10,000
    assert quarantine.recent(100_000) == 10
    with pytest.raises(
        DataError, match=r"11 bad samples in 10000 positions \(at most 10\), most in 000001.tar"
    ):
        quarantine.add(fake(100), 42_500)
    quarantine.check_recent(10)
    with pytest.raises(DataError, match="12 bad samples in 10000 positions"):
        quarantine.check_recent(12)


def test_counts_are_for_summing_over_ranks(damaged: Path, tmp_path: Path) -> None:
    path, summed = tmp_path / "q.jsonl", dict[str, int]()
    for rank in range(2):
        stream = tiny_stream(damaged, rank, 2, quarantine=path)
        seen(stream)
        summed = {k: summed.get(k, 0) + v for k, v in stream.counts().items()}
    assert all(type(value) is int for value in summed.values())
    assert summed["bad_samples"] == 3
    assert summed["replaced"] >= 3
    assert summed["recent_bad"] >= 3
    stream.check_counts(summed)
    with pytest.raises(DataError, match="11 bad samples in 10000 positions"):
        stream.check_counts(summed | {"recent_bad": 11})


def evaluate(split: Path, **options: object) -> list[object]:
    with eval_stream(split, batch_size=50, **options) as stream:
        return list(stream)


def test_evaluation_ends_at_a_bad_sample_unless_told_otherwise(damaged: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"sample 00000007 at byte \d+ .* fails its checksum"):
        evaluate(damaged)
    path = tmp_path / "q.jsonl"
    batches = evaluate(damaged, bad_samples="drop", quarantine=path)
    weights = {
        p: w for b in batches for p, w in zip(b.positions.tolist(), b.weights.tolist(), strict=True) if p >= 0
    }
    assert {p for p, w in weights.items() if w == 0} == BAD
    assert len(weights) == SAMPLES
    assert len(path.read_text().splitlines()) == 3
    with pytest.raises(DataError, match="must be 'fatal' or 'drop'"):
        evaluate(damaged, bad_samples="skip")


WRITER = """
import sys
from data_shards.format.index import Manifest
from data_shards.stream.quarantine import Quarantine
from data_shards.stream.reader import SampleError
split, path, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
quarantine = Quarantine(path, Manifest.load(split))
quarantine.limit = 1000
for row in range(40):
    error = SampleError("x", "000001.tar", row, "k" * 500, 0, "is bad", "")
    quarantine.add(error, 20_000 * row)
"""


def test_writers_together_write_whole_lines_and_nothing_twice(shards: Path, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    args = [sys.executable, "-c", WRITER, str(shards), str(path)]
    writers = [subprocess.Popen([*args, str(rank)]) for rank in range(4)]
    assert [writer.wait() for writer in writers] == [0] * 4
    rows = [json.loads(line)["row"] for line in path.read_text().splitlines()]
    assert sorted(rows) == list(range(40))


def test_a_file_that_cannot_be_one_is_refused(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"quarantine .*: cannot be read \(Is a directory\)"):
        tiny_stream(shards, quarantine=tmp_path)


def test_a_torn_last_line_harms_no_other(shards: Path, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"shard": "0000')
    quarantine = Quarantine(path, Manifest.load(shards))
    assert quarantine.add(fake(3), 5)
    assert not quarantine.add(fake(3), 9)
    again = Quarantine(path, Manifest.load(shards))
    assert again.count() == 1
    assert again.count(5) == 0
    assert again.count(6) == 1
