"""Text that a person wrote: UTF-8, with or without a byte order mark, and nothing else."""

import codecs
from pathlib import Path

MOST_BYTES = 2**26  # of a text file; a file of weights given in its place is not read whole
MARKS = {  # in this order: the mark of UTF-32 begins with that of UTF-16
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


class TextError(ValueError):
    """A file that is no UTF-8 text; the message names it and says what it is instead."""


def read_text(path: str | Path) -> str:
    """Read a file of UTF-8 text, without its byte order mark.

    Raises:
        TextError: the file is in another encoding, binary or too large.
        OSError: the file cannot be read.
    """
    path = Path(path)
    if path.stat().st_size > MOST_BYTES:
        raise TextError(f"{path} is no text file: it is larger than {MOST_BYTES >> 20} MiB")
    body = path.read_bytes()
    for mark, name in MARKS.items():
        if body.startswith(mark):
            raise TextError(f"{path} is {name} text; save it as UTF-8")
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TextError(_other_encoding(path, body, error)) from None
    if "\0" in text:
        raise TextError(_with_zeros(path, body))
    return text


def _other_encoding(path: Path, body: bytes, error: UnicodeDecodeError) -> str:
    if b"\0" in body:
        return _with_zeros(path, body)
    line = body.count(b"\n", 0, error.start) + 1
    return (
        f"{path} is not UTF-8 text: line {line} holds the byte 0x{body[error.start]:02x}, as in Latin-1 or "
        "Windows-1252 text; save it as UTF-8"
    )


def _with_zeros(path: Path, body: bytes) -> str:
    """Text of one byte a character in UTF-16 has a zero in every second byte; anything else is binary."""
    half = len(body) // 2
    if half and max(body[0::2].count(0), body[1::2].count(0)) > 0.9 * half:
        return f"{path} is UTF-16 text without a byte order mark; save it as UTF-8"
    return f"{path} is a binary file, not text"
