"""`swin-moe convert` and `swin-moe export`: formats by name, runs, and what is refused."""

from pathlib import Path

import pytest
import torch

from launcher.cli.program import main
from parallel.checkpoint.commit import latest
from swin_moe import ModelConfig, build_model, load_weights, save_weights
from swin_moe.recipes import load_model_config
from swin_moe.weights.native import config_of
from tests.distributed import run_on_ranks
from tests.launcher.running import CONFIG, command, overrides

YAML = """
model:
  image_size: 32
  num_classes: 5
  embed_dim: 8
  depths: [2, 2]
  num_heads: [2, 4]
  window_size: 4
"""


SHORT = ("train.duration=3 steps", "optim.warmup=1 steps")


def make(tmp_path: Path) -> tuple[Path, Path]:
    """A YAML and an official file of its model."""
    (tmp_path / "swin.yaml").write_text(YAML)
    config = load_model_config(
        ModelConfig(),
        image_size=32,
        num_classes=5,
        embed_dim=8,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
    )
    return tmp_path / "swin.yaml", save_weights(build_model(config, seed=5), tmp_path / "in.pth", "official")


def test_from_one_format_to_the_next_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """official -> hf -> timm -> ours, which knows its own model -> official: the tensors of the beginning."""
    config, source = make(tmp_path)
    for form, name in (("hf", "hf"), ("timm", "t.safetensors"), ("native", "n")):
        out = tmp_path / name
        assert main(["convert", str(source), str(out), "--to", form, "--config", str(config)]) == 0
        assert f"wrote {out} ({form})" in capsys.readouterr().out
        source = out
    assert main(["convert", str(source), str(tmp_path / "out.pth"), "--to", "official"]) == 0
    assert "swin-moe, 63 tensors loaded" in capsys.readouterr().out
    first, last = (torch.load(tmp_path / name)["model"] for name in ("in.pth", "out.pth"))
    assert first.keys() == last.keys()
    assert all(torch.equal(first[name], last[name]) for name in first)


def test_a_class_map_and_a_new_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, source = make(tmp_path)
    config.write_text(YAML.replace("num_classes: 5", "num_classes: 2"))
    line = ["convert", str(source), str(tmp_path / "out"), "--config", str(config)]
    assert main(line) == 2
    assert "the weights have 5 classes, model.num_classes is 2" in capsys.readouterr().err
    (tmp_path / "map.txt").write_text("4\n1\n")
    assert main([*line, "--head", str(tmp_path / "map.txt")]) == 0
    assert f"classifier: 2 of 5 classes, by {tmp_path / 'map.txt'}" in capsys.readouterr().out
    line[2] = str(tmp_path / "other")
    assert main([*line, "--head", "replace"]) == 0
    assert "the model's own of 2 classes stays" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{in}", "{out}"], "does not say which model it is of; give --config CONFIG"),
        (["{in}", "{out}", "--config", "swin_tony_patch4_window7_224"], "did you mean swin_tiny_patch4"),
        (["{in}", "{out}", "--config", "nowhere.yaml"], "ConfigError: cannot read nowhere.yaml"),
        (["{in}", "{in}", "--config", "{yaml}"], "exists; choose another place"),
        (["{in}x", "{out}", "--config", "{yaml}"], "in.pthx does not exist; did you mean in.pth?"),
        (["{in}", "{out}", "--config", "{yaml}", "--head", "nofile"], "the class map nofile cannot be read"),
    ],
)
def test_mistakes_are_said_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, source = make(tmp_path)
    places = {"in": source, "out": tmp_path / "out", "yaml": config}
    assert main(["convert", *(argument.format(**places) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_file_that_cannot_be_weights_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, source = make(tmp_path)
    line = ["convert", str(source), str(tmp_path / "out"), "--config", str(config)]
    tensors = torch.load(source)["model"]
    tensors["norm.bias"][3] = float("nan")
    torch.save({"model": tensors}, source)
    assert main(line) == 2
    error = capsys.readouterr().err
    assert (
        "in.pth: 1 tensor holds values that are not finite: norm.bias (1 NaN and 0 infinite of 16)" in error
    )
    source.write_text("<!DOCTYPE html><title>Sign in</title>")
    assert main(line) == 2
    assert "in.pth is a web page (HTML or XML), not the file itself" in (second := capsys.readouterr().err)
    assert error.count("\n") == second.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_moving_average_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, source = make(tmp_path)
    model = torch.load(source)["model"]
    average = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in model.items()}
    torch.save({"model": model, "model_ema": average}, source)
    for options, expected in (([], model), (["--ema"], average)):
        out = tmp_path / f"out{len(options)}.pth"
        line = ["convert", str(source), str(out), "--to", "official", "--config", str(config)]
        assert main([*line, *options]) == 0
        assert "the file holds model and model_ema" in capsys.readouterr().out
        found = torch.load(out)["model"]
        assert all(torch.equal(found[name], expected[name]) for name in found if "index" not in name)


def test_a_run_of_two_ranks_is_exported(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The experts of both ranks, trained apart, come together; by its checkpoint or the newest, the same."""
    run = tmp_path / "run"
    line = ["train", str(CONFIG), *overrides(shards, run, "parallel.ep_size=2", *SHORT)]
    outcome = run_on_ranks(command, 2, *line)[0]
    assert outcome.code == 0, outcome.err
    name = latest(run / "checkpoints").name
    for out, options in (("a.safetensors", []), ("b.safetensors", ["--checkpoint", name])):
        assert main(["export", str(run), str(tmp_path / out), *options]) == 0
    assert "swin-moe" in capsys.readouterr().out
    config = config_of(tmp_path / "a.safetensors")
    assert config == config_of(run)
    direct, first, second = (build_model(config, seed=9) for _ in range(3))
    load_weights(direct, run / "checkpoints" / name)
    load_weights(first, tmp_path / "a.safetensors")
    load_weights(second, tmp_path / "b.safetensors")
    for one, two, three in zip(*(m.parameters() for m in (direct, first, second)), strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)
    assert main(["export", str(run), str(tmp_path / "hf"), "--to", "hf"]) == 2
    assert "--to hf is for swin, swinv2; this model is swin_moe" in capsys.readouterr().err


def test_what_is_no_run_is_not_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        assert main(["export", str(place), str(tmp_path / "out")]) == 2
        assert "is no run with a checkpoint" in capsys.readouterr().err
