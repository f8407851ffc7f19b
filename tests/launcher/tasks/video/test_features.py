"""Features of videos: the mean over their views, in evaluations on frozen features and in predictions."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from launcher.config.load import load_config
from launcher.predict.inputs import Sought, image_inputs
from launcher.rundir.directory import RunDirectory
from launcher.tasks.video.data import eval_clips
from parallel.ranks.rank import Ranks
from tests.distributed import run_on_ranks
from tests.launcher.running import command, run_alone
from tests.launcher.tasks.layouts import layout, plain_sgd, results
from tests.launcher.tasks.video.video_shards import line

VIEWS = ("video.clips=2", "video.crops=3")


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps with experts."""
    path = tmp_path_factory.mktemp("features") / "run"
    run_alone(*line(shards, path, *plain_sgd(0.1, 2), *layout(1, 1, 4)))
    return path


def features(run: Path, shards: Path, *options: str) -> tuple[Tensor, Tensor]:
    """The features of the validation videos (7, C): of the command, and view by view."""
    from launcher.evaluation.context import EvalRequest, load
    from launcher.evaluation.features import split_features

    directory = RunDirectory(run)
    config = load_config(directory.config, options)
    ranks = Ranks(rank=0, world_size=1, local_rank=0, local_world_size=1)
    context = load(
        EvalRequest(config=config, run=directory), ranks, torch.device("cpu"), heartbeat=lambda: None
    )
    found = split_features(context, str(shards / "val")).values
    mean, std = (torch.tensor(values)[:, None, None, None] for values in (config.data.mean, config.data.std))
    clips, wanted = eval_clips(config), []
    for video in image_inputs([str(shards / "val")], Sought(member="video")):
        views = torch.from_numpy(clips({"video": video.read(), "label": 0})["clip"].copy()).transpose(1, 2)
        with torch.no_grad():
            one_by_one = [
                context.backbone.forward_pooled(view[None])[0] for view in (views / 255 - mean) / std
            ]
        wanted.append(torch.cat(one_by_one).mean(0))
    return found, torch.stack(wanted)


@pytest.mark.parametrize("options", [(), VIEWS])
def test_they_are_the_mean_over_the_views(run: Path, shards: Path, options: tuple[str, ...]) -> None:
    found, wanted = run_on_ranks(features, 1, run, shards, *options)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_predictions_write_them(run: Path, shards: Path, tmp_path: Path) -> None:
    file = tmp_path / "features.safetensors"
    options = ("--features", str(file), "--json")
    outcome = run_on_ranks(command, 1, "predict", str(run), str(shards / "val"), *options)[0]
    assert outcome.code == 0, outcome.err
    wanted = run_on_ranks(features, 1, run, shards)[0][1]
    torch.testing.assert_close(load_file(file)["features"], wanted, rtol=1e-4, atol=1e-5)


def test_neighbours_and_shots_on_any_ranks(run: Path) -> None:
    """Nearest neighbours and a ridge regression on views of videos; a bank too large is refused."""
    found = []
    options = ("--knn", "3", "--few-shot", "2", "--throughput", "--passes", "1", *VIEWS)
    for ranks in (1, 3):
        outcome = run_on_ranks(command, ranks, "eval", str(run), *options)[0]
        assert outcome.code == 0, outcome.err
        assert "on 7 videos, bank of 24" in outcome.out
        texts = [(results(run) / f"{name}.json").read_text() for name in ("knn", "few_shot")]
        found.append([json.loads(text) for text in texts])
        measured = json.loads((results(run) / "throughput.json").read_text())["modes"]
        assert measured[0]["images_s"] > 0
    assert found[0] == found[1]
    outcome = run_on_ranks(command, 1, "eval", str(run), "--few-shot", "7")[0]
    assert outcome.code == 2
    assert "needs 7 images of every class" in outcome.err
