"""The records of finished shards, which each task of a pack writes, and the step that joins them.

    part-00002-of-00008.jsonl   one line per finished shard of task 2/8: its entry, the samples left out
    bad_sources.tsv             of a finished pack: key, source, label, reason of every sample left out

A line counts when it is complete, so a task may be killed at any byte.
"""

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_shards.errors import DataError
from data_shards.format.index import MANIFEST_NAME, Manifest, ShardEntry, check_shards, read_json
from data_shards.format.samples import BadSource
from data_shards.pack.plan import PLAN_NAME
from data_shards.pack.shard import ShardRecord
from parallel.durable import atomic_write, sweep_temporaries

BAD_NAME = "bad_sources.tsv"
BAD_HEADER = "key\tsource\tlabel\treason\n"
ALWAYS_ALLOWED = 10  # damaged sources, however small the split


class PartFile:
    """The records of one task, appended and flushed shard by shard; it starts with the records `known`."""

    def __init__(self, out: Path, task: tuple[int, int], known: Iterable[ShardRecord]) -> None:
        self.path = out / f"part-{task[0]:05d}-of-{task[1]:05d}.jsonl"
        self.records = {record.shard: record for record in known}
        atomic_write(self.path, "".join(map(_line, self.records.values())).encode())

    def add(self, record: ShardRecord) -> None:
        """Append a record, unless it is there already."""
        if self.records.get(record.shard) != record:
            with open(self.path, "a") as file:
                file.write(_line(record))
            self.records[record.shard] = record


def _line(record: ShardRecord) -> str:
    return json.dumps({"shard": record.shard, "entry": asdict(record.entry), "bad": record.bad}) + "\n"


def read_records(out: Path) -> dict[int, ShardRecord]:
    """The finished shards of all parts; DataError when two parts disagree about a shard.

    Where they differ in what is damaged, a source was repaired in between, and the later part is right.
    """
    records: dict[int, ShardRecord] = {}
    for path, text in _part_files(out):
        part = {record.shard: record for record in map(_parse, text.splitlines()) if record}
        for shard in part.keys() & records.keys():
            if part[shard].bad == records[shard].bad and part[shard] != records[shard]:
                raise DataError(
                    f"{out}: tasks disagree about shard {shard} ({path.name} and another); have their "
                    f"machines different JPEG libraries? Install the same, delete {out} and pack again"
                )
        records |= part
    return records


def _part_files(out: Path) -> list[tuple[Path, str]]:
    """The part files and their text, the one that was written last at the end."""
    parts = []
    for path in sorted(out.glob("part-*-of-*.jsonl")):
        with suppress(FileNotFoundError):  # another task has joined the parts just now
            parts.append((path.stat().st_mtime_ns, path, path.read_text()))
    return [(path, text) for _, path, text in sorted(parts)]


def _parse(line: str) -> ShardRecord | None:
    try:
        record = json.loads(line)
        bad = tuple(BadSource(*fields) for fields in record["bad"])
        return ShardRecord(shard=record["shard"], entry=ShardEntry(**record["entry"]), bad=bad)
    except (ValueError, KeyError, TypeError):
        return None  # cut short by a kill: that shard is written again


def records_of(manifest: Manifest, out: Path, starts: Sequence[int]) -> dict[int, ShardRecord]:
    """The records of a finished pack, from its manifest and its list of samples left out."""
    entries = {int(Path(entry.name).stem): entry for entry in manifest.shards}
    bad: dict[int, list[BadSource]] = {}
    shard = 0
    for source in read_bad(out) if manifest.bad_sources else []:
        while int(source.key) >= starts[shard + 1]:
            shard += 1
        bad.setdefault(shard, []).append(source)
    return {
        shard: ShardRecord(shard=shard, entry=entry, bad=tuple(bad.get(shard, ())))
        for shard, entry in entries.items()
    }


