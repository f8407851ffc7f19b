"""One logical checkpoint: saved by one layout, loaded by any other, whole or not at all."""

import json
import os
import pickle
import resource
import shutil
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from parallel.checkpoint.commit import latest
from parallel.checkpoint.load import global_shapes, load_checkpoint, load_weights
from parallel.checkpoint.manifest import CheckpointError, describe, with_checksum
from parallel.zero.master_weights import MasterWeights
from swin_moe import ModelConfig, build_model
from tests.distributed import run_on_ranks
from tests.parallel.checkpoint.saving import save_checkpoint
from tests.parallel.resuming import SAVED, Outcome, differing, load_and_go_on, save_and_go_on
from tests.parallel.training import EXPERTS, Layout, Run, Trace, by_global_name, model_config

THEN = 2  # steps after the checkpoint
FIRST = Layout(world=4, ep=4, slices=2, stage=1, micro=2)
TARGETS = [  # that cover what there is; test_matrix.py has them all
    FIRST,
    Layout(world=2, ep=2, slices=2, stage=0, micro=4),
    Layout(world=2, ep=2, stage=2, micro=4),
    Layout(world=2, ep=1, stage=1, micro=4),
    Layout(world=1, ep=1, stage=0, micro=16),
    Layout(world=4, ep=4, slices=2, stage=3, micro=2, always_cut=True),
    Layout(world=2, ep=1, stage=3, micro=8),
]
BF16_TARGETS = [
    Layout(world=2, ep=1, stage=1, micro=8, precision="bf16"),
    Layout(world=2, ep=2, stage=2, micro=8, precision="bf16"),
    Layout(world=1, ep=1, stage=0, micro=16, precision="bf16"),
    Layout(world=2, ep=2, stage=3, micro=8, precision="bf16"),
]


def save_beside_a_run_that_does_not(directory: Path) -> tuple[Outcome, Trace]:
    """Steps, a checkpoint, more steps; and beside it the same steps of a run that never saved."""
    (outcome,) = save_and_go_on(directory, [FIRST], THEN)
    other = Run.start(FIRST)
    other.train(SAVED)
    return outcome, other.train(THEN)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run") / "0"


@pytest.fixture(scope="module")
def original(directory: Path) -> Outcome:
    outcome, unsaved = run_on_ranks(save_beside_a_run_that_does_not, 4, directory.parent)[0]
    assert (outcome.trace.losses, outcome.trace.norms) == (unsaved.losses, unsaved.norms)  # saving is silent
    return outcome


@pytest.fixture(scope="module")
def saved(directory: Path, original: Outcome) -> Path:
    path = latest(directory)
    assert path is not None
    return path


@pytest.fixture(scope="module")
def loaded(saved: Path) -> dict[Layout, Outcome]:
    found: dict[Layout, Outcome] = {}
    for world in (1, 2, 4):
        targets = [layout for layout in TARGETS + BF16_TARGETS if layout.world == world]
        found |= zip(targets, run_on_ranks(load_and_go_on, world, saved, targets, THEN)[0], strict=True)
    return found


@pytest.mark.parametrize("layout", TARGETS + BF16_TARGETS, ids=str)
def test_masters_and_moments_are_bit_identical_on_every_layout(
    layout: Layout, loaded: dict[Layout, Outcome], original: Outcome
) -> None:
    assert differing(loaded[layout], original) == []


def test_the_same_layout_goes_on_bit_identically(loaded: dict[Layout, Outcome], original: Outcome) -> None:
    assert loaded[FIRST].trace.losses == original.trace.losses
    assert loaded[FIRST].trace.norms == original.trace.norms


@pytest.mark.parametrize("layout", TARGETS[1:], ids=str)
def test_every_other_layout_goes_on_alike(
    layout: Layout, loaded: dict[Layout, Outcome], original: Outcome
) -> None:
    assert loaded[layout].trace.losses == pytest.approx(original.trace.losses, rel=1e-6)
    assert loaded[layout].trace.norms == pytest.approx(original.trace.norms, rel=1e-6)
    assert loaded[layout].trace.loads == original.trace.loads


@pytest.mark.parametrize("layout", BF16_TARGETS, ids=str)
def test_bf16_goes_on_within_its_rounding(
    layout: Layout, loaded: dict[Layout, Outcome], original: Outcome
) -> None:
    assert loaded[layout].trace.losses == pytest.approx(original.trace.losses, rel=2e-3)


def make_masters_late() -> tuple[list[float], list[float]]:
    """The losses of a run whose MasterWeights are made after its first steps, and of one without any."""
    layout = Layout(stage=1)
    late, plain = Run.start(layout), Run.start(layout)
    late.train(SAVED), plain.train(SAVED)
    MasterWeights(late.engine.deepspeed)
    return late.train(THEN).losses, plain.train(THEN).losses


