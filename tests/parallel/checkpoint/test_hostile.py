"""Files made to harm, under manifests that vouch for them: refused, and nothing in them is executed."""

import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from parallel.checkpoint.load import load_checkpoint, load_weights
from parallel.checkpoint.manifest import CheckpointError, describe, read_manifest, with_checksum
from parallel.checkpoint.unpickler import SafeReader, SafeUnpickler
from parallel.checkpoint.verify import read_verified
from swin_moe.weights.errors import WeightsError
from swin_moe.weights.files import read_file
from tests.parallel.checkpoint.saving import PlainMasterWeights, mesh_of, save, save_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


class Touch:
    """Unpickles into a command that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"touch {self.path}",)


def as_pickle(harm: Path) -> bytes:
    return pickle.dumps(Touch(harm))


def as_torch_file(harm: Path) -> bytes:
    """What torch.save makes of it: a zip whose pickle calls."""
    file = io.BytesIO()
    torch.save({"weight": torch.zeros(3), "more": Touch(harm)}, file)
    return file.getvalue()


def as_old_torch_file(harm: Path) -> bytes:
    """The same in the format before zips."""
    file = io.BytesIO()
    torch.save(Touch(harm), file, _use_new_zipfile_serialization=False)
    return file.getvalue()


FORMS = pytest.mark.parametrize("form", [as_pickle, as_torch_file, as_old_torch_file])


@pytest.fixture
def harm(tmp_path: Path) -> Path:
    return tmp_path / "harm"


def replace_vouched(path: Path, name: str, content: bytes) -> None:
    """Put other bytes in a file's place, with a manifest to match."""
    (path / name).write_bytes(content)
    manifest = read_manifest(path)
    manifest["files"] |= describe([path / name])
    (path / "manifest.json").write_text(json.dumps(with_checksum(manifest)))
    read_verified(path)  # whole, as far as checksums can tell


@FORMS
@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_a_planted_file_of_a_checkpoint(tmp_path: Path, harm: Path, name: str, form: Any) -> None:
    path = save(tmp_path / "run", 1)
    size = (path / name).stat().st_size
    replace_vouched(path, name, form(harm).ljust(size, b"\0"))
    with pytest.raises(CheckpointError, match="could not read"):
        load_weights(path, PlainMasterWeights().module, 0)
    with pytest.raises(CheckpointError, match="could not read"):
        load_checkpoint(path, PlainMasterWeights(), 0)  # type: ignore[arg-type]
    assert not harm.exists()


@FORMS
def test_each_tensor_of_a_data_file(tmp_path: Path, harm: Path, form: Any) -> None:
    """The payload where the metadata says that a tensor begins, for every tensor."""
    path = save(tmp_path / "run", 1)
    whole = (path / "__0_0.distcp").read_bytes()
    entries = SafeReader(path).read_metadata().storage_data.values()
    content = bytearray(whole)
    for entry in entries:
        payload = form(harm)[: entry.length]
        content[entry.offset : entry.offset + len(payload)] = payload
    replace_vouched(path, "__0_0.distcp", bytes(content))
    with pytest.raises(CheckpointError, match="could not read"):
        load_weights(path, PlainMasterWeights().module, 0)
    assert not harm.exists()


@FORMS
def test_a_manifest_that_is_a_pickle(tmp_path: Path, harm: Path, form: Any) -> None:
    path = save(tmp_path / "run", 1)
    (path / "manifest.json").write_bytes(form(harm))
    with pytest.raises(CheckpointError, match=r"its manifest\.json cannot be read"):
        load_weights(path, PlainMasterWeights().module, 0)
    assert not harm.exists()


def test_state_is_data_and_never_more(tmp_path: Path, harm: Path) -> None:
    """A pickle as text inside the state stays text."""
    state = {"data": as_pickle(harm).decode("latin-1"), "engine": f"!!python/object/apply:os.system [{harm}]"}
    path = save_checkpoint(tmp_path, 1, PlainMasterWeights(1), mesh_of(), {"state": state})  # type: ignore[arg-type]
    assert load_weights(path, PlainMasterWeights().module, 0)["state"] == state
    assert not harm.exists()


@FORMS
@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_a_file_of_weights(tmp_path: Path, harm: Path, suffix: str, form: Any) -> None:
    file = tmp_path / f"weights{suffix}"
    file.write_bytes(form(harm))
    with pytest.raises(WeightsError, match=str(file)):
        read_file(file)
    assert not harm.exists()


@pytest.mark.parametrize("module", ["pathlib", "pathlib._local"])
def test_paths_of_every_version_of_python(module: str) -> None:
    """A .metadata of Python 3.13 names its path by another module."""
    text = f"c{module}\nPosixPath\n(S'run'\ntR."
    assert SafeUnpickler(io.BytesIO(text.encode())).load() == Path("run")
