"""Options under their old names: in files, in their bases, in overrides, in saved configurations."""

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from launcher.config.load import ConfigError, dump_config, load_config
from launcher.config.schema import RunConfig
from launcher.validation.resume_policy import changed_options, configuration
from swin_moe import renamed
from swin_moe.errors import ModelError
from swin_moe.recipes import load_model_config
from swin_moe.renamed import RENAMED, current_names
from swin_moe.weights.native import config_of
from swin_moe.yaml_files import parse_yaml
from tests.launcher.running import CONFIG

OLD = [
    "model.main_norm_every=1",
    "model.checkpoint_every=1",
    "model.windows_at_a_time=4",
    "optim.clip_norm=7.5",
    "parallel.expert_slices=2",
    "parallel.expert_exchange.wire_dtype=bf16",
]


@pytest.fixture(autouse=True)
def _notices_again() -> None:
    renamed.log_renamed.cache_clear()


def by_new_names() -> RunConfig:
    return load_config(
        CONFIG, [f"{RENAMED[name]}={value}" for name, _, value in (o.partition("=") for o in OLD)]
    )


def test_every_renamed_option_has_a_case() -> None:
    assert {override.partition("=")[0] for override in OLD} == set(RENAMED)


def test_overrides(caplog: pytest.LogCaptureFixture) -> None:
    assert load_config(CONFIG, OLD) == by_new_names()
    assert [f"{old} is now called {new}" for old, new in RENAMED.items()] == caplog.messages


def test_an_override_of_a_section() -> None:
    assert (
        load_config(CONFIG, ["parallel={expert_slices: 2, ep_size: 2}"]).parallel.expert_tensor_parallel_size
        == 2
    )


def test_a_file_wins_over_its_base_whichever_name_each_has(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "base.yaml").write_text(
        f"base: {CONFIG}\noptim: {{clip_norm: 1.0}}\nmodel: {{main_norm_every: 2}}\n"
    )
    (tmp_path / "run.yaml").write_text("base: base.yaml\noptim: {max_grad_norm: 2.0}\n")
    config = load_config(tmp_path / "run.yaml")
    assert (config.optim.max_grad_norm, config.model.extra_norm_period) == (2.0, 2)
    assert len(caplog.messages) == 2


def test_both_names_in_one_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(f"base: {CONFIG}\noptim: {{clip_norm: 1.0, max_grad_norm: 2.0}}\n")
    with pytest.raises(ConfigError) as error:
        load_config(tmp_path / "run.yaml")
    assert str(error.value).endswith(
        "optim.clip_norm is the old name of optim.max_grad_norm: give one of them"
    )


def test_a_wrong_value_is_named_by_the_new_name() -> None:
    with pytest.raises(ConfigError, match=r"optim\.max_grad_norm.*-1"):
        load_config(CONFIG, ["optim.clip_norm=-1"])


def test_a_saved_configuration_compares_without_a_notice(caplog: pytest.LogCaptureFixture) -> None:
    saved = dump_config(by_new_names())
    for old, new in RENAMED.items():
        saved = saved.replace(f" {new.rpartition('.')[2]}:", f" {old.rpartition('.')[2]}:")
    assert "expert_slices: 2" in saved
    assert changed_options(configuration({"config": saved}), parse_yaml(dump_config(by_new_names()))) == []
    assert caplog.messages == []


def test_a_model_by_its_options(caplog: pytest.LogCaptureFixture) -> None:
    model = load_model_config("swin_tiny_patch4_window7_224", checkpoint_every=1)
    assert model.activation_checkpoint_every == 1
    with pytest.raises(ModelError, match=r"model\.checkpoint_every is the old name"):
        load_model_config("swin_tiny_patch4_window7_224", checkpoint_every=1, activation_checkpoint_every=1)
    assert caplog.record_tuples[0][1] == logging.WARNING


def test_weights_with_both_names_are_refused_in_one_line(tmp_path: Path) -> None:
    config = {"checkpoint_every": 1, "activation_checkpoint_every": 1}
    save_file({"x": torch.zeros(1)}, tmp_path / "w.safetensors", metadata={"config": json.dumps(config)})
    with pytest.raises(ModelError, match=r"model\.checkpoint_every is the old name"):
        config_of(tmp_path / "w.safetensors")


def test_the_order_of_options_stays() -> None:
    tree = current_names({"optim": {"eps": 1, "clip_norm": 2, "betas": 3}})
    assert list(tree["optim"].items()) == [("eps", 1), ("max_grad_norm", 2), ("betas", 3)]
