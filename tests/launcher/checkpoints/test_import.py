"""Official Swin-MoE files of 8 ranks become a run: the same weights and moments by name on every layout."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from data_shards.storage.manifest import checked_manifest
from launcher.cli.program import main
from launcher.config.load import load_config
from launcher.tasks.param_groups import parameter_groups
from parallel.checkpoint.commit import latest
from parallel.checkpoint.manifest import read_manifest
from parallel.checkpoint.reader import CheckpointReader
from parallel.checkpoint.verify import problems
from parallel.ranks.mesh import ParallelDims, build_mesh
from swin_moe import build_model
from swin_moe.random.keyed import sample_keys
from tests.distributed import run_on_ranks
from tests.launcher.checkpoints.official_set import Official, save_one, save_set
from tests.launcher.running import CONFIG, STEPS_AN_EPOCH, command, overrides, steps

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
SETS = [  # experts on the 8 official ranks, and the ranks here
    pytest.param(8, (1, 2, 4), id="one a rank"),
    pytest.param(16, (4,), id="two a rank", marks=pytest.mark.slow),
    pytest.param(4, (2,), id="half a rank"),
]


def options(shards: Path, run: Path, experts: int = 8, *more: str) -> list[str]:
    """Capacity for every token, so that which of them are dropped is no question of the last bit."""
    moe = (f"model.moe.num_experts={experts}", "model.moe.eval_capacity_factor=0.0")
    return overrides(shards, run, *moe, "train.duration=18 steps", *more)


def convert(official: Official, shards: Path, run: Path, *more: str, experts: int = 8) -> int:
    given = [option for option in options(shards, run, experts) if not option.startswith("run_dir=")]
    return main(
        ["checkpoint", "convert", str(official.path), str(run), "--config", str(CONFIG), *given, *more]
    )


def made(shards: Path, tmp_path: Path, experts: int = 8) -> Official:
    return save_set(load_config(CONFIG, options(shards, tmp_path, experts)).model, tmp_path)


def answers(config_line: list[str], path: Path, images: torch.Tensor, ep: int) -> Any:
    """Logits of the checkpoint on these ranks, and where an engine that loaded it saved it again."""
    from launcher.training.builders import engine_options
    from parallel.checkpoint.load import load_checkpoint
    from parallel.zero.engine import Engine
    from parallel.zero.master_weights import MasterWeights
    from tests.parallel.checkpoint.saving import save_checkpoint

    config = load_config(CONFIG, config_line)
    mesh = build_mesh(
        ParallelDims(world_size=torch.distributed.get_world_size(), ep_size=ep), ranks_per_node=4
    )
    model = build_model(config.model, mesh=mesh)
    engine = Engine(model, parameter_groups(model, config.optim), mesh, engine_options(config, 1))
    masters = MasterWeights(engine.deepspeed)
    load_checkpoint(path, masters, config.model.moe.num_experts)
    again = save_checkpoint(path.parent / f"ep{ep}", 16, masters, mesh, {})
    model.eval()
    with torch.no_grad():
        return model(images, sample_keys(0, torch.arange(len(images)))).logits, again


@pytest.mark.parametrize(("experts", "sizes"), SETS)
def test_eight_ranks_into_others(shards: Path, tmp_path: Path, experts: int, sizes: tuple[int, ...]) -> None:
    official = made(shards, tmp_path, experts)
    run = tmp_path / "run"
    assert convert(official, shards, run, experts=experts) == 0
    path = latest(run / "checkpoints")
    assert path is not None
    assert problems(path) == []
    stored = CheckpointReader(path)
    assert stored.kinds() == ["master", "exp_avg", "exp_avg_sq"]
    for kind, tensors in {"master": official.weights, **official.moments}.items():
        names = {name for name in tensors if not name.endswith("fc2_bias")}
        assert stored.kind(kind).keys() == names
        assert [name for name in names if not torch.equal(stored[f"{kind}/{name}"], tensors[name])] == []

    line = options(shards, run, experts)
    reference = build_model(load_config(CONFIG, line).model).eval()
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            prefix, _, leaf = name.rpartition(".")
            if ".experts" in name:
                parameter.copy_(
                    torch.stack([official.weights[f"{prefix}.{e}.{leaf}"] for e in range(experts)])
                )
            else:
                parameter.copy_(official.weights[name])
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    expected = reference(images, sample_keys(0, torch.arange(4))).logits.detach()
    for size in sizes:
        for logits, again in run_on_ranks(answers, size, line, path, images, size):
            assert float((logits - expected).abs().max()) <= 1e-6
            same = CheckpointReader(again)
            assert same.keys() == stored.keys()
            assert [name for name in same if not torch.equal(same[name], stored[name])] == []


def test_one_file_of_a_dense_model(shards: Path, tmp_path: Path) -> None:
    """SwinV2, whose logit_scale has three dims and no weight decay."""
    dense = "model.moe=null", "model.attention=cosine", "model.norm=post", "model.mlp_fc2_bias=true"
    line = [option for option in options(shards, tmp_path) if "model.moe." not in option]
    line = [*line, *dense, "train.duration=9 epochs"]
    official, run = save_one(load_config(CONFIG, line).model, tmp_path, epoch=4), tmp_path / "run"
    given = [option for option in line if not option.startswith("run_dir=")]
    assert main(["checkpoint", "convert", str(official.path), str(run), "--config", str(CONFIG), *given]) == 0
    stored = CheckpointReader(run / "checkpoints" / "step-00000080")
    assert any("logit_scale" in name for name in stored)
    for kind, tensors in {"master": official.weights, **official.moments}.items():
        assert stored.kind(kind).keys() == tensors.keys()
        assert [name for name in tensors if not torch.equal(stored[f"{kind}/{name}"], tensors[name])] == []


def test_training_goes_on(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    official, run = made(shards, tmp_path), tmp_path / "run"
    assert convert(official, shards, run) == 0
    out = capsys.readouterr().out
    assert "epochs completed: 1, at 16.0 steps an epoch (256 images, 16 a step): step 16 of 18" in out
    assert "AdamW goes on from the 3 updates that it had counted there" in out
    assert "beside the weights, not used: max_accuracy" in out
    manifest = read_manifest(run / "checkpoints" / "step-00000016")
    assert manifest["adam_steps"] == 3
    state = manifest["state"]["data"]
    assert state["samples"] == 256
    assert state["manifest"] == checked_manifest(shards / "train").digest
    line = ["train", str(CONFIG), "--resume", "auto", *options(shards, run, 8, "parallel.ep_size=2")]
    outcomes = run_on_ranks(command, 2, *line)
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes[0].err
    assert [record["step"] for record in steps(run)] == [STEPS_AN_EPOCH + 1, STEPS_AN_EPOCH + 2]


def test_experts_only_files_and_their_master_have_no_optimizer(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What an official run leaves at its end: the run begins at step 0."""
    official, run = made(shards, tmp_path), tmp_path / "run"
    for rank in range(8):
        file = Path(f"{official.path}.rank{rank}")
        model = torch.load(file)["model"]
        torch.save({"model": {n: t for n, t in model.items() if ".experts." in n}}, file)
        if rank == 0:
            dense = {n: t for n, t in model.items() if ".experts." not in n}
            torch.save({"model": dense}, f"{official.path}.master")
    assert convert(official, shards, run) == 0
    assert (
        "no optimizer state: moments are zero, and the run stands at step 0 of 18" in capsys.readouterr().out
    )
    stored = CheckpointReader(run / "checkpoints" / "step-00000000")
    assert torch.equal(stored["master/head.weight"], official.weights["head.weight"])
    assert not any(stored[name].any() for name in stored if name.startswith("exp_avg"))


