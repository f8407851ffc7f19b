"""The reference of options is complete, true, and the page that is made of it."""

from pathlib import Path

import pytest

from launcher.cli.program import main
from launcher.config.load import load_config
from launcher.config.reference import all_options, as_page, comments, matching
from launcher.config.task_sections import class_of_every_task
from swin_moe.options import option_names

PAGE = Path(__file__).parents[3] / "docs" / "options.md"
SECTIONS = (
    *("data", "model", "optim", "train", "parallel", "parallel.expert_exchange", "checkpoint", "simmim"),
    *("detection", "detection.head"),
    *("distill", "distill.teacher", "distill_logits", "distill_logits.teacher"),
    *("moby", "moby.colours", "moby.head"),
    *("segmentation", "segmentation.head", "tracking", "tracking.wandb", "tracking.mlflow"),
    "video",
)
SOURCE = '''
class Options:
    """Two fields and a rule."""

    # above, in
    # two lines
    first: int = 1  # and beside
    second: str = (
        "a"  # inside its brackets
    )
    third: float = 0.0

    def rule(self) -> None:
        first: int = 2  # no field of the class
'''


def test_the_page_is_made_of_the_dataclasses() -> None:
    assert PAGE.read_text() == as_page(all_options()), "swin-moe options --markdown > docs/options.md"


def test_every_option_has_a_meaning_and_none_is_left_out() -> None:
    options = {option.name: option for option in all_options()}
    assert [name for name, option in options.items() if not option.meaning] == []
    assert set(option_names(class_of_every_task())) - set(SECTIONS) == set(options)


def test_comments_of_fields() -> None:
    assert comments(SOURCE) == {
        "first": "above, in two lines and beside",
        "second": "inside its brackets",
        "third": "",
    }


def test_the_default_of_each_option_is_what_a_configuration_without_it_has() -> None:
    """Written out as overrides, all defaults change nothing."""
    given = {option.name: option.default for option in all_options()}
    texts = [
        f"{n}={d}"
        for n, d in given.items()
        if d != "required"
        and not n.startswith(("model.moe.", "data.augment.", "data.train.NAME."))
        and not n.startswith(
            ("train.early_stop.", "train.profile.", "model.local_relation.", "model.lr_net.")
        )
    ]
    own = ["run_dir=a", "data={train: b, val: c}", "model={}"]
    Path("empty.yaml").write_text("{run_dir: a, data: {train: b, val: c}, model: {}}")
    assert load_config("empty.yaml", texts) == load_config("empty.yaml", own)


def test_a_pattern_finds_names_and_else_meanings() -> None:
    assert [option.name for option in matching("TOP_K")] == ["model.moe.top_k"]
    assert [option.name for option in matching("V-MoE")] == ["model.moe.gate_noise"]


def test_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["options", "retry_s"]) == 0
    assert capsys.readouterr().out == (
        "data.retry_s  (float; 300.0; seconds)\n    reading is tried again for so long after an I/O error\n"
    )
    assert main(["options", "train.global_batch_sise"]) == 2
    assert "did you mean global_batch_size?" in capsys.readouterr().err
    assert main(["config", "demo_cpu", "model.moe.top_k=2", "--diff", "demo_cpu"]) == 0
    assert capsys.readouterr().out == "model.moe.top_k: 2 in demo_cpu, 1 in demo_cpu\n"
