"""The argument --member of `swin-moe shards`: a member of a sample, where it is, and its codec."""

import argparse
from collections.abc import Sequence

from data_shards.codecs.registry import CODECS, codec_of
from data_shards.errors import DataError
from data_shards.format.fields import IMAGE_AND_LABEL, SCALAR, Field
from data_shards.pack.sources.members import MemberFolder

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


def parse_member(text: str) -> tuple[Field, str]:
    """The field of an argument, and its folder or extension; DataError for an unknown codec."""
    place, colon, codec = text.rpartition(":")
    name, _, where = (place if colon else text).partition("=")
    if not codec or not colon:
        codec = SCALAR if name == "label" else name
        if codec not in CODECS:
            raise DataError(f"--member {text}: say what {name} is, such as {text}:label_image; {known()}")
    field = Field(name, codec)
    try:
        codec_of(field)
    except DataError as error:
        raise DataError(f"--member {text}: {error}") from None
    return field, where.strip("/")


def known() -> str:
    """The codecs, for a message."""
    return f"the codecs are {', '.join(CODECS)}"


def folders(texts: Sequence[str]) -> list[MemberFolder]:
    """The folders of the members, for `pack --source members`."""
    found = [parse_member(text) for text in texts]
    if missing := [field.name for field, where in found if not where]:
        raise DataError(f"--member {missing[0]}: name its folder: --member {missing[0]}=FOLDER")
    return [MemberFolder(field, where) for field, where in found]


def extensions(texts: Sequence[str]) -> tuple[Field, ...]:
    """The fields with their extensions, for `index`; image and label if there are none."""
    found = [parse_member(text) for text in texts]
    return tuple(Field(f.name, f.codec, where.lower().lstrip(".")) for f, where in found) or IMAGE_AND_LABEL
