"""`swin-moe models` of models with the heads of a task, and of clips: parameters and multiply-adds."""

import re

import pytest

from launcher.cli import models
from launcher.cli.models import PUBLISHED
from launcher.cli.program import main
from launcher.tasks.detection import cost as detection
from launcher.tasks.segmentation import cost as segmentation
from swin_moe.recipes import dense_model_files, model_files

CLIPS = [name for name, file in model_files().items() if file.parent.name == "video"]
WITH_HEADS = segmentation.PUBLISHED | detection.PUBLISHED


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == "upernet_swin_tiny_512" else [pytest.mark.slow])
        for name in dense_model_files()
    ],
)
def test_every_model_with_heads_of_its_task_is_counted(name: str) -> None:
    """With the task's heads, at the size of published FLOPs; swin_moe/heads has the counts to the unit."""
    row = models.row(name)
    assert row.agrees is (True if name in WITH_HEADS else None)
    if "mask_rcnn" in name:
        assert row.image_size == (800, 1280)
    else:
        assert row.image_size == ((640, 2560) if "_640_" in name else (512, 2048))
    assert (row.active_parameters < row.parameters) == ("_moe_" in name)
    if name == "upernet_swin_tiny_512":
        assert (row.parameters, round(row.flops / 1e9, 2)) == (59_941_862, 944.39)


def test_published_models_with_heads_are_recipes() -> None:
    assert set(WITH_HEADS) <= set(dense_model_files())
    assert not set(dense_model_files()) & set(model_files())


COUNTED_CLIPS = {  # parameters, and billions of multiply-adds of a clip
    "swin_tiny_patch244_window877_kinetics400_1k": (28_158_070, 87.76),
    "swin_small_patch244_window877_kinetics400_1k": (49_816_678, 165.68),
    "swin_base_patch244_window877_kinetics400_1k": (88_048_984, 281.33),
    "swin_base_patch244_window877_kinetics400_22k": (88_048_984, 281.33),
    "swin_base_patch244_window877_kinetics600_22k": (88_048_984 + 200 * 1025, 281.33),
    "swin_base_patch244_window1677_sthv2": (88_834_038, 320.36),
    "swin_large_patch244_window877_kinetics400_22k": (196_953_916, 603.27),
    "swin_large_384_patch244_window81212_kinetics400_22k": (199_999_516, 2106.38),
    "swin_large_384_patch244_window81212_kinetics600_22k": (199_999_516 + 200 * 1537, 2106.38),
}
WINDOWS = {"877": (8, 7, 7), "888": (8, 8, 8), "1677": (16, 7, 7), "81212": (8, 12, 12)}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if "swin_tiny" in name else [pytest.mark.slow]) for name in CLIPS]
)
def test_models_of_clips_are_counted(name: str) -> None:
    """For a clip of 32 frames, to the published figures, which count elementwise work too."""
    row = models.row(name)
    assert row.agrees is (True if name in PUBLISHED else None)
    assert row.window_size == WINDOWS[re.search(r"window(\d+)", name)[1]]
    side = next((int(found[1]) for found in [re.search(r"_(384|192)_", name)] if found), 224)
    assert row.image_size == (32, *(256 if "swinv2" in name else side,) * 2)
    assert (row.active_parameters < row.parameters) == ("_moe_" in name)
    if name in COUNTED_CLIPS:
        assert (row.parameters, round(row.flops / 1e9, 2)) == COUNTED_CLIPS[name]


def test_published_models_of_clips_are_recipes() -> None:
    assert COUNTED_CLIPS.keys() == PUBLISHED.keys() & set(CLIPS)


def test_sides_of_clips_and_windows_have_a_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--filter", "swin_tiny_patch244"]) == 0
    header, row, _ = capsys.readouterr().out.splitlines()
    assert row.split()[1:] == ["32x224x224", "8x7x7", "28.2", "28.2", "87.76", "28M", "~87.9G", "agrees"]
    assert row.index("32x224x224") + len("32x224x224") == header.index("image") + len("image")
