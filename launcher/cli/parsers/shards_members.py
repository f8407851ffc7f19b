"""The argument --member of `swin-moe shards pack` and `shards index`: a member of a sample."""

import argparse

from data_shards.codecs.registry import CODECS

MEMBER_HELP = f"""\
members: --member NAME=WHERE[:CODEC], once for each member of a sample, such as
  --member image=images --member mask=annotations:label_image --member boxes=boxes:json --member label=ids
  WHERE is a folder (pack --source members) or an extension (index, such as mask=seg.png; it may be left out)
  CODEC is one of {", ".join(CODECS)}; left out, it is NAME, or int for label
"""


def add_member(parser: argparse.ArgumentParser, where: str) -> None:
    """Add --member; `where` is what stands after "=": a folder or an extension."""
    text = f"a member of a sample: its name, its {where.lower()}, its codec; once for each member"
    parser.add_argument("--member", action="append", default=[], metavar=f"NAME={where}[:CODEC]", help=text)
