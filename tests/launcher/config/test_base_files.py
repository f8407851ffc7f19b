"""Configurations with base files: what wins over what, and bases that cannot be."""

from pathlib import Path

import pytest
import yaml

from launcher.config.load import ConfigError, dump_config, load_config
from launcher.config.schema import DataConfig, OptimConfig, RunConfig
from swin_moe.config import ModelConfig
from swin_moe.moe_config import MoEConfig
from tests.launcher.config.loading import BASE, BASE_CONFIG, error_of, load
from tests.messages import assert_each_names


def write(files: dict[str, str]) -> None:
    for name, text in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)


def test_later_files_win_option_by_option() -> None:
    """From the far end: size.yaml, recipe.yaml upon it, then v2.yaml beside that, then the file itself."""
    write(
        {
            "shared/size.yaml": "model: {embed_dim: 48, depths: [1, 1], num_heads: [3, 3], window_size: 8}\n"
            "seed: 1\n",
            "shared/recipe.yaml": "base: size.yaml\ndata: {train: t, val: v}\nseed: 2\noptim: {eps: 1e-6}",
            "v2.yaml": "model: {position_bias: log_cpb, window_size: 4}\noptim: {weight_decay: 0.1}",
        }
    )
    config = load("base: [shared/recipe.yaml, v2.yaml]\nrun_dir: r\nmodel: {num_heads: [6, 6]}\n", "seed=3")
    assert config == RunConfig(
        run_dir="r",
        model=ModelConfig(
            embed_dim=48, depths=(1, 1), num_heads=(6, 6), window_size=4, position_bias="log_cpb"
        ),
        data=DataConfig(train="t", val="v"),
        optim=OptimConfig(eps=1e-6, weight_decay=0.1),
        seed=3,
    )
    assert "base" not in yaml.safe_load(dump_config(config))
    assert load(dump_config(config)) == config


def test_null_takes_the_place_of_a_section_and_a_section_that_of_null() -> None:
    write({"moe.yaml": BASE.replace("{}", "{moe: {blocks: [[], [], [5], []], num_experts: 4}}")})
    assert load("base: moe.yaml\nmodel: {moe: null}\n") == BASE_CONFIG
    write({"dense.yaml": "base: moe.yaml\nmodel: {moe: null}\ncheckpoint: {every: null}\n"})
    again = load("base: dense.yaml\nmodel: {moe: {blocks: [[0], [], [], []], num_experts: 2}}\n")
    assert again.model.moe == MoEConfig(blocks=((0,), (), (), ()), num_experts=2)
    assert again.checkpoint.every is None


def test_one_file_may_be_the_base_of_two() -> None:
    write({"a.yaml": BASE, "b.yaml": "base: a.yaml\nseed: 4\n", "c.yaml": "base: a.yaml\n"})
    assert load("base: [b.yaml, c.yaml]\n").seed == 4


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"base.yaml": "base: base.yaml"}, "base goes round in a circle: base.yaml -> base.yaml"),
        (
            {"base.yaml": "base: a/b.yaml", "a/b.yaml": "base: c.yaml", "a/c.yaml": "base: ../base.yaml"},
            "base goes round in a circle: base.yaml -> a/b.yaml -> a/c.yaml -> base.yaml",
        ),
        (
            {"base.yaml": "base: shared/smal.yaml", "shared/small.yaml": ""},
            "cannot read shared/smal.yaml, which base.yaml names as its base: No such file or directory; "
            "did you mean shared/small.yaml?",
        ),
        (
            {"base.yaml": "base: a.yaml", "a.yaml": "- 1"},
            "a.yaml must hold a mapping of options (got [1])",
        ),
        (
            {"base.yaml": "base: a.yaml", "a.yaml": "seed: [1"},
            "a.yaml is not valid YAML: line 1, column 9: while parsing a flow sequence, "
            "expected ',' or ']', but got '<stream end>'",
        ),
        (
            {"base.yaml": "base: {a: 1}"},
            "base.yaml: base must be the name of a file, or a list of names (got {'a': 1})",
        ),
        (
            {"base.yaml": "base: null"},
            "base.yaml: base must be the name of a file, or a list of names (got None)",
        ),
    ],
)
def test_bases_that_cannot_be(files: dict[str, str], message: str) -> None:
    write(files)
    with pytest.raises(ConfigError) as caught:
        load_config("base.yaml")
    assert str(caught.value) == message


def test_an_error_names_the_file_in_which_the_option_stands() -> None:
    """Overrides and the file itself need no name."""
    write(
        {
            "a/sizes.yaml": "model: {embed_dm: 48, num_heads: [5, 6, 12, 24]}\n"
            "train: {micro_batch_size: x}\n",
            "a/recipe.yaml": "base: sizes.yaml\nseed: s\noptim: {eps: q}\ndata: {train: 1}\n",
        }
    )
    text = "base: a/recipe.yaml\nrun_dir: r\ndata: {val: 2}\nparallel: {ep_size: y}\n"
    lines = error_of(text, "seed=z").splitlines()[1:]
    assert_each_names(
        lines,
        ("  model.embed_dm: ", "model.embed_dim?", "[a/sizes.yaml]"),
        ("  model.num_heads[0] (5)", "stage 0 (96)", "[a/sizes.yaml]"),
        ("  data.train: ", "valid string", "1", "[a/recipe.yaml]"),
        ("  data.val: ", "valid string", "2"),
        ("  seed: ", "valid integer", "'z'"),
        ("  optim.eps: ", "valid number", "'q'", "[a/recipe.yaml]"),
        ("  train.micro_batch_size: ", "valid integer", "'x'", "[a/sizes.yaml]"),
        ("  parallel.ep_size: ", "valid integer", "'y'"),
    )
    assert [line for line in lines if ".yaml" in line] == [lines[i] for i in (0, 1, 2, 5, 6)]
