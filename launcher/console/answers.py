"""`--json` of all commands: the result is one JSON document on stdout, and all other output goes to stderr.

A command sets `args.answer` to its result and prints its text as it always does. With `--json` that text goes
to stderr, and the result is printed at the end. After an error stdout is empty: the message is on stderr, and
the exit status says what happened.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any


@contextmanager
def answering(args: argparse.Namespace) -> Iterator[None]:
    """Run a command whose result is `args.answer`; a rank that has none prints nothing."""
    args.answer = None
    if getattr(args, "json", None) is not True:  # without --json, or with a file for it
        yield
        return
    with redirect_stdout(sys.stderr):
        yield
    if args.answer is not None:
        print(json.dumps(plain(args.answer), indent=1, allow_nan=False), flush=True)


def plain(value: Any) -> Any:
    """A value as JSON has it: paths as text, data classes as objects, numbers that are not finite as null."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(one) for one in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
