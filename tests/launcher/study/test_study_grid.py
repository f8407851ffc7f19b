"""From a study's file to its trials: counted by hand, and everything that can be wrong with a file."""

from pathlib import Path

import pytest

from launcher.config.load import ConfigError
from launcher.study.grid.file import load_study_file
from launcher.study.grid.grid import overrides_of, short_names, study_of
from launcher.study.grid.trials import Study, read_study, write_study

HEAD = "study_dir: s\nconfig: c.yaml\n"
CAPACITY, TOP_K = "model.moe.capacity_factor", "model.moe.top_k"
GRID = f"""\
overrides: {{train.duration: 2 epochs, {TOP_K}: 4}}
seeds: [0, 7]
axes:
  {CAPACITY}: [0.5, 1, 1.25]
  {TOP_K}: [1, 2]
include: [{{model.moe: null}}]
exclude: [{{{TOP_K}: 2, {CAPACITY}: 0.5}}, {{{CAPACITY}: 1.0}}]
where:
  - match: {{model.moe: null}}
    set: {{parallel.ep_size: 1}}
  - match: {{{CAPACITY}: 1.25, {TOP_K}: 1}}
    set: {{optim.max_grad_norm: 1.5, train.duration: 1 epochs}}
"""


def grid(tmp_path: Path, text: str) -> Study:
    path = tmp_path / "study.yaml"
    path.write_text(HEAD + text)
    return study_of(path, load_study_file(path))


def test_product_exclude_include_and_seeds(tmp_path: Path) -> None:
    study = grid(tmp_path, GRID)
    # of 3 x 2 trials go (0.5, 2) and both of 1.0, which is 1; left are three and the dense one, for two seeds
    per_seed = [
        {CAPACITY: 0.5, TOP_K: 1},
        {CAPACITY: 1.25, TOP_K: 1},
        {CAPACITY: 1.25, TOP_K: 2},
        {"model.moe": None},
    ]
    assert [trial.axes for trial in study.trials] == per_seed * 2
    assert [trial.seed for trial in study.trials] == [0] * 4 + [7] * 4
    assert [trial.name for trial in study.trials[:5]] == [
        "capacity_factor=0.5,top_k=1,seed=0",
        "capacity_factor=1.25,top_k=1,seed=0",
        "capacity_factor=1.25,top_k=2,seed=0",
        "moe=none,seed=0",
        "capacity_factor=0.5,top_k=1,seed=7",
    ]
    assert study.axes == {CAPACITY: [0.5, 1, 1.25], TOP_K: [1, 2]}
    write_study(tmp_path, study)
    assert read_study(tmp_path) == study


def test_the_overrides_of_a_trial_and_their_order(tmp_path: Path) -> None:
    study = grid(tmp_path, GRID)
    file = load_study_file(tmp_path / "study.yaml")
    assert overrides_of(file, study.trials[1], Path("s/cells/x")) == [
        'train.duration="2 epochs"',  # of all trials
        f"{TOP_K}=4",
        "optim.max_grad_norm=1.5",  # what follows from the trial's values wins over that
        'train.duration="1 epochs"',
        f"{CAPACITY}=1.25",  # and the axes over both
        f"{TOP_K}=1",
        "seed=0",
        'run_dir="s/cells/x"',
    ]
    assert "parallel.ep_size=1" in overrides_of(file, study.trials[3], Path("x"))
    assert "parallel.ep_size=1" not in overrides_of(file, study.trials[2], Path("x"))


def test_without_axes_there_is_one_trial_or_those_that_are_included(tmp_path: Path) -> None:
    assert [trial.name for trial in grid(tmp_path, "seeds: [3]").trials] == ["seed=3"]
    included = grid(tmp_path, "include: [{train.compile: true}, {model.depths: [2, 2]}]")
    assert [trial.name for trial in included.trials] == ["compile=true,seed=0", "depths=2x2,seed=0"]


def test_short_names_tell_options_apart() -> None:
    assert short_names(["a.b.x", "a.c.x", "y.z", "x.z.w"]) == {
        "a.b.x": "b.x",
        "a.c.x": "c.x",
        "y.z": "z",
        "x.z.w": "w",
    }


def test_names_are_safe_short_and_stable(tmp_path: Path) -> None:
    text = "axes: {data.train: [../a b/ü$(x), " + "y" * 300 + "]}"
    first, second = grid(tmp_path, text).trials
    assert first.name == "train=-a-b----x-,seed=0"
    assert not set(first.name + second.name) & set("/ $()ü")
    assert not first.name.startswith(".")
    assert len(second.name) <= 120
    assert second.name.endswith(",seed=0")
    assert [trial.name for trial in grid(tmp_path, text).trials] == [first.name, second.name]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("axis: {}", "axis: no such option; did you mean axes?"),
        ("axes: {model.moe.top_k: 1}", "model.moe.top_k: needs a list of at least one value (got 1)"),
        ("axes: {model.moe.top_k: []}", "model.moe.top_k: needs a list of at least one value (got [])"),
        ("axes: {model.moe.top_k: [1, 2, 1.0]}", "model.moe.top_k: 1.0 is listed twice"),
        ("seeds: []", "seeds: needs a list of at least one value"),
        ("seeds: [0, 0]", "seeds: 0 is listed twice"),
        ("seeds: [x]", "seeds[0]: "),
        ("axes: {seed: [0, 1]}", "axes: seed cannot be set in a study's file: use seeds: [0, 1]"),
        ("overrides: {run_dir: x}", "overrides: run_dir cannot be set in a study's file"),
        ("where: [{match: {a: 1}, set: {seed: 1}}]", "where.set: seed cannot be set in a study's file"),
        ("include: [{}]", "include: an entry must name at least one option"),
        ("nproc: 0", "nproc (0) must be at least 1"),
        ("evaluate: {capacity_factors: [-1]}", "evaluate.capacity_factors ([-1.0]) must be at least 0"),
        ("evaluate: {top_k: [0]}", "evaluate.top_k ([0]) must be at least 1"),
        ("axes: {a.b: [1]}\nexclude: [{a.c: 1}]", "a.c does not vary in this study; did you mean a.b?"),
        ("axes: {a.b: [1]}\nexclude: [{a.b: 2}]", 'exclude[0] ({"a.b": 2}) matches no trial'),
        ("axes: {a.b: [1]}\nexclude: [{a.b: true}]", "matches no trial"),
        ("axes: {a.b: [1]}\nexclude: [{a.b: 1}]", "no trial is left"),
        ("axes: {a.b: [1]}\nwhere: [{match: {a.b: 3}, set: {}}]", "where[0].match"),
        ("axes: {a.b: [1]}\ninclude: [{a.b: 1}]", "two trials are called b=1,seed=0"),
        ("axes: {a.b: ['x/y', 'x y']}", "two trials are called b=x-y,seed=0"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        grid(tmp_path, text)
    assert message in str(error.value)


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        grid(tmp_path, "axes: {a: [], seed: [1]}\nseeds: [1, 1]")
    assert len(str(error.value).splitlines()) == 4
