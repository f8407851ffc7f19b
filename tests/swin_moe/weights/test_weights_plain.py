"""Plain data beside the weights is read as values and runs nothing; what else a pickle names is refused."""

import argparse
import collections
import datetime
import decimal
import functools
import io
import operator
import os
import pathlib
import pickle
import random
import types
import uuid
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch

from swin_moe import WeightsError, build_model, load_weights
from swin_moe.weights.files import read_file
from tests.swin_moe.weights.official_files import SWIN, assert_same, official, randomized

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=datetime.UTC)
UUID = uuid.UUID(int=7)
PLAIN: dict[str, tuple[Any, Any]] = {  # what is saved, and what is read
    "float64": (np.float64(81.25), 81.25),
    "float32": (np.float32(0.5), 0.5),
    "float16": (np.float16(0.5), 0.5),
    "big-endian": (np.array([1.5], ">f8")[0], 1.5),
    "int64": (np.int64(-3), -3),
    "uint8": (np.uint8(200), 200),
    "bool": (np.bool_(True), True),
    "complex64": (np.complex64(1 + 2j), 1 + 2j),
    "str": (np.str_("né"), "né"),
    "no text": (np.str_(""), ""),
    "bytes of NumPy": (np.bytes_(b"a\xff"), b"a\xff"),
    "datetime64": (np.datetime64("2026-01-02"), datetime.date(2026, 1, 2)),
    "timedelta64": (np.timedelta64(3, "s"), datetime.timedelta(seconds=3)),
    "type of NumPy": (np.float32, np.float32),
    "defaultdict": (collections.defaultdict(list, {"a": [1]}), {"a": [1]}),
    "OrderedDict": (collections.OrderedDict(a=1), {"a": 1}),
    "Counter": (collections.Counter("aab"), {"a": 2, "b": 1}),
    "deque": (collections.deque([1, 2], maxlen=3), [1, 2]),
    "set": ({1, 2}, {1, 2}),
    "frozenset": (frozenset({1}), frozenset({1})),
    "complex": (1j, 1j),
    "bytes": (b"\x00\xff", b"\x00\xff"),
    "no bytes": (b"", b""),
    "bytearray": (bytearray(b"ab"), bytearray(b"ab")),
    "large": (2**100, 2**100),
    "range": (range(2, 9, 3), range(2, 9, 3)),
    "slice": (slice(1, 2), slice(1, 2)),
    "path": (Path("/data/a b"), PurePosixPath("/data/a b")),
    "pure path": (PurePosixPath("a"), PurePosixPath("a")),
    "path of Windows": (PureWindowsPath("C:/a"), PureWindowsPath("C:/a")),
    "datetime": (NOW, NOW),
    "date": (NOW.date(), NOW.date()),
    "time": (NOW.time(), NOW.time()),
    "timedelta": (datetime.timedelta(days=1.5), datetime.timedelta(days=1.5)),
    "Namespace": (argparse.Namespace(a=1, b=Path("c")), argparse.Namespace(a=1, b=PurePosixPath("c"))),
    "SimpleNamespace": (types.SimpleNamespace(a=1), argparse.Namespace(a=1)),
    "UUID": (UUID, UUID),
    "Decimal": (decimal.Decimal("1.50"), decimal.Decimal("1.50")),
    "Size": (torch.Size([1, 2]), torch.Size([1, 2])),
    "device": (torch.device("cuda", 1), torch.device("cuda", 1)),
    "dtype": (torch.bfloat16, torch.bfloat16),
    "version of torch": (torch.__version__, str(torch.__version__)),
    "random state of Python": (random.Random(1).getstate(), random.Random(1).getstate()),
}
ARRAYS = {
    "floats": np.arange(6.0).reshape(2, 3),
    "columns first": np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
    "big-endian": np.arange(3, dtype=">i2"),
    "texts": np.array(["a", "bcd"]),
    "times": np.array(["2026-01-02"], "M8[D]"),
    "none": np.zeros((0, 3)),
    "one": np.array(2.5),
    "random state": np.random.RandomState(1).get_state()[1],
}


def written(path: Path, legacy: bool, /, **beside: Any) -> Path:
    content = {"model": official(randomized(SWIN), "swin"), **beside}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.mark.parametrize("legacy", [False, True])
def test_plain_data_is_read_as_it_was(legacy: bool, tmp_path: Path) -> None:
    saved = {name: value for name, (value, _) in PLAIN.items()}
    path = written(tmp_path / "x.pth", legacy, **saved, all=dict(saved))
    found = read_file(path).beside
    for name, (_, expected) in PLAIN.items():
        for value in (found[name], found["all"][name]):
            assert (type(value), value) == (type(expected), expected) or value == expected, name
    model = build_model(SWIN)
    report = load_weights(model, path)
    assert_same(model, randomized(SWIN))
    assert set(report.beside) == {*saved, "all"}


