"""A run on images of 32 x 64 pixels by the command line: training, evaluation, export, plan, resume."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from launcher.cli.models import ModelRow, line
from launcher.cli.program import main
from launcher.config.load import ConfigError, dump_config, load_config
from launcher.study.grid.file import load_study_file
from launcher.study.grid.resolve import resolve
from launcher.validation.resume_policy import changed_options
from swin_moe import build_model, load_weights
from swin_moe.backbone.flops import cost
from swin_moe.weights.native import config_of
from swin_moe.yaml_files import parse_yaml
from tests.distributed import run_on_ranks
from tests.launcher.running import CONFIG, EXACT, command, commands, evaluations, overrides, run_alone, steps

SIZE = "model.image_size=[32, 64]"  # maps of 8 x 16 and 4 x 8 tokens; the side of 4 is one window
STEPS = 4
LINE = (
    SIZE,
    "model.window_size=4",
    "data.eval_crop=0.875",
    f"train.duration={STEPS} steps",
    "train.eval_every=2 steps",
    "checkpoint.every=2 steps",
)


def train_line(shards: Path, run_dir: Path, *more: str) -> list[str]:
    return ["train", str(CONFIG), *overrides(shards, run_dir, *LINE, *more)]


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on one rank; only read."""
    path = tmp_path_factory.mktemp("wide") / "run"
    run_alone(*train_line(shards, path))
    return path


def test_what_was_written_stays_written(run: Path) -> None:
    text = (run / "config.yaml").read_text()
    assert "  image_size: [32, 64]\n" in text
    assert load_config(run / "config.yaml").model.image_size == (32, 64)
    assert dump_config(load_config(run / "config.yaml")) == text
    square = load_config(run / "config.yaml", ["model.image_size=32"])
    assert "  image_size: 32\n" in dump_config(square)


