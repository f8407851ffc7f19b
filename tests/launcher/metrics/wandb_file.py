"""Reads the file of an offline run of W&B: records of protobuf in the framing of LevelDB's log.

Blocks of 32 KiB hold pieces: CRC (4 bytes), length (2), type (1: whole, 2: first, 3: middle, 4: last), body.
The file begins with 7 bytes of W&B. https://github.com/google/leveldb/blob/main/doc/log_format.md
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32 * 1024
WHOLE, LAST = 1, 4


def records(file: Path) -> Iterator[Any]:
    """Every record of a .wandb file, as W&B's own `Record`."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, body = file.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at < len(data):
        if BLOCK - at % BLOCK < 7:  # padding
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        body += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (WHOLE, LAST):
            yield Record.FromString(body)
            body = b""


def rows(file: Path) -> list[dict[str, Any]]:
    """Every row of the history, with its `_step` and without images."""
    found = []
    for record in records(file):
        if record.HasField("history"):
            items = [(list(item.nested_key) or [item.key], item.value_json) for item in record.history.item]
            row = {keys[0]: json.loads(value) for keys, value in items if len(keys) == 1}
            found.append({**row, "_step": record.history.step.num})
    return found


def exit_codes(file: Path) -> list[int]:
    """What `finish` said; empty for a run that was cut off."""
    return [record.exit.exit_code for record in records(file) if record.HasField("exit")]