def read_bad(out: Path) -> list[BadSource]:
    """The samples left out of a finished pack, by their keys; DataError when the list is damaged."""
    try:
        lines = (out / BAD_NAME).read_text().splitlines()[1:]
        fields = [line.split("\t") for line in lines]
        return [
            BadSource(key, _unquoted(source), int(label), reason) for key, source, label, reason in fields
        ]
    except (OSError, ValueError) as error:
        raise DataError(f"{out / BAD_NAME}: cannot read it ({error}); delete {out} and pack again") from error


def write_bad(out: Path, bad: Iterable[BadSource]) -> None:
    """Write the list of samples left out; tabs and line ends in a path are quoted as in JSON."""
    lines = (f"{b.key}\t{_quoted(b.source)}\t{b.label}\t{b.reason}\n" for b in bad)
    atomic_write(out / BAD_NAME, (BAD_HEADER + "".join(lines)).encode())


def _quoted(text: str) -> str:
    return text if text.isprintable() and not text.startswith('"') else json.dumps(text)


def _unquoted(text: str) -> str:
    return str(json.loads(text)) if text.startswith('"') else text


def refuse_too_many(out: Path, bad: Sequence[BadSource], max_bad: float, listed: int) -> None:
    """DataError when more samples are damaged than `max_bad` allows."""
    allowed = max(ALWAYS_ALLOWED, int(max_bad * listed))
    if len(bad) > allowed:
        first = ", ".join(f"{b.source}: {b.reason}" for b in bad[:3])
        raise DataError(
            f"{out}: {len(bad)} damaged sources, more than max_bad allows ({allowed} of {listed}): {first}; "
            "repair or delete them, or raise --max-bad (a fraction), and run the same command again"
        )


def refused(out: Path) -> list[BadSource]:
    """The sources that an unfinished pack has refused so far, by their keys."""
    return sorted(source for record in read_records(out).values() for source in record.bad)


def unfinished(out: Path, plan: dict[str, Any]) -> list[int]:
    """The shards that no part has a record of."""
    known = read_records(out)
    return [shard for shard in range(len(plan["starts"]) - 1) if shard not in known]


def finish(out: Path, max_bad: float | None = None) -> Manifest:
    """Join the parts: write the manifest and the list of samples left out, and remove plan and parts.

    DataError when shards are missing or too many sources are damaged; for the only writer of `out`.
    """
    if not (out / PLAN_NAME).exists():
        return Manifest.load(out)
    plan = read_json(out / PLAN_NAME)
    if missing := unfinished(out, plan):
        text = ", ".join(map(str, missing[:5])) + (" ..." if len(missing) > 5 else "")
        raise DataError(
            f"{out}: {len(missing)} shards are not written yet ({text}); run the tasks that make them"
        )
    records = sorted(read_records(out).values(), key=lambda record: record.shard)
    bad = [source for record in records for source in record.bad]
    counted = [source for source in bad if source.key not in plan.get("gone", ())]
    refuse_too_many(out, counted, plan["max_bad"] if max_bad is None else max_bad, plan["listed"])
    manifest = _manifest(plan, [record.entry for record in records if record.entry.samples], len(bad), out)
    check_shards(manifest, out)
    if bad:
        write_bad(out, bad)
    else:
        (out / BAD_NAME).unlink(missing_ok=True)  # of an earlier run, whose bad sources were repaired
    manifest.save(out)
    for path in (out / PLAN_NAME, *out.glob("part-*-of-*.jsonl")):
        path.unlink(missing_ok=True)
    sweep_temporaries(out)
    return manifest


def _manifest(plan: dict[str, Any], entries: list[ShardEntry], bad: int, out: Path) -> Manifest:
    if not entries:
        raise DataError(f"{out}: not one sample of the source can be read; see --directory")
    names = ("schema", "name", "split", "classes", "writer", "fields", "category_ids")
    fields = {key: plan[key] for key in names if key in plan}
    counts = {"samples": sum(entry.samples for entry in entries)} | ({"bad_sources": bad} if bad else {})
    return Manifest.from_dict(fields | counts | {"shards": [asdict(e) for e in entries]}, out / MANIFEST_NAME)