@pytest.mark.parametrize("stage", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_two_ranks_train_the_same(run: Path, shards: Path, tmp_path: Path, stage: int) -> None:
    """Experts apart, smaller micro-batches, parameters partitioned: figures but for the rounding of sums."""
    layout = ("parallel.ep_size=2", "train.micro_batch_size=4", f"parallel.zero_stage={stage}")
    for outcome in run_on_ranks(command, 2, *train_line(shards, tmp_path / "run", *layout)):
        assert outcome.code == 0, outcome.err
    for found, wanted in zip(steps(tmp_path / "run"), steps(run), strict=True):
        for name in EXACT:
            assert found[name] == pytest.approx(wanted[name], rel=1e-4), name
    for found, wanted in zip(evaluations(tmp_path / "run"), evaluations(run), strict=True):
        assert found["eval_top1"] == wanted["eval_top1"]
        assert found["eval_loss"] == pytest.approx(wanted["eval_loss"], rel=1e-4)


def test_a_killed_run_goes_on_exactly(run: Path, shards: Path, tmp_path: Path) -> None:
    """Stopped at step 2, resumed: bit by bit the run that was not; the other way round it is another run."""
    once = train_line(shards, tmp_path / "run", "train.duration=2 steps", "optim.schedule=cosine")
    again = [*train_line(shards, tmp_path / "run"), "--resume", "auto", "--allow-change"]
    turned = [*again, "model.image_size=[64, 32]"]
    first, refused, second = run_on_ranks(commands, 1, [once, turned, again])[0]
    assert (first.code, refused.code, second.code) == (0, 2, 0), second.err
    assert "model.image_size: [32, 64] in the checkpoint, [64, 32] now" in refused.err
    assert [record["step"] for record in steps(tmp_path / "run")] == list(range(1, STEPS + 1))


EVALUATIONS = [
    [],
    ["--sweep-capacity", "0.5,0", "--sweep-top-k", "1,2"],
    ["--few-shot", "2", "--knn", "3", "--bank", "64"],
    ["--throughput", "--passes", "2"],
    ["--confusion", "--affinity"],
]


def test_every_evaluation(run: Path) -> None:
    outcomes = run_on_ranks(commands, 1, [["eval", str(run), *options] for options in EVALUATIONS])[0]
    assert [outcome.code for outcome in outcomes] == [0] * len(EVALUATIONS), outcomes
    top1 = evaluations(run)[-1]["eval_top1"]
    assert outcomes[0].out.startswith(f"step-00000004 (step 4): top-1 {top1:.2%}, ")
    found = json.loads((run / "eval" / "step-00000004" / "throughput.json").read_text())
    assert found["modes"][0]["flops_an_image"] == 2 * cost(load_config(run / "config.yaml").model).flops


def test_export_knows_its_model(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x.safetensors"
    assert main(["export", str(run), str(out)]) == 0
    config = config_of(out)
    assert config is not None
    assert config.image_size == (32, 64)
    model = build_model(config)
    load_weights(model, out)
    assert model.eval()(torch.zeros(2, 3, 32, 64)).logits.shape == (2, 10)
    assert main(["convert", str(out), str(tmp_path / "y"), "--to", "native"]) == 0
    assert config_of(tmp_path / "y") == config
    capsys.readouterr()
    assert main(["export", str(run), str(tmp_path / "z.pth"), "--to", "official"]) == 2
    error = capsys.readouterr().err
    assert "stage 1 has a map of 4 x 8 and windows of 4" in error
    assert error.count("\n") == 1


def test_plan(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same the other way round, and of two images nearly what one of twice the pixels needs."""
    found = {}
    for size, images in (("[32, 64]", 8), ("[64, 32]", 8), ("32", 16)):
        more = (f"model.image_size={size}", f"train.micro_batch_size={images}", "data.augment=null")
        file, gpu = tmp_path / "plan.json", ["--gpu", "a100-40", "--gpus-per-node", "1"]
        options = overrides(shards, tmp_path / "run", *LINE, *more)
        assert main(["plan", str(CONFIG), *gpu, "--json", str(file), *options]) == 0
        found[size] = json.loads(file.read_text())
    capsys.readouterr()
    assert found["[32, 64]"]["memory"] == found["[64, 32]"]["memory"]
    wide, square = (found[size]["memory"]["items"] for size in ("[32, 64]", "32"))
    for part in ("activations of stage 0", "activations of patch embedding"):
        assert wide[part] == pytest.approx(square[part], rel=0.02)


def test_simmim(shards: Path, tmp_path: Path) -> None:
    options = ("task=simmim", "simmim.mask_patch_size=16", "data.augment=null", "model.image_size=[24, 40]")
    path = tmp_path / "run"
    trained, evaluated = run_on_ranks(commands, 1, [train_line(shards, path, *options), ["eval", str(path)]])[
        0
    ]
    assert (trained.code, evaluated.code) == (0, 0), trained.err + evaluated.err
    assert evaluated.out.startswith("step-00000004 (step 4): reconstruction loss")


# What is refused.

BAD = {
    "32x64": "model.image_size: Input should be a valid integer, or a list of two (got '32x64')",
    "[32]": "model.image_size ([32]) must be one number, of a square, or two: [height, width]",
    "[32, 64, 3]": "model.image_size ([32, 64, 3]) must be one number, of a square, or two",
    "[]": "model.image_size ([]) must be one number, of a square, or two",
    "[32, a]": "model.image_size[1]: Input should be a valid integer",
    "[32.0, 64]": "model.image_size[0]: Input should be a valid integer (got 32.0)",
    "[0, 64]": "model.image_size ([0, 64]) must be at least 1",
    "[64, -1]": "model.image_size ([64, -1]) must be at least 1",
    "[[32, 64]]": "model.image_size[0]: Input should be a valid integer (got [32, 64])",
    "true": "model.image_size: Input should be a valid integer, or a list of two (got True)",
    "{height: 32}": "model.image_size: Input should be a valid integer, or a list of two (got {'height'",
}


@pytest.mark.parametrize("size", BAD)
def test_a_bad_size_is_one_line(
    size: str, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = overrides(shards, tmp_path / "run", f"model.image_size={size}")
    assert main(["check", str(CONFIG), *options]) == 2
    head, *lines = capsys.readouterr().err.strip().splitlines()
    assert head.endswith("is not a valid RunConfig:")
    (found,) = lines
    assert found.strip().startswith(BAD[size])


def test_check_accepts_it(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(CONFIG), *overrides(shards, tmp_path / "run", SIZE)]) == 0
    assert "valid" in capsys.readouterr().out


@pytest.mark.parametrize("size", ["24x40", "40"])
def test_bench_data(shards: Path, size: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = [
        "bench",
        "data",
        str(shards / "train"),
        "--image-size",
        size,
        "--images",
        "8",
        "--batch-size",
        "4",
    ]
    assert main(line) == 0
    assert "images/s" in capsys.readouterr().out


@pytest.mark.parametrize("size", ["24x", "x40", "24x40x3", "a", "24,40"])
def test_bench_data_refuses(size: str, shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "data", str(shards / "train"), "--image-size", size])
    assert f"argument --image-size: '{size}' must be SIDE or HEIGHTxWIDTH" in capsys.readouterr().err


# Squares in two combinations.


def test_a_square_in_two_numbers_is_no_change() -> None:
    def tree(size: str) -> Any:
        return parse_yaml(dump_config(load_config(CONFIG, [f"model.image_size={size}"])))

    assert (
        changed_options(tree("32"), tree("[32, 32]")) == changed_options(tree("[32, 32]"), tree("32")) == []
    )
    assert [str(c) for c in changed_options(tree("32"), tree("[32, 64]"))] == [
        "model.image_size: 32 in the checkpoint, [32, 64] now"
    ]


def test_the_table_of_models_has_both_sides() -> None:
    row = ModelRow(
        name="x",
        image_size=(192, 256),
        window_size=7,
        parameters=10**6,
        active_parameters=10**6,
        flops=10**9,
        published_parameters="",
        published_flops="",
        agrees=None,
    )
    assert line(row).split()[:3] == ["x", "192x256", "7"]
    assert line(replace(row, image_size=224)).split()[:3] == ["x", "224", "7"]


def test_a_study_over_shapes(tmp_path: Path) -> None:
    def planned(sizes: str) -> list[str]:
        path = tmp_path / "shapes.yaml"
        axes = f"axes: {{model.image_size: {sizes}}}"
        path.write_text(f"study_dir: {tmp_path / 'study'}\nconfig: {CONFIG}\n{axes}\n")
        return [each.trial.name for each in resolve(path, load_study_file(path), 1, data=False).trials]

    assert planned("[32, [16, 24], [24, 16]]") == [
        "image_size=32,seed=0",
        "image_size=16x24,seed=0",
        "image_size=24x16,seed=0",
    ]
    with pytest.raises(
        ConfigError, match="image_size=32,seed=0 and image_size=32x32,seed=0 are the same run twice"
    ):
        planned("[32, [32, 32]]")
