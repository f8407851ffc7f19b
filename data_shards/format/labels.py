"""Labels as other programs write them: a whole number from 0, or the name of a class."""

import codecs
import json
import re
from typing import Any

from data_shards.errors import DataError

Label = int | str
NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
NOT_FINITE = ("nan", "inf", "infinity")
MAX_DIGITS = 300  # beyond it a float is infinite


class WrongLabelError(DataError):
    """A number that cannot be a label: negative, not whole, or not finite."""


def label_text(body: bytes) -> str:
    """The text of a label file without white space around it: UTF-8, or UTF-16 with a byte order mark.

    ValueError when it is neither.
    """
    wide = body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return body.decode("utf-16" if wide else "utf-8-sig").strip().strip("\x00").strip()
    except UnicodeDecodeError as error:
        raise ValueError("its label is not UTF-8 text") from error


def parse_label(text: str) -> Label:
    """A number if it is written as one ("3", "3.0", "3e0"), otherwise a class name.

    WrongLabelError: -1, 3.5, nan. ValueError: the text is empty or has several lines.
    """
    text = text.strip()
    if not text or "\n" in text:
        raise ValueError("its label has several lines" if text else "its label is empty")
    if NUMBER.fullmatch(text) and len(text) <= MAX_DIGITS:
        return int(text) if text.isdigit() else _whole(float(text), text)
    if text.lower().lstrip("+-") in NOT_FINITE:
        raise _wrong(text)
    return text


def json_label(text: str, label_key: str) -> Label:
    """The label in a JSON text: its value, or `label_key` of an object; errors as `parse_label`."""
    value: Any = json.loads(text)
    if isinstance(value, dict):
        if label_key not in value:
            there = ", ".join(list(value)[:8])
            raise ValueError(f"its .json has no {label_key!r}; it has {there}; see --label-key")
        value = value[label_key]
    if isinstance(value, str):
        return parse_label(value)
    if type(value) in (int, float):
        return _whole(value, repr(value))
    raise ValueError(f"its .json gives {value!r} as label, neither a number from 0 nor a name")


def _whole(value: float, text: str) -> int:
    try:
        whole = int(value)
    except (ValueError, OverflowError):
        raise _wrong(text) from None
    if whole != value or whole < 0:
        raise _wrong(text)
    return whole


def _wrong(text: str) -> WrongLabelError:
    return WrongLabelError(f"label {text} must be a whole number from 0, or the name of a class")