def test_masters_made_after_some_steps_change_nothing() -> None:
    late, plain = run_on_ranks(make_masters_late, 1)[0]
    assert late == plain


# --- what lies on the disk


def numbers(config: ModelConfig) -> int:
    return sum(parameter.numel() for parameter in build_model(config).parameters())


def test_each_tensor_is_written_once_under_its_global_name(saved: Path) -> None:
    metadata = dcp.FileSystemReader(saved).read_metadata()
    expected = global_shapes(build_model(model_config()), EXPERTS)
    found = {name: list(entry.size) for name, entry in metadata.state_dict_metadata.items()}
    assert found == expected
    assert sum(torch.Size(shape).numel() for shape in found.values()) == 3 * numbers(model_config())
    assert "exp_avg/layers.1.blocks.1.mlp.experts.7.fc1_weight" in found
    assert sorted(index.fqn for index in metadata.storage_data) == sorted(expected)
    for path in saved.glob("*.distcp"):  # every byte of a file belongs to one of those entries
        entries = [info for info in metadata.storage_data.values() if info.relative_path == path.name]
        assert sum(info.length for info in entries) == path.stat().st_size


def test_the_ranks_share_the_writing(saved: Path) -> None:
    sizes = [path.stat().st_size for path in saved.glob("*.distcp")]
    assert len(sizes) == FIRST.world
    assert max(sizes) < 1.5 * sum(sizes) / len(sizes)


def test_the_manifest_tells_step_layout_state_files_and_tensors(saved: Path, directory: Path) -> None:
    manifest = json.loads((saved / "manifest.json").read_text())
    tensors, files = manifest.pop("tensors"), manifest.pop("files")
    assert len(manifest.pop("sha256")) == 64
    assert manifest == {
        "format": 2,
        "step": SAVED,
        "adam_steps": SAVED,
        "world_size": 4,
        "ep_size": 4,
        "expert_slices": 2,
        "state": {"images": 48},
    }
    assert tensors == global_shapes(build_model(model_config()), EXPERTS)
    assert files == describe([path for path in saved.iterdir() if path.name != "manifest.json"])
    assert sorted(files) == [".metadata", *(f"__{rank}_0.distcp" for rank in range(4))]
    assert saved.name == "step-00000003"
    assert (directory / "latest").read_text() == "step-00000003\n"
    assert sorted(path.name for path in directory.iterdir()) == ["latest", "step-00000003"]


# --- a save that fails


def fill_the_disk_of_one_rank(directory: Path) -> tuple[str, list[str], str, list[str]]:
    """A good save; one whose second rank cannot write beyond 4 KiB; one after the disk was emptied."""
    run = Run.start(Layout(world=2, ep=2, stage=1, micro=8))
    masters = MasterWeights(run.engine.deepspeed)
    save_checkpoint(directory, 1, masters, run.mesh, {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if run.mesh.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        save_checkpoint(directory, 2, masters, run.mesh, {})
        said = "saved"
    except CheckpointError as error:
        said = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    between, pointer = names(directory), (directory / "latest").read_text()
    dist.barrier()
    load_checkpoint(directory / pointer.strip(), masters, EXPERTS)
    save_checkpoint(directory, 3, masters, run.mesh, {})
    return said, between, pointer, names(directory)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_save_that_fails_on_one_rank_fails_on_all_and_changes_nothing(tmp_path: Path) -> None:
    for said, between, pointer, after in run_on_ranks(fill_the_disk_of_one_rank, 2, tmp_path):
        assert said.startswith(f"could not write {tmp_path}/step-00000002.tmp: ")
        assert "rank 1: [Errno 27] File too large" in said
        assert between == ["latest", "step-00000001"]
        assert pointer == "step-00000001\n"
        assert after == ["latest", "step-00000001", "step-00000003"]


def fail_before_writing(directory: Path) -> str:
    """Rank 0 cannot even make the directory."""
    run = Run.start(Layout(world=2, ep=1, stage=1, micro=8))
    masters = MasterWeights(run.engine.deepspeed)
    try:
        save_checkpoint(directory / "file" / "checkpoints", 1, masters, run.mesh, {})
    except CheckpointError as error:
        return str(error)
    return "saved"


def test_a_directory_that_cannot_be_made_is_an_error_on_all_ranks(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    partial = tmp_path / "file" / "checkpoints" / "step-00000001.tmp"
    said = run_on_ranks(fail_before_writing, 2, tmp_path)
    assert said[0] == said[1]
    assert said[0].startswith(f"could not prepare {partial}: rank 0: ")


# --- a checkpoint that is not what it was


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / saved.name))


def load_into_fresh_model(path: Path, config: ModelConfig | None = None) -> None:
    config = config or model_config()
    assert config.moe is not None
    load_weights(path, build_model(config, seed=99), config.moe.num_experts)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def test_weights_alone_load_without_an_engine(saved: Path, original: Outcome) -> None:
    model = build_model(model_config(), seed=99)
    load_weights(saved, model, EXPERTS)
    for name, parameter in model.named_parameters():
        for key, value in by_global_name(name, parameter, parameter).items():
            assert torch.equal(value, original.state[f"master/{key}"])


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", "__1_0.distcp", "__3_0.distcp"])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flip_a_bit, "{name} is damaged: its sha256 is not the manifest's"),
        (cut, "{name} is damaged: {cut} bytes instead of {size}"),
        (Path.unlink, "[Errno 2] No such file or directory: '{path}/{name}'"),
    ],
)
def test_a_damaged_file_is_named(copy: Path, name: str, damage: Callable[[Path], None], said: str) -> None:
    size = (copy / name).stat().st_size
    damage(copy / name)
    with pytest.raises(CheckpointError) as error:
        load_into_fresh_model(copy)
    reason = said.format(name=name, path=copy, size=size, cut=size - 100)
    assert str(error.value) == f"could not verify {copy}: {reason}"


