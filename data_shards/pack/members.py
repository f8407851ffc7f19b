"""From the values that a source gives for a sample to the members that are packed."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from data_shards.codecs.registry import codec_of
from data_shards.errors import DataError
from data_shards.format.fields import SIZES, Field
from data_shards.format.samples import BadSourceError
from data_shards.format.tar import MAX_BODY
from data_shards.image.pixels import image_size
from data_shards.pack.reencode import Recipe, prepare, shrink_ids

RESIZED = ("image", "label_image", "int")  # the codecs that `short_side` may meet


def with_sizes(fields: Sequence[Field]) -> tuple[Field, ...]:
    """The fields and the sizes of the image; DataError where there is no image, or its sizes are given."""
    if not any(field.name == "image" and field.codec == "image" for field in fields):
        raise DataError("image_sizes needs a member called image, of the codec image")
    if given := _sizes_among(fields):
        raise DataError(f"image_sizes records {given[0]}, which is a member already; leave one of them out")
    return (*fields, *SIZES)


def check_resizable(fields: Sequence[Field]) -> None:
    """DataError where other members may speak of pixels, as boxes do, so that no image may be resized."""
    if given := _sizes_among(fields):
        raise DataError(f"short_side would make {given[0]} wrong, which is a member; leave --short-side out")
    if other := [field for field in fields if field.codec not in RESIZED]:
        text = f"short_side resizes images and label images, but not {other[0].name} ({other[0].codec})"
        raise DataError(f"{text}, which may speak of their pixels; leave --short-side out")


def _sizes_among(fields: Sequence[Field]) -> list[str]:
    """The names of the members that are called as the sizes of an image are."""
    return [field.name for field in fields if field.name in {size.name for size in SIZES}]


def prepare_members(
    values: Mapping[str, Any], fields: Sequence[Field], recipe: Recipe
) -> dict[str, bytes | int]:
    """The members of a sample: encoded where they are values, checked, images by the recipe.

    BadSourceError for a damaged file; DataError for values that are not those of the fields.
    """
    if recipe.image_sizes:
        fields = [field for field in fields if field not in SIZES]
    if list(values) != (names := [field.name for field in fields]) and set(values) != set(names):
        raise DataError(f"a sample has the members {', '.join(values)}, not {', '.join(names)}")
    members = {field.name: _prepare(values[field.name], field, recipe) for field in fields}
    if recipe.image_sizes:
        body = members["image"]
        assert isinstance(body, bytes)
        members |= sizes_of(body)
    return members


def sizes_of(body: bytes) -> dict[str, int]:
    """Height and width of an image in pixels, as the fields SIZES; BadSourceError when it has none."""
    try:
        return dict(zip((field.name for field in SIZES), image_size(body), strict=True))
    except DataError as error:
        raise BadSourceError(str(error)) from error


def _prepare(value: Any, field: Field, recipe: Recipe) -> bytes | int:
    if field.codec == "image":
        return _named(field, partial(prepare, value, recipe))
    codec = codec_of(field)
    if field.is_scalar:
        body = value if isinstance(value, bytes) else codec.encode(value)
        return int(_named(field, partial(codec.decode, body)))
    if field.codec == "label_image" and recipe.short_side:
        ids = _named(field, partial(codec.decode, value)) if isinstance(value, bytes) else np.asarray(value)
        if recipe.short_side < min(ids.shape[:2]):
            value = shrink_ids(ids, recipe.short_side)
    if not isinstance(value, bytes):
        value = _named(field, partial(codec.encode, value))
    elif recipe.check != "none":
        _named(field, partial(codec.check, value))
    if len(value) > MAX_BODY:
        raise BadSourceError(f"{field.name}: {len(value)} bytes, more than 4 GB")
    return bytes(value)


def _named(field: Field, action: Any) -> Any:
    """The result of `action`, whose DataError is a BadSourceError with the member's name."""
    try:
        return action()
    except DataError as error:
        raise BadSourceError(field.reason(str(error))) from error
