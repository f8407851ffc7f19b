"""The options of sliced experts and of their exchange: read, written, and refused with their remedy."""

import sys
from pathlib import Path

import pytest

from launcher.config.load import ConfigError, dump_config, load_config
from launcher.config.schema import RunConfig
from launcher.validation.rules import check
from parallel.experts.exchange import ExchangeOptions

CONFIG = Path(__file__).parents[3] / "configs" / "demo_cpu.yaml"  # 8 experts on 2 ranks, capacity 1.25


def config(*overrides: str) -> RunConfig:
    return load_config(CONFIG, overrides)


def complaints(world_size: int | None, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:  # the shards are missing in any case
        check(config("data.train=nowhere", "data.val=nowhere", *overrides), world_size)
    return "\n".join(line for line in str(error.value).splitlines()[1:] if "nowhere" not in line).strip()


def test_options_are_read_and_written_back(tmp_path: Path) -> None:
    asked = config(
        "parallel.expert_tensor_parallel_size=2",
        "parallel.expert_exchange={strategy: 2, hierarchical: true, overlap: 4, communication_dtype: bf16}",
    )
    assert asked.parallel.expert_tensor_parallel_size == 2
    expected = ExchangeOptions(strategy=2, hierarchical=True, overlap=4, communication_dtype="bf16")
    assert asked.parallel.expert_exchange == expected
    (tmp_path / "run.yaml").write_text(dump_config(asked))
    assert load_config(tmp_path / "run.yaml") == asked
    assert config().parallel.expert_exchange == ExchangeOptions()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("parallel.expert_exchange.strategy=0", "strategy (0) must be ep, dp, auto or a number"),
        ("parallel.expert_exchange.strategy=mp", "parallel.expert_exchange.strategy: "),
        ("parallel.expert_exchange.strategy=true", "parallel.expert_exchange.strategy: "),
        ("parallel.expert_exchange.overlap=0", "parallel.expert_exchange.overlap (0) must be at least 1"),
        (
            "parallel.expert_exchange.communication_dtype=fp8",
            "communication_dtype: Input should be 'same' or 'bf16'",
        ),
        (
            "parallel.expert_exchange.communication_dtyp=bf16",
            "did you mean parallel.expert_exchange.communication_dtype?",
        ),
        (
            "parallel.expert_tensor_parallel_size=0",
            "parallel.expert_tensor_parallel_size (0) must be at least 1",
        ),
    ],
)
def test_values_that_cannot_be(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        config(override)
    assert said in str(error.value)


FOUR = ("parallel.ep_size=4", "train.micro_batch_size=4", "model.moe.routing_group_images=4")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ((), ""),
        (
            ("model.moe=null", "parallel.ep_size=1", "parallel.expert_tensor_parallel_size=2"),
            "parallel.expert_tensor_parallel_size (2) needs experts: set model.moe, or 1",
        ),
        (("parallel.expert_tensor_parallel_size=2", "parallel.expert_exchange.strategy=2"), ""),
        (("model.moe.num_experts=5",), ""),  # uneven
        (
            ("parallel.expert_tensor_parallel_size=3",),
            "parallel.expert_tensor_parallel_size (3) must divide parallel.ep_size (4)",
        ),
        (
            ("model.moe.num_experts=2",),
            "parallel.ep_size (4) / parallel.expert_tensor_parallel_size (1) must be at most "
            "model.moe.num_experts (2); "
            "parallel.expert_tensor_parallel_size=2 would do",
        ),
        (
            ("parallel.expert_exchange.strategy=3",),
            "parallel.expert_exchange.strategy (3) must divide parallel.ep_size (4) and divide "
            "parallel.expert_tensor_parallel_size (1) or be a multiple of it",
        ),
        (
            ("parallel.expert_exchange.padded=true", "model.moe.capacity_factor=0"),
            "parallel.expert_exchange.padded needs a bound on an expert's rows: set "
            "model.moe.capacity_factor (0.0) other than 0, or padded=false",
        ),
    ],
)
def test_rules_across_sections(overrides: tuple[str, ...], said: str) -> None:
    assert complaints(None, *FOUR, *overrides) == said
    assert complaints(4, *FOUR, *overrides) == said


def test_exchange_options_are_for_the_native_backend() -> None:
    tutel = ("model.moe.backend=tutel", "model.moe.eval_capacity_factor=1.25")
    said = complaints(None, *FOUR, "parallel.expert_exchange.overlap=2", *tutel)
    assert (
        "parallel.expert_exchange is for model.moe.backend=native, not tutel: leave the section out" in said
    )


def test_ranks_that_the_expert_group_does_not_divide() -> None:
    assert complaints(2, "parallel.ep_size=4") == (
        "parallel.ep_size (4) must divide the number of ranks (2); parallel.ep_size=2 would do"
    )


def test_tutel_is_looked_for_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tutel", None)  # as if it were not installed
    said = complaints(2, "model.moe.backend=tutel", "model.moe.eval_capacity_factor=1.25")
    assert "model.moe.backend=tutel: Tutel does not import" in said
    assert "pip install --no-build-isolation git+https://github.com/microsoft/tutel@" in said
