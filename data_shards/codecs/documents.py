"""JSON texts, arrays and integers."""

import io
import json
import re
from typing import Any

import numpy as np

from data_shards.codecs.codec import Codec, reported
from data_shards.errors import DataError
from data_shards.format.fields import SCALAR_EXTENSION

INTEGER = re.compile(rb"-?(0|[1-9][0-9]{0,18})")
KINDS = "biuf"  # of the arrays: booleans, integers, floating-point numbers
MAX_HEADER = 4096  # bytes
ARRAY_VERSIONS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class JsonCodec(Codec):
    """A JSON text (RFC 8259) in UTF-8: null, booleans, finite numbers, strings, lists, objects."""

    extensions = ("json",)

    @reported("a value that is no JSON")
    def encode(self, value: Any) -> bytes:
        """The text of a value, without spaces; a value that would come back as another one is refused."""
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        if json.loads(text) != value:
            raise ValueError("it would come back as another value: use lists for tuples, strings for keys")
        return text.encode()

    @reported("no JSON text")
    def decode(self, body: bytes) -> Any:
        """The value; NaN, infinities and an object with a key twice are refused."""
        return json.loads(body.decode("utf-8"), parse_constant=_refuse, object_pairs_hook=_object)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("an object has a key twice")
    return value


class ArrayCodec(Codec):
    """An array of booleans, integers or floating-point numbers as a .npy file of version 1.0 or 2.0."""

    extensions = ("npy",)

    @reported("a value that is no array of numbers")
    def encode(self, value: Any) -> bytes:
        """The file of an array, in C order and little-endian; objects are never pickled."""
        array = np.asarray(value)
        _check_kind(array.dtype)
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(array.shape)
        file = io.BytesIO()
        np.lib.format.write_array(file, array, version=(1, 0), allow_pickle=False)
        return file.getvalue()

    @reported("no .npy file")
    def decode(self, body: bytes) -> np.ndarray:
        """The array, read-only: a view of `body`, whose length bounds it."""
        file = io.BytesIO(body)
        version = np.lib.format.read_magic(file)
        if version not in ARRAY_VERSIONS:
            raise ValueError(f"version {version} of the format; 1.0 and 2.0 are read")
        shape, fortran, dtype = ARRAY_VERSIONS[version](file, max_header_size=MAX_HEADER)
        _check_kind(dtype)
        start, count = file.tell(), 1
        for side in shape:
            if side < 0:
                raise ValueError(f"shape {shape}")
            count *= side
        if len(body) - start != count * dtype.itemsize:
            raise ValueError(
                f"shape {shape} of {dtype} needs {count * dtype.itemsize} bytes, not {len(body) - start}"
            )
        flat = np.frombuffer(body, dtype=dtype, count=count, offset=start)
        return flat.reshape(shape, order="F" if fortran else "C")


def _check_kind(dtype: np.dtype) -> None:
    if dtype.kind not in KINDS or dtype.hasobject:
        raise ValueError(f"its type is {dtype}; booleans, integers and floating-point numbers are stored")


class IntCodec(Codec):
    """A signed integer of 64 bits in decimal ASCII."""

    extensions = (SCALAR_EXTENSION,)

    def encode(self, value: Any) -> bytes:
        """The digits of an integer."""
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise DataError(f"{value!r} is no integer")
        body = b"%d" % int(value)
        self.check(body)
        return body

    def decode(self, body: bytes) -> int:
        """The integer; DataError for any other text, and beyond 64 bits."""
        text = body.strip()
        if not INTEGER.fullmatch(text) or not -(2**63) <= int(text) < 2**63:
            raise DataError(f"{text[:40]!r} is no integer of 64 bits")
        return int(text)
