"""The loader: values, overrides, round trip, and the exact text of what it says when a file is wrong."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from launcher.config.load import ConfigError, dump_config, load_config
from launcher.config.schema import CheckpointConfig, DataConfig, OptimConfig, RunConfig
from swin_moe.config import ModelConfig
from swin_moe.moe_config import MoEConfig
from tests.launcher.config.loading import BASE, BASE_CONFIG, error_of, load
from tests.messages import assert_each_names, assert_names

CONFIGS = sorted((Path(__file__).parents[3] / "configs").rglob("*.yaml"))
CONFIGS = [path for path in CONFIGS if not {"base", "hardware", "studies"} & set(path.parts)]
MOE = "model.moe={blocks: [[], [], [5], []], num_experts: 4}"


def lines_of(*overrides: str) -> list[str]:
    """The lines below the headline, for BASE with overrides."""
    headline, *lines = error_of(BASE, *overrides).split("\n  ")
    assert headline == "base.yaml is not a valid RunConfig:"
    return lines


def test_defaults_are_those_of_the_schema() -> None:
    assert load(BASE) == BASE_CONFIG


TASK_SECTIONS = ("detection", "distill", "distill_logits", "moby", "segmentation", "simmim", "video")


def test_every_error_at_once() -> None:
    text = """\
model: {embed_dim: 96.0, depths: [2, 2, x, 2], moe: {num_expert: 8, top_k: true}}
data: {train: 3, std: 0.5}
optim: {base_lr: fast, wamup: 5 epochs}
train: {precision: fp8}
parallel: {zero_stage: 1.0}
checkpoint:
xyzzy: 1
"""
    assert (
        error_of(text)
        == """\
