"""Predictions for a person and for programs: text, JSON lines, CSV."""

import csv
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import IO, Any

from launcher.predict.predictions import Prediction

Write = Callable[[Prediction], None]


def record(prediction: Prediction) -> dict[str, Any]:
    """A prediction as JSON has it."""
    known: dict[str, Any] = {"file": prediction.name}
    if prediction.label is not None:
        known["label"] = prediction.label
    if prediction.error is not None:
        return {**known, "error": prediction.error}
    return {**known, "top": [asdict(one) for one in prediction.top]}


def text_writer(out: IO[str]) -> Write:
    """A line an image: its name, and the classes with their probabilities."""

    def write(prediction: Prediction) -> None:
        name = prediction.name.encode("utf-8", "backslashreplace").decode()
        shown = ascii(name)[1:-1] if any(not character.isprintable() for character in name) else name
        said = ", ".join(f"{one.name or one.index} {one.probability:.1%}" for one in prediction.top)
        print(f"{shown}: {said if prediction.error is None else f'error: {prediction.error}'}", file=out)

    return write


def json_writer(out: IO[str]) -> Write:
    """An object a line."""

    def write(prediction: Prediction) -> None:
        print(json.dumps(record(prediction)), file=out)

    return write


def csv_writer(out: IO[str], top: int) -> Write:
    """A row an image: file, label, error, and index, name and probability of each class."""
    columns = [f"{part}{rank}" for rank in range(1, top + 1) for part in ("index", "name", "probability")]
    rows = csv.writer(out)
    rows.writerow(["file", "label", "error", *columns])

    def write(prediction: Prediction) -> None:
        label = "" if prediction.label is None else prediction.label
        classes = [value for one in prediction.top for value in (one.index, one.name or "", one.probability)]
        name = prediction.name.encode("utf-8", "backslashreplace").decode()
        rows.writerow([name, label, prediction.error or "", *classes])

    return write
