"""optim.optimizer in a run: what is refused and why, its groups, and going on with another one."""

import sys
from pathlib import Path

import pytest
from torch import nn

from launcher.config.load import ConfigError, load_config
from launcher.config.schema import OptimConfig
from launcher.preflight.disk import checkpoint_space
from launcher.tasks.param_groups import parameter_groups
from launcher.validation.rules import check
from parallel.checkpoint.commit import latest
from parallel.checkpoint.reader import CheckpointReader
from tests.distributed import run_on_ranks
from tests.launcher.running import CONFIG, commands, overrides, steps
from tests.launcher.short_run import line
from tests.parallel import fake_apex

HALF = "train.precision=bf16"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["optim.optimizer=sgd", "parallel.offload_optimizer=true"],
            r"parallel.offload_optimizer is for optim.optimizer=adamw, not sgd",
        ),
        (
            ["optim.optimizer=fused_adam", "parallel.zero_stage=0", HALF],
            r"optim.optimizer=fused_adam with train.precision=bf16 needs parallel.zero_stage of 1, 2 or 3",
        ),
        (
            ["optim.optimizer=fused_lamb"],
            r"needs whole tensors for its trust ratios: set parallel.zero_stage=0 \(got 1\), or "
            r"optim.optimizer=lamb",
        ),
        (
            ["optim.optimizer=fused_lamb", "parallel.zero_stage=0"],
            r"optim.optimizer=fused_lamb gives all experts of a rank one trust ratio",
        ),
        (
            [
                "optim.optimizer=lamb",
                "parallel.zero_stage=3",
                "parallel.ep_size=2",
                "parallel.expert_tensor_parallel_size=2",
            ],
            r"sums norms over the slices of an expert.* set parallel.expert_tensor_parallel_size=1 "
            r"\(got 2\), or stage 2",
        ),
    ],
)
def test_what_an_optimizer_cannot_do(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    for name, module in fake_apex.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        check(load_config(CONFIG, overrides(shards, tmp_path, *options)))


def test_without_apex_the_check_says_how_to_install_it(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "apex", None)
    with pytest.raises(
        ConfigError, match=r"NVIDIA Apex does not import .*git\+https://github.com/NVIDIA/apex"
    ):
        check(load_config(CONFIG, overrides(shards, tmp_path, "optim.optimizer=fused_adam")))


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.9, True), (0.0, False)])
def test_sgd_is_nesterovs_where_it_has_momentum(momentum: float, nesterov: bool) -> None:
    (group,) = parameter_groups(nn.LayerNorm(4), OptimConfig(optimizer="sgd", momentum=momentum))
    assert (group["momentum"], group["nesterov"]) == (momentum, nesterov)


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ([], 3),
        (["optim.optimizer=sgd"], 2),
        (["optim.optimizer=sgd", "optim.momentum=0"], 1),
        (["optim.optimizer=lamb", "train.ema_decay=0.9"], 4),
    ],
)
def test_the_room_that_a_checkpoint_takes(
    shards: Path, tmp_path: Path, options: list[str], values: int
) -> None:
    found = checkpoint_space(load_config(CONFIG, overrides(shards, tmp_path, *options)), tmp_path)
    assert found["values"] == values


def test_a_run_goes_on_with_another_optimizer_and_says_what_starts_anew(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = [*line(shards, run), "train.duration=4 steps"]
    second = [*line(shards, run), "train.duration=6 steps", "optim.optimizer=sgd", "optim.momentum=0.5"]
    started, refused, gone_on = run_on_ranks(commands, 2, [first, second, [*second, "--allow-change"]])[0]
    assert (started.code, refused.code, gone_on.code) == (0, 2, 0), gone_on.err
    assert "optim.optimizer: adamw in the checkpoint, sgd now" in refused.err
    assert "step-00000004 holds no momentum_buffer: started anew" in gone_on.err
    assert [record["step"] for record in steps(run)] == [1, 2, 3, 4, 5, 6]
    path = latest(run / "checkpoints")
    assert path is not None
    assert CheckpointReader(path).kinds() == ["master", "momentum_buffer"]
