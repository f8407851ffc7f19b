"""Slurm's lists of nodes: `gpu[07-09,12],rack[1-2]n[01-03]-ib.cluster` and every other form; without torch.

Grammar: a list is items separated by commas; an item is text and any number of brackets, which may stand
anywhere in it; a bracket holds numbers and ranges. The digits of a range's first number set its width:
`n[08-10]` is n08, n09, n10. The last bracket of an item changes fastest.
"""

import itertools
import math
import re
import shutil
import subprocess

from parallel.ranks.variables import LaunchError

SCONTROL_S = 10.0
MOST = 2**16  # names of one list; Slurm's own limit of a range
NAME = re.compile(r"[A-Za-z0-9_.-]+")
ITEM = re.compile(r"(?:[A-Za-z0-9_.-]|\[[0-9,\-]*\])+")
PIECE = re.compile(r"\[([^\]]*)\]|([^\[]+)")
RANGE = re.compile(r"([0-9]{1,18})(?:-([0-9]{1,18}))?")


def hosts(text: str, variable: str) -> list[str]:
    """All names of a list, by `scontrol show hostnames` where it answers, otherwise by `expand`.

    Args:
        text: the list.
        variable: that holds it, for the message.

    Raises:
        LaunchError: it is no list of nodes.
    """
    names = expand(text, variable)
    return (_by_scontrol(text) or names) if "[" in text else names


def expand(text: str, variable: str) -> list[str]:
    """All names of a list; spaces are ignored inside brackets, and separate items outside of them.

    Raises:
        LaunchError: it is no list of nodes.
    """
    compact = re.sub(r"\[[^\]]*\]", lambda bracket: re.sub(r"\s", "", bracket[0]), text)
    items = [item for item in _split(compact) if item]
    try:
        names = [name for item in items for name in _names(item)]
    except ValueError as error:
        raise LaunchError(f"{variable} ({text!r}) is not a list of nodes: {error}; set MASTER_ADDR") from None
    if not names:
        raise LaunchError(f"{variable} ({text!r}) is not a list of nodes: it is empty; set MASTER_ADDR")
    return names


def _split(text: str) -> list[str]:
    """Items, at commas and spaces outside of brackets."""
    return re.split(r"[,\s]+(?![^\[]*\])", text)


def _names(item: str) -> list[str]:
    if not ITEM.fullmatch(item):
        raise ValueError(f"{item!r} is no name with brackets of numbers")
    pieces = [_numbers(ranges) if not plain else [plain] for ranges, plain in PIECE.findall(item)]
    if math.prod(map(len, pieces)) > MOST:
        raise ValueError(f"{item!r} has more than {MOST} names")
    return ["".join(parts) for parts in itertools.product(*pieces)]


def _numbers(ranges: str) -> list[str]:
    """`08-10,12` -> 08, 09, 10, 12."""
    numbers: list[str] = []
    for text in ranges.split(","):
        match = RANGE.fullmatch(text)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ValueError(f"[{ranges}] holds {text!r}, which is no number or rising range")
        first, last = int(match[1]), int(match[2] or match[1])
        if last - first >= MOST:
            raise ValueError(f"[{ranges}] has more than {MOST} numbers")
        numbers += [f"{value:0{len(match[1])}d}" for value in range(first, last + 1)]
    return numbers


def _by_scontrol(text: str) -> list[str] | None:
    """Expand a list by `scontrol show hostnames`.

    None if it does not print names: 22.05 accepts no text behind the last bracket, and then prints nothing
    with status 0.
    """
    if (scontrol := shutil.which("scontrol")) is None:
        return None
    command = [scontrol, "show", "hostnames", text]
    try:
        output = subprocess.run(
            command, capture_output=True, text=True, timeout=SCONTROL_S, check=True
        ).stdout
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    names = output.split()
    return names if names and all(map(NAME.fullmatch, names)) else None
