"""Values of the command line that several commands take."""

import argparse


def positive(text: str) -> int:
    """A whole number of at least 1.

    Raises:
        ArgumentTypeError: it is something else.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1 (got {text!r})")
    return int(text)


def add_match_classes(parser: argparse.ArgumentParser) -> None:
    """Add `--match-classes`, whose value is a list of overrides: of one option, or none."""
    parser.add_argument(
        "--match-classes",
        action="store_const",
        const=["data.match_classes=true"],
        default=[],
        help="map the labels of data.val by class name; short for data.match_classes=true",
    )
