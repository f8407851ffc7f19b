"""Reading metrics.jsonl, of this version and of earlier ones; without torch and DeepSpeed."""

import json
from pathlib import Path
from typing import Any


def read_records(path: Path, up_to_step: int | None = None) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, at most those up to a step, without a line that a kill cut short.

    Records of earlier versions get what these did not write: `kind`, and `total_loss`, then called `loss`.
    """
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if up_to_step is None or record["step"] <= up_to_step:
            records.append(_of_this_version(record))
    return records


def _of_this_version(record: dict[str, Any]) -> dict[str, Any]:
    """A record of any version with its kind, the task's loss as `loss`, and `total_loss`."""
    record = {"kind": _kind(record), **record}
    if "total_loss" in record or "aux_loss" not in record:
        return record
    total = record["loss"]
    return record | {"loss": total - record["aux_loss"], "total_loss": total}


def _kind(record: dict[str, Any]) -> str:
    """What a record of a version without `kind` is of."""
    for kind in ("eval_ema", "eval", "save"):
        if any(name.startswith(f"{kind}_") for name in record):
            return kind
    return "step"
