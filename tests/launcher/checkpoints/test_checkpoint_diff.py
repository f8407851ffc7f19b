"""`swin-moe checkpoint diff | export`: what differs and by how much; weights and their moving average."""

from pathlib import Path

import torch

from launcher.config.load import load_config
from parallel.checkpoint.write import write_tensors
from swin_moe import build_model, load_weights
from swin_moe.weights.native import tensors_of
from tests.launcher.running import CONFIG
from tests.launcher.stored_runs import Say, record, tensors

# --- diff --------------------------------------------------------------------------------------------


def test_the_same_on_another_layout_is_identical(stored_run: Path, tmp_path: Path, say: Say) -> None:
    layout = record(960, "parallel.ep_size=4", "run_dir=elsewhere", world_size=4, ep_size=4)
    write_tensors(tmp_path / "b" / "checkpoints", 30, tensors(30), layout)
    code, out, _ = say("diff", stored_run, tmp_path / "b")
    assert code == 0
    assert "(step 30; 4 ranks, ep 4)" in out
    assert "parallel.ep_size: 1 and 4 (free)" in out
    assert out.splitlines()[-1] == "identical"


def test_what_differs_is_named_and_measured(stored_run: Path, tmp_path: Path, say: Say) -> None:
    other = tensors(30)
    other["master/a.weight"] = other["master/a.weight"].clone()
    other["master/a.weight"][1, 2] += 0.5
    other["exp_avg/b.weight"] = torch.zeros(5)
    other["master/new"] = other.pop("exp_avg_sq/c.weight")
    write_tensors(tmp_path / "b" / "checkpoints", 30, other, record(992, "optim.base_lr=0.5"))
    code, out, _ = say("diff", stored_run, tmp_path / "b")
    assert code == 1
    scale = max(float(t["master/a.weight"].abs().max()) for t in (tensors(30), other))
    for line in (
        f"master:     1 of 3 tensors differ, by up to 5.00e-01, {0.5 / scale:.2e} of a tensor's largest",
        "only in A: 1 tensors\n  exp_avg_sq/c.weight",
        "only in B: 1 tensors\n  master/new",
        "exp_avg/b.weight: [4, 3] and [5]",
        "buffer:     1 tensors, the same",
        "data.samples: 960 and 992",
        "optim.base_lr: 0.01 and 0.5 (training)",
    ):
        assert line in out
    assert out.splitlines()[-1] == "they differ"


def test_steps_of_a_run_and_a_tolerance(stored_run: Path, say: Say) -> None:
    code, out, _ = say("diff", stored_run, "10", "step-20", "--top", "2")
    assert code == 1
    assert "buffer:     1 of 1 tensors differ, by up to 1.00e+01" in out
    assert "and 8 more (--top)" in out
    assert "step: 10 and 20" in out
    assert (
        "10 tensors"
        not in say("diff", stored_run, "10", "20", "--atol", "99")[1].split("state")[0].split(":", 1)[0]
    )
    assert "of 3 tensors differ" not in say("diff", stored_run, "10", "20", "--atol", "99")[1]


def test_no_number_is_the_same_as_itself_and_far_from_any_other(tmp_path: Path, say: Say) -> None:
    for name, value in (("a", torch.nan), ("b", torch.nan), ("c", 1.0)):
        write_tensors(tmp_path / name, 1, {"master/x": torch.tensor([value, torch.inf])}, record())
    assert say("diff", tmp_path / "a", tmp_path / "b")[0] == 0
    code, out, _ = say("diff", tmp_path / "a", tmp_path / "c")
    assert code == 1
    assert "by up to inf" in out


# --- export ------------------------------------------------------------------------------------------


def test_export_of_the_moving_average(tmp_path: Path, say: Say) -> None:
    config = load_config(CONFIG)
    weights = tensors_of(build_model(config.model, seed=1), 8)
    held = {f"master/{name}": tensor for name, tensor in weights.items()}
    average = {f"ema/{name}": tensor + 1 for name, tensor in weights.items()}
    write_tensors(tmp_path / "run" / "checkpoints", 1, held | average, record())
    write_tensors(tmp_path / "bare" / "checkpoints", 1, held, record())
    for out, options in (("master", ()), ("ema", ("--ema",))):
        assert say("export", tmp_path / "run", tmp_path / out, *options)[0] == 0
    first, second = build_model(config.model), build_model(config.model)
    load_weights(first, tmp_path / "master")
    load_weights(second, tmp_path / "ema")
    for one, two in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one + 1, two)
    code, _, error = say("export", tmp_path / "bare", tmp_path / "none", "--ema")
    assert code == 2
    assert "holds no moving average of the weights: its run was trained without train.ema_decay" in error
    assert not (tmp_path / "none").exists()