def load_damaged(path: Path) -> str:
    run = Run.start(Layout(world=2, ep=2, stage=1, micro=8))
    try:
        load_checkpoint(path, MasterWeights(run.engine.deepspeed), EXPERTS)
    except CheckpointError as error:
        return str(error)
    return "loaded"


def test_damage_that_one_rank_finds_is_an_error_on_all(copy: Path) -> None:
    flip_a_bit(copy / "__2_0.distcp")  # files in order: .metadata, 0, 1, 2, 3; rank 1 verifies 0 and 2
    reason = "rank 1: __2_0.distcp is damaged: its sha256 is not the manifest's"
    assert run_on_ranks(load_damaged, 2, copy) == [f"could not verify {copy}: {reason}"] * 2


@pytest.mark.parametrize("text", [None, "", "{", "\xff"])
def test_without_a_manifest_it_is_no_checkpoint(copy: Path, text: str | None) -> None:
    (copy / "manifest.json").unlink()
    if text is not None:
        (copy / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match="is not a checkpoint: its manifest.json cannot be read"):
        load_into_fresh_model(copy)


def change_manifest(path: Path, **changes: Any) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(with_checksum(manifest | changes)))


def test_another_format_is_refused(copy: Path) -> None:
    change_manifest(copy, format=3)
    with pytest.raises(CheckpointError, match=r"has checkpoint format 3; this version reads 2$"):
        load_into_fresh_model(copy)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        # 3 kinds x (the bias of 1 dense MLP, and of 8 experts in 2 layers) = 51
        ({"mlp_fc2_bias": False}, r"0 tensors missing \[\], 51 unknown \['exp_avg/layers"),
        ({"depths": (2, 2)}, r"\d+ tensors missing \['exp_avg/layers\.0\.blocks\.1"),
        (
            {"num_classes": 11},
            r"6 of another shape \['exp_avg/head.bias \[10\] instead of \[11\]', .*; train with",
        ),
    ],
)
def test_another_models_checkpoint_is_refused(copy: Path, changes: dict[str, Any], said: str) -> None:
    config = replace(model_config(), **changes)
    with pytest.raises(CheckpointError, match=rf"is of another model: .*{said}"):
        load_into_fresh_model(copy, config)


# --- a checkpoint made to harm


class Call:
    """Unpickles into a call."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def plant(path: Path, payload: Call) -> None:
    """Put a pickle in the place of the metadata, under a manifest that vouches for it."""
    (path / ".metadata").write_bytes(pickle.dumps(payload))
    files = json.loads((path / "manifest.json").read_text())["files"]
    change_manifest(path, files=files | describe([path / ".metadata"]))


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, "posix.system"),
        (eval, "builtins.eval"),
        (getattr, "builtins.getattr"),
        (zlib.crc32, "zlib.crc32"),
    ],
)
def test_a_pickle_that_would_call_something_is_refused_unexecuted(
    copy: Path, tmp_path: Path, function: Callable[..., Any], name: str
) -> None:
    plant(copy, Call(function, f"touch {tmp_path}/harm"))
    with pytest.raises(
        CheckpointError, match=f"its .metadata names {name}, which no checkpoint needs: refused"
    ):
        load_into_fresh_model(copy)
    assert not (tmp_path / "harm").exists()


def test_a_detour_through_a_function_of_the_checkpoint_library_is_refused(copy: Path, tmp_path: Path) -> None:
    """Its own converter unpickles freely whatever directory it is told to read."""
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / ".metadata").write_bytes(pickle.dumps(Call(os.system, f"touch {tmp_path}/harm")))
    plant(copy, Call(dcp_to_torch_save, str(evil), str(tmp_path / "out")))
    with pytest.raises(CheckpointError) as error:
        load_into_fresh_model(copy)
    assert not (tmp_path / "harm").exists()
    assert "which no checkpoint needs: refused" in str(error.value)
