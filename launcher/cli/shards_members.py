"""What the argument --member of `swin-moe shards` says: a member of a sample, where it is, and its codec."""

from collections.abc import Sequence

from data_shards.codecs.registry import CODECS, codec_of
from data_shards.errors import DataError
from data_shards.format.fields import IMAGE_AND_LABEL, SCALAR, Field
from data_shards.pack.sources.members import MemberFolder


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