@pytest.mark.parametrize("legacy", [False, True])
def test_arrays_are_read_as_they_were(legacy: bool, tmp_path: Path) -> None:
    found = read_file(written(tmp_path / "x.pth", legacy, arrays=ARRAYS, dtype=np.dtype(">f4"))).beside
    for name, expected in ARRAYS.items():
        value = found["arrays"][name]
        assert value.dtype == expected.dtype.newbyteorder("="), name  # NumPy reads into its own byte order
        assert value.shape == expected.shape, name
        assert np.array_equal(value, expected), name
    assert found["dtype"].dtype == np.dtype(">f4")


def renamed(path: Path, old: bytes, new: bytes) -> Path:
    """A legacy file in which a module has the name of another version."""
    path.write_bytes(path.read_bytes().replace(old, new))
    return path


def test_both_versions_of_numpy_and_of_pathlib(tmp_path: Path) -> None:
    beside = {"accuracy": np.float64(0.5), "curve": np.arange(3.0), "path": PurePosixPath("a")}
    for number, (old, new) in enumerate(
        (
            (b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"),
            (b"cnumpy.core.multiarray\n", b"cnumpy._core.multiarray\n"),
            (b"cpathlib\n", b"cpathlib._local\n"),
        )
    ):
        path = renamed(written(tmp_path / f"{number}.pth", True, **beside), old, new)
        found = read_file(path).beside
        assert (found["accuracy"], found["path"]) == (0.5, PurePosixPath("a"))
        assert found["curve"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "name",
    [
        "yacs.config.CfgNode",
        "fvcore.common.config.CfgNode",
        "easydict.EasyDict",
        "mmengine.config.config.ConfigDict",
    ],
)
def test_dicts_of_configurations_are_read_as_dicts(name: str, tmp_path: Path) -> None:
    path = written(tmp_path / "x.pth", True, config=argparse.Namespace(a={"b": 1}))
    module, _, kind = name.rpartition(".")
    renamed(path, b"cargparse\nNamespace\n", f"c{module}\n{kind}\n".encode())
    assert vars(read_file(path).beside["config"]) == {"a": {"b": 1}}


class Calls:
    """Pickled as a call of any function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


DANGEROUS: dict[str, tuple[Any, str]] = {
    "system": (Calls(os.system, "touch ran"), "posix.system"),
    "eval": (Calls(eval, "open('ran', 'w')"), "eval"),
    "getattr": (Calls(getattr, os, "system"), "getattr"),
    "attrgetter": (Calls(operator.attrgetter, "system"), "operator.attrgetter"),
    "partial": (functools.partial(print, 1), "functools.partial"),
    "open": (Calls(open, "ran", "w"), f"{open.__module__}.open"),  # io, and _io from Python 3.13 on
    "touch": (Calls(pathlib.Path.touch, Path("ran")), "getattr"),
    "object array": (np.array([1, None], dtype=object), "numpy.object_"),
    "object scalar": (Calls(np.dtype, "O8", False, True), "numpy.object_"),
    "structured array": (np.zeros(2, [("a", "f4")]), "numpy.void"),
    "record": (np.zeros(2, [("a", "f4")])[0], "numpy.void"),
    "loader of NumPy": (Calls(np.load, "x"), "numpy.load"),
    "generator of NumPy": (np.random.RandomState(1), "numpy.random._pickle.__randomstate_ctor"),
    "module": (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
    "class": (Calls, "tests.swin_moe.weights.test_weights_plain.Calls"),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", DANGEROUS)
def test_anything_else_is_refused_by_name(
    kind: str, legacy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    value, name = DANGEROUS[kind]
    content: dict[str, Any] = {"model": official(randomized(SWIN), "swin"), "beside": value}
    try:
        torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    except TypeError:  # a module cannot be pickled
        content["beside"] = Calls(getattr, "a", "b")
        torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(WeightsError) as error:
        load_weights(build_model(SWIN), tmp_path / "x.pth")
    assert f"would run code if it were read (it names {name})" in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_a_forged_state_of_an_array_is_refused(tmp_path: Path) -> None:
    """A pickle may set any state: numbers in place of bytes, or more elements than there are bytes."""
    whole = np.arange(3.0).__reduce__()
    for state in ((1, (3,), np.dtype("f8"), False, [1, 2, 3]), (1, (10**9,), np.dtype("f8"), False, b"1")):
        forged = Calls(None)
        forged.call = (whole[0], whole[1], state)  # type: ignore[assignment]
        path = written(tmp_path / "x.pth", False, curve=forged)
        with pytest.raises(WeightsError, match=r"numpy.object_|damaged"):
            read_file(path)


def test_reading_leaves_the_globals_of_torch_as_they_were(tmp_path: Path) -> None:
    read_file(written(tmp_path / "x.pth", False, accuracy=np.float64(1)))
    with pytest.raises(pickle.UnpicklingError):
        torch.load(io.BytesIO((tmp_path / "x.pth").read_bytes()), weights_only=True)