base.yaml is not a valid RunConfig:
  model.moe.num_expert: no such option; did you mean model.moe.num_experts?
  optim.wamup: no such option; did you mean optim.warmup?
  parallel.zero_stage: Input should be one of 0, 1, 2, 3 (got 1.0)
  xyzzy: no such option; known here: """
        + ", ".join([*RunConfig.__dataclass_fields__, *TASK_SECTIONS])
        + """
  run_dir: required, but not given
  model.embed_dim: Input should be a valid integer (got 96.0)
  model.depths[2]: Input should be a valid integer, unable to parse string as an integer (got 'x')
  model.moe.blocks: required, but not given
  model.moe.num_experts: required, but not given
  model.moe.top_k: Input should be a valid integer (got True)
  data.train: Input should be a valid string, or a mapping of names (got 3)
  data.val: required, but not given
  data.std: Input should be a valid list (got 0.5)
  optim.base_lr: Input should be a valid number, unable to parse string as a number (got 'fast')
  train.precision: Input should be 'fp32', 'bf16' or 'fp16' (got 'fp8')
  checkpoint: Input should be a mapping of options (got None)"""
    )


def test_a_rule_of_a_section_keeps_its_own_words() -> None:
    assert_each_names(
        lines_of(MOE, "model.moe.top_k=5", "seed=x", "data.vall=w"),
        ("data.vall: ", "data.val?"),
        ("model.moe.top_k (5)", "model.moe.num_experts (4)"),
        ("seed: ", "valid integer", "'x'"),
    )
    errors = lines_of("model.num_heads=[3, 6, 12, 25]")
    assert_each_names(errors, ("model.num_heads[3] (25)", "stage 3 (768)"))  # 96 * 2^3 = 768


def test_a_missing_section_says_what_it_needs() -> None:
    _, *lines = error_of("run_dir: a").split("\n  ")
    assert_each_names(lines, ("model: required",), ("data: required", "data.train, data.val"))


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("seed=true", "seed: Input should be a valid integer (got True)"),
        ("seed='8'", "seed: Input should be a valid integer (got '8')"),
        ("seed=2.0", "seed: Input should be a valid integer (got 2.0)"),
        (
            "seed=2.5",
            "seed: Input should be a valid integer, got a number with a fractional part (got 2.5)",
        ),
        ("seed=1e3", "seed: Input should be a valid integer (got 1000.0)"),
        ("seed=010", "seed: Input should be a valid integer (got '010')"),
        ("model.qkv_bias=1", "model.qkv_bias: Input should be a valid boolean (got 1)"),
        ("model.qkv_bias=yes", "model.qkv_bias: Input should be a valid boolean (got 'yes')"),
        ("model.mlp_ratio=true", "model.mlp_ratio: Input should be a valid number (got True)"),
        ("model.mlp_ratio=.nan", "unable to parse string as a number (got '.nan')"),
        ("model.mlp_ratio=1e400", "model.mlp_ratio: Input should be a valid number (got 'Infinity')"),
        ("model.depths=2266", "model.depths: Input should be a valid list (got 2266)"),
        ("model.depths=abcd", "model.depths: Input should be a valid list (got 'abcd')"),
        ("data.crop_scale=[1]", "data.crop_scale[1]: too short (got [1])"),
        ("parallel.zero_stage=true", "parallel.zero_stage: Input should be one of 0, 1, 2, 3 (got True)"),
        ("train.eval_every=1", "train.eval_every: Input should be a valid string (got 1)"),
        (
            "optim.lr=1e-3",
            "optim.lr: no such option; did you mean optim.base_lr or optim.warmup_lr or optim.min_lr or "
            "optim.backbone_lr_scale?",
        ),
        ("ep_size=2", "ep_size: no such option; did you mean parallel.ep_size?"),
        ("model.depths[0]=2", "model.depths[0]: no such option; did you mean model.depths?"),
        ("seed.x=2", "override 'seed.x=2': seed holds no options (got 7)"),
        ("seed", "override 'seed' is not of the form seed=VALUE (null for none)"),
        ("seed=", "override 'seed=' is not of the form seed=VALUE (null for none)"),
        ("model..moe=1", "override 'model..moe=1' is not of the form section.option=VALUE (null for none)"),
        (
            "model.depths=[1",
            "override 'model.depths=[1': line 1, column 3: while parsing a flow sequence, "
            "expected ',' or ']', but got '<stream end>'",
        ),
    ],
)
def test_no_value_is_bent_to_fit(override: str, reason: str) -> None:
    (line,) = lines_of("seed=7", override)
    assert line.endswith(reason)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (
            ("deepspeed.train_batch_size=8", "deepspeed.zero_optimization.stage=2"),
            "deepspeed.train_batch_size is decided by train.global_batch_size; leave it out; "
            "deepspeed.zero_optimization.stage is decided by parallel.zero_stage; leave it out",
        ),
        (
            ("deepspeed.comms_loger={enabled: true}",),
            "deepspeed.comms_loger: no such option; did you mean deepspeed.comms_logger?",
        ),
        (
            ("deepspeed.zero_optimization=3",),
            "deepspeed.zero_optimization (3) must be a section of options",
        ),
        (
            ("parallel.offload_optimizer=true", "parallel.zero_stage=0"),
            "parallel.offload_optimizer needs parallel.zero_stage of 1, 2 or 3 (got 0)",
        ),
        (("train.ema_decay=1.0",), "train.ema_decay (1.0) must lie in [0, 1)"),
    ],
)
def test_what_the_engine_cannot_be_told(overrides: tuple[str, ...], reason: str) -> None:
    (line,) = lines_of(*overrides)
    assert line.endswith(reason)


def test_further_options_reach_deepspeed_and_come_back_from_the_dump() -> None:
    options = ("deepspeed.zero_optimization.sub_group_size=5e8", "deepspeed.wall_clock_breakdown=true")
    config = load(BASE, *options)
    assert config.deepspeed == {"zero_optimization": {"sub_group_size": 5e8}, "wall_clock_breakdown": True}
    assert load(dump_config(config)) == config


def test_numbers_lists_and_texts_that_pyyaml_misreads() -> None:
    config = load(
        "run_dir: 2026-01-02\nmodel: {mlp_ratio: 4, depths: [1, 1], num_heads: [3, 3]}\n"
        "data: {train: 1:30, val: no}\nseed: 1_000\n"
        "optim: {base_lr: 1e-3, eps: 1E-08, min_lr: .5e-6, max_grad_norm: 1_000.5}\n"
    )
    assert config == RunConfig(
        run_dir="2026-01-02",
        model=ModelConfig(mlp_ratio=4.0, depths=(1, 1), num_heads=(3, 3)),
        data=DataConfig(train="1:30", val="no"),
        optim=OptimConfig(base_lr=0.001, eps=1e-8, min_lr=5e-7, max_grad_norm=1000.5),
        seed=1000,
    )
    assert type(config.model.mlp_ratio) is float


def test_overrides_make_sections_replace_values_and_the_last_wins() -> None:
    config = load(BASE, MOE, "model.moe.top_k=2", "seed=1", "seed=2", "checkpoint.every=null", "data.val=a=b")
    expected = replace(
        BASE_CONFIG,
        seed=2,
        model=ModelConfig(moe=MoEConfig(blocks=((), (), (5,), ()), num_experts=4, top_k=2)),
        checkpoint=CheckpointConfig(every=None),
        data=DataConfig(train="t", val="a=b"),
    )
    assert config == expected
    assert load(BASE, MOE, "model.moe=null") == BASE_CONFIG
    through_null = load(BASE, "model.moe=null", "model.moe.num_experts=4", "model.moe.blocks=[[],[],[5],[]]")
    assert through_null == load(BASE, MOE)


def test_an_override_leaves_what_an_alias_shares() -> None:
    # one mapping under two names: changing one must not change the other
    text = "run_dir: r\nmodel: &m {}\ndata: {train: t, val: v}\ntrain: *m\n"
    config = load(text, "train.precision=bf16")
    assert (config.model, config.train.precision) == (ModelConfig(), "bf16")


def test_merge_keys_are_no_duplicates() -> None:
    text = BASE.replace("{}", "{<<: {embed_dim: 48, window_size: 14}, embed_dim: 192}")
    assert load(text).model == ModelConfig(embed_dim=192, window_size=14)


EMPTY = "base.yaml is empty; a RunConfig needs at least run_dir, model, data, data.train, data.val"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", EMPTY),
        ("# nothing\n", EMPTY),
        ("[1, 2]", "base.yaml must hold a mapping of options (got [1, 2])"),
        (
            "model: {depths: [2],\n  depths: [1]}",
            "base.yaml is not valid YAML: line 2, column 3: the key 'depths' stands twice, first in line 1",
        ),
        (
            "seed: 1\nmodel: [1\ndata: 2",
            "base.yaml is not valid YAML: line 3, column 5: while parsing a flow sequence, "
            "expected ',' or ']', but got ':'",
        ),
        ("seed: &a [*a]", "base.yaml is not valid YAML: Circular reference detected"),
    ],
)
def test_files_that_hold_no_configuration(text: str, message: str) -> None:
    assert error_of(text) == message


def test_a_dotted_key_in_yaml_is_told_apart_from_an_override() -> None:
    assert (
        "  model.embed_dim: no such option; dotted names are for overrides, in YAML write nested mappings"
        in (error_of("model.embed_dim: 96").splitlines())
    )


def test_files_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("runs").mkdir()
    Path("runs/swin_moe_b.yaml").write_text(BASE)

    def message(path: str) -> str:
        with pytest.raises(ConfigError) as caught:
            load_config(path)
        return str(caught.value)

    nearest = "runs/swin_moe_b.yaml"
    assert_names(message("runs/swin_moe_s.yaml"), "swin_moe_s.yaml: No such file or directory", f"{nearest}?")
    assert message("nowhere/a.yaml").endswith("nowhere/a.yaml: No such file or directory")
    assert_names(message("runs"), "runs: Is a directory", "swin_moe_b.yaml")

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)  # root reads any file, so chmod would prove nothing
    assert message(nearest).endswith(f"{nearest}: Permission denied")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_round_trips(path: Path) -> None:
    config = load_config(path)
    dumped = dump_config(config)
    assert load(dumped) == config
    assert yaml.safe_load(dumped) == json.loads(json.dumps(asdict(config)))  # and in every YAML 1.1 reader


@pytest.mark.parametrize(
    "text", ["1e3", "yes", "null", "~", "010", "2026-01-02", "1:30", "a: b", "é #1", " x\n", ""]
)
def test_a_dumped_text_stays_a_text_in_every_yaml(text: str) -> None:
    config = replace(BASE_CONFIG, run_dir=text)
    dumped = dump_config(config)
    assert load(dumped) == config
    assert yaml.safe_load(dumped)["run_dir"] == text


def test_dump_writes_defaults_and_short_lists() -> None:
    lines = dump_config(load(BASE, MOE)).splitlines()
    for line in ("  depths: [2, 2, 6, 2]", "    blocks: [[], [], [5], []]", "  eps: 1.0e-08", "seed: 0"):
        assert line in lines