def tampered(official: Official, change: Any) -> None:
    file = Path(f"{official.path}.rank3")
    content = torch.load(file, weights_only=False)
    change(content)
    torch.save(content, file)


class Evil:
    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('executed')",))


def swap(content: Any) -> None:
    state = content["optimizer"]["state"]
    state[0], state[1] = state[1], state[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap, r"optimizer's exp_avg number 0 is .* the weights are in another order; --without-optimizer"),
        (
            lambda c: c["optimizer"]["param_groups"].pop(),
            r"groups of \[\d+\] parameters, its weights make \[",
        ),
        (lambda c: c["optimizer"]["state"].update({0: {"momentum_buffer": None}}), "is SGD, not AdamW"),
        (lambda c: c["optimizer"].pop("state"), "has no param_groups and state"),
        (lambda c: c.update(scaler=Evil()), "would run code if it were read"),
    ],
)
def test_what_cannot_be_imported_is_said(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, message: str
) -> None:
    official, run = made(shards, tmp_path), tmp_path / "run"
    tampered(official, change)
    assert convert(official, shards, run) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error
    assert latest(run / "checkpoints") is None


def test_places_steps_and_weights_alone(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    official, run = made(shards, tmp_path), tmp_path / "run"
    assert convert(official, shards, run, "--step", "19") == 2
    assert "step 19 is beyond train.duration (18 steps, 18 steps)" in capsys.readouterr().err
    assert convert(official, shards, run, "--without-optimizer", "--step", "5") == 0
    assert latest(run / "checkpoints") == run / "checkpoints" / "step-00000005"
    capsys.readouterr()
    assert convert(official, shards, run) == 2
    assert "holds a run already" in capsys.readouterr().err
    again = Official(path=run, weights={}, moments={})
    assert convert(again, shards, tmp_path / "other") == 2
    assert "holds a checkpoint already" in capsys.readouterr().err
