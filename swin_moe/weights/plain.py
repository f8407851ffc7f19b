"""Plain data that trainers save beside weights, which is read without running code of the file.

`ALLOWED` extends the globals of torch.load(weights_only=True). Each name stands for a type or function of
this module or of the standard library that computes a value from values: it opens nothing and imports
nothing. NumPy's own are replaced, as its dtypes and arrays could otherwise be given any fields and objects.
"""

import argparse
import datetime
import decimal
import pickle
import re
import uuid
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

PLAIN_DTYPE = re.compile(r"[biufcSUmM][0-9]{1,6}")  # no objects, no fields, no raw memory
NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")  # of NumPy 1 and of NumPy 2
SCALARS = [
    "bool",
    "bool_",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
    "complex64",
    "complex128",
    "str_",
    "bytes_",
    "datetime64",
    "timedelta64",
]
DICTS = (  # dicts with attributes, read as what they hold
    "yacs.config.CfgNode",  # in which official runs save their options
    "fvcore.common.config.CfgNode",
    "detectron2.config.config.CfgNode",
    "iopath.common.config.CfgNode",
    "addict.addict.Dict",
    "easydict.EasyDict",
    "munch.Munch",
    "mmcv.utils.config.ConfigDict",
    "mmengine.config.config.ConfigDict",
    "timm.utils.misc.AttrDict",
)
POSIX_PATHS, WINDOWS_PATHS = (
    [f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in names]  # _local: Python 3.13
    for names in (("PosixPath", "PurePosixPath", "Path", "PurePath"), ("WindowsPath", "PureWindowsPath"))
)


class PlainDType:
    """Stands for numpy.dtype: a dtype of numbers, texts or times."""

    def __init__(self, code: str, *_: Any) -> None:
        if not PLAIN_DTYPE.fullmatch(code):
            raise pickle.UnpicklingError("GLOBAL numpy.object_" if code[:1] == "O" else "GLOBAL numpy.void")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Byte order and, of times, the unit: (version, order, ..., (_, (unit, count, _, _)))."""
        if self.dtype.kind in "mM" and len(state) > 8:
            unit, count = state[8][1][:2]
            self.dtype = np.dtype(f"{self.dtype.kind}8[{int(count)}{unit.decode('ascii')}]")
        self.dtype = self.dtype.newbyteorder(state[1])


class PlainArray(np.ndarray[Any, Any]):
    """Stands for numpy.ndarray: an array of plain dtype."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, data = state
        if not isinstance(dtype, PlainDType) or not isinstance(data, bytes):
            raise pickle.UnpicklingError("GLOBAL numpy.object_")
        super().__setstate__((1, shape, dtype.dtype, is_fortran, data))


def _array(*_: Any) -> PlainArray:
    """Stands for NumPy's _reconstruct(ndarray, (0,), b'b'), whose state follows."""
    return PlainArray((0,))


def _number(dtype: PlainDType, data: bytes = b"") -> Any:
    """Stands for NumPy's scalar(dtype, bytes): a number, text or time of Python."""
    return np.frombuffer(data, dtype.dtype)[0].item() if data else dtype.dtype.type().item()


def _ndarray(*_: Any) -> PlainArray:
    """Stands for the type numpy.ndarray, which is named and never called."""
    raise pickle.UnpicklingError("GLOBAL numpy.ndarray")


def _dict(*_: Any) -> OrderedDict[Any, Any]:
    """Stands for defaultdict(factory), whose items follow; the factory is not kept."""
    return OrderedDict()


def _list(items: Iterable[Any] = (), *_: Any) -> list[Any]:
    """Stands for deque(items, maxlen)."""
    return list(items)


ALLOWED: list[Any] = [
    *((_number, f"{module}.scalar") for module in NUMPY),
    *((_array, f"{module}._reconstruct") for module in NUMPY),
    (_ndarray, "numpy.ndarray"),
    (PlainDType, "numpy.dtype"),
    (PlainArray, "swin_moe.weights.plain.PlainArray"),  # so that its state is set
    *((getattr(np, name), f"numpy.{name}") for name in SCALARS),
    *((OrderedDict, name) for name in DICTS),
    (_dict, "collections.defaultdict"),
    (_list, "collections.deque"),
    *((PurePosixPath, name) for name in POSIX_PATHS),
    *((PureWindowsPath, name) for name in WINDOWS_PATHS),
    *(
        (getattr(datetime, name), f"datetime.{name}")
        for name in ["datetime", "date", "time", "timedelta", "timezone"]
    ),
    (argparse.Namespace, "argparse.Namespace"),
    (argparse.Namespace, "types.SimpleNamespace"),
    *((kind, f"builtins.{kind.__name__}") for kind in (bool, int, float, str, bytes, tuple, list, dict)),
    *((kind, f"builtins.{kind.__name__}") for kind in (set, frozenset, slice, range)),
    (uuid.UUID, "uuid.UUID"),
    (decimal.Decimal, "decimal.Decimal"),
    (str, "torch.torch_version.TorchVersion"),
]
