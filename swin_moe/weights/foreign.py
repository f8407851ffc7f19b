"""What a file is that holds no weights, by its content, so that a message can name the true reason."""

import json
import zipfile
from pathlib import Path
from typing import Any

from swin_moe.weights.errors import some

LOOK = 1024  # bytes from the start
MAGIC = {  # the first bytes of a file, and what it is then
    b"\x1f\x8b": "a gzip archive; unpack it",
    b"BZh": "a bzip2 archive; unpack it",
    b"\xfd7zXZ\x00": "an xz archive; unpack it",
    b"\x28\xb5\x2f\xfd": "a zstd archive; unpack it",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it",
    b"Rar!": "a rar archive; unpack it",
    b"\x89HDF": "an HDF5 file, such as Keras writes",
    b"\x93NUMPY": "a NumPy array (.npy)",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"%PDF": "a PDF document",
    b"GGUF": "a GGUF file",
    b"\x7fELF": "a program",
}
WEIGHTS = (".pth", ".pt", ".bin", ".safetensors", ".ckpt")


def foreign(path: Path) -> str | None:
    """What a file is, for "PATH is ..."; None where it may be a checkpoint.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(LOOK)
    if not start:
        return "empty (0 bytes): its download or its writing failed"
    if start.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer, not the file itself; run `git lfs pull`"
    if start[257:262] == b"ustar":
        return "a tar archive; unpack it"
    if known := next((what for magic, what in MAGIC.items() if start.startswith(magic)), None):
        return f"{known}, no checkpoint" if ";" not in known else known
    if zipfile.is_zipfile(path):
        return _zip(path)
    return _text(path, start)


def _zip(path: Path) -> str | None:
    """A checkpoint of torch is a zip archive with data.pkl in it; so is a program of TorchScript."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
    except (zipfile.BadZipFile, OSError, ValueError):
        return None  # damaged: torch says how
    leaves = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in leaves:
        return (
            "a TorchScript program (torch.jit.save), which holds code; save its state_dict() with torch.save"
        )
    if {"serialized_exported_program.json", "archive_format"} & leaves:
        return "a program of torch.export, which holds code; save its state_dict with torch.save"
    if "data.pkl" in leaves:
        return None
    if inside := [name for name in names if name.endswith(WEIGHTS)]:
        return f"a zip archive with {some(inside)} in it; unpack it"
    return f"a zip archive, but no checkpoint: it holds {some(sorted(names)) or 'nothing'}"


def _text(path: Path, start: bytes) -> str | None:
    """Text is no checkpoint: a web page in place of a download, a list of files, a message."""
    text = start.decode("utf-8-sig", errors="replace").strip()
    if text.lower().startswith(("<!doctype html", "<html", "<?xml", "<head")):
        return "a web page (HTML or XML), not the file itself: its download needs a login or another address"
    body = text.rstrip("\ufffd")  # the last character may be cut
    if not body or not all(map(_is_text, body)):
        return None
    if text[0] in "{[" and (what := _json(path)):
        return what
    return f"a text file that begins {text.splitlines()[0][:60]!r}, no checkpoint"


def _is_text(character: str) -> bool:
    return character != "\ufffd" and (character.isprintable() or character.isspace())


def _json(path: Path) -> str | None:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    if isinstance(content, dict) and isinstance(content.get("weight_map"), dict):
        return "the index of weights in several files, not the weights; give the folder that holds them all"
    return "a JSON file, which holds no weights"
