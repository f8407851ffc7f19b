"""The codecs by name. A package of your own adds one by an entry point of the group `swin_moe.codecs`:

[project.entry-points."swin_moe.codecs"]
wav = "my_package.audio:WavCodec"        # called without arguments; see `Codec`
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import entry_points

from data_shards.codecs.codec import Codec
from data_shards.codecs.documents import ArrayCodec, IntCodec, JsonCodec
from data_shards.codecs.images import ImageCodec, LabelImageCodec
from data_shards.codecs.objects import ObjectsCodec
from data_shards.codecs.video import VideoCodec
from data_shards.errors import DataError
from data_shards.format.fields import Field, check_fields

GROUP = "swin_moe.codecs"
CODECS: Mapping[str, Codec] = {
    "image": ImageCodec(),
    "label_image": LabelImageCodec(),
    "json": JsonCodec(),
    "objects": ObjectsCodec(),
    "array": ArrayCodec(),
    "video": VideoCodec(),
    "int": IntCodec(),
}


def codec_of(field: Field) -> Codec:
    """The codec of a field; DataError for a name that nobody has registered."""
    if field.codec in CODECS:
        return CODECS[field.codec]
    if installed := _installed(field.codec):
        return installed
    known = ", ".join(CODECS)
    fix = f"name one of {known}, or install the package that has it"
    raise DataError(f"member {field.name}: no codec {field.codec!r}; {fix}")


@cache
def _installed(name: str) -> Codec | None:
    """The codec of an installed package; looked up once, as samples are encoded and checked one by one."""
    for entry in entry_points(group=GROUP, name=name):
        codec: Codec = entry.load()()
        return codec
    return None


def packed_fields(fields: Sequence[Field]) -> tuple[Field, ...]:
    """The fields with the extensions of their files in packed tars, checked.

    An image keeps "", as its content decides, and so does a number.
    """
    found = []
    for field in fields:
        codec = codec_of(field)
        ruled = field.extension or field.is_scalar or field.codec == "image"
        found.append(field if ruled else replace(field, extension=f"{field.name}.{codec.extensions[0]}"))
    check_fields(found)
    return tuple(found)
