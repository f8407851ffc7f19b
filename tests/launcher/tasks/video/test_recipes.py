"""The recipes of video: coherent on 8 ranks, of the published sizes, learning rates and views."""

import math
from pathlib import Path

import pytest

from launcher.config.load import load_config
from launcher.config.schema import RunConfig
from launcher.config.task_sections import options_of
from launcher.plan.base.hardware import load_hardware
from launcher.plan.time.compute_cost import compute_cost
from launcher.plan.time.estimate import sample_bytes, sample_core_s
from launcher.tasks.registry import model_on_meta
from launcher.tasks.video.data import eval_clips
from launcher.tasks.video.options import VideoOptions
from launcher.training.schedules import Schedule
from launcher.validation.rules import problems
from swin_moe.backbone.flops import count_parameters
from tests.launcher.refusals import refused
from tests.launcher.tasks.recipe_checks import assert_told_to_pack

CONFIGS = Path(__file__).parents[4] / "configs"
FILES = {path.stem: path for path in sorted((CONFIGS / "video").glob("*.yaml"))}
EPOCH = 100  # steps, where an epoch has 6400 videos
PUBLISHED = {  # parameters, drop path, learning rate of 64 clips, weight decay
    "swin_tiny_patch244_window877_kinetics400_1k": (28_158_070, 0.1, 1e-3, 0.02),
    "swin_small_patch244_window877_kinetics400_1k": (49_816_678, 0.1, 1e-3, 0.02),
    "swin_base_patch244_window877_kinetics400_1k": (88_048_984, 0.3, 1e-3, 0.05),
    "swin_base_patch244_window877_kinetics400_22k": (88_048_984, 0.2, 3e-4, 0.05),
    "swin_large_patch244_window877_kinetics400_22k": (196_953_916, 0.2, 3e-4, 0.05),
    "swin_large_384_patch244_window81212_kinetics400_22k": (199_999_516, 0.2, 3e-4, 0.05),
    # 200 more classes of 1024 and of 1536 channels
    "swin_base_patch244_window877_kinetics600_22k": (88_048_984 + 200 * 1025, 0.2, 3e-4, 0.05),
    "swin_large_384_patch244_window81212_kinetics600_22k": (199_999_516 + 200 * 1537, 0.2, 3e-4, 0.05),
    "swin_base_patch244_window1677_sthv2": (88_834_038, 0.4, 3e-4, 0.05),
}
OURS = (
    "swinv2_tiny_patch244_window888_kinetics400_1k",
    "swin_moe_small_192_8expert_patch244_window81212_kinetics400_22k",
)


def read(name: str, *more: str) -> RunConfig:
    return load_config(str(FILES[name]), more)


def rates(config: RunConfig, epochs: int) -> Schedule:
    """The rates by step of a run of so many epochs of 100 steps."""
    return Schedule(
        config.optim,
        global_batch_size=config.train.global_batch_size,
        total_steps=epochs * EPOCH,
        steps=lambda text: round(float(text.split()[0]) * EPOCH),
    )


def test_decoding_a_clip_costs_what_was_measured() -> None:
    """29.7 clips/s of one core, where pictures are 634/s; 24.75 ms decode a clip and 8.92 ms cut it."""
    tiny = read("swin_tiny_patch244_window877_kinetics400_1k")
    h100 = load_hardware("h100-80")
    assert sample_core_s(tiny, h100) == pytest.approx(1 / 29.7, rel=1e-3)
    assert sample_bytes(tiny) == 32 * 3 * 224 * 224 + 8
    large = read("swin_large_384_patch244_window81212_kinetics400_22k")
    assert 1e3 * sample_core_s(large, h100) == pytest.approx(24.75 + 8.92 * (384 / 224) ** 2, rel=1e-3)
    half = read("swin_tiny_patch244_window877_kinetics400_1k", "model.frames=16")
    assert 1e3 * sample_core_s(half, h100) == pytest.approx((24.75 + 8.92) / 2, rel=1e-3)
    dense = read("swin_tiny_patch244_window877_kinetics400_1k", "video.interval=1")
    assert 1e3 * sample_core_s(dense, h100) == pytest.approx(24.75 / 2 + 8.92, rel=1e-3)
    images = load_config("swin_tiny_patch4_window7_224")
    assert sample_core_s(images, h100) == 1 / h100.img_s_core
    assert sample_bytes(images) == 3 * 224 * 224 + 8


def test_the_recipes() -> None:
    assert FILES.keys() == PUBLISHED.keys() | set(OURS)


@pytest.mark.parametrize("name", FILES)
def test_they_are_coherent(name: str) -> None:
    config = read(name)
    assert problems(config, 8, data=False) == []
    assert "train.pretrained_require (backbone)" in "".join(problems(config, 8))
    optim, train = config.optim, config.train
    assert (optim.decay_rule, optim.backbone_lr_scale, optim.max_grad_norm) == ("dense", 0.1, 0.0)
    assert (train.global_batch_size, config.model.head_dropout, config.model.frames) == (64, 0.5, 32)
    assert (train.pretrained_require, train.pretrained_head) == ("backbone", "replace")
    options = options_of(config, VideoOptions)
    assert (options.views, options.interval) == (1, 2)
    (ending,) = {part for part in name.split("_") if part in ("kinetics400", "kinetics600", "sthv2")}
    epochs, classes, smoothing = {
        "kinetics400": (30, 400, 0.0),
        "kinetics600": (30, 600, 0.0),
        "sthv2": (60, 174, 0.1),
    }[ending]
    assert train.duration == f"{epochs} epochs"
    assert (config.model.num_classes, optim.label_smoothing) == (classes, smoothing)
    is_directed = ending == "sthv2"
    assert (config.data.flip_probability == 0.0) == is_directed
    assert (options.sampling == "segments") == is_directed
    assert (config.data.augment is not None) == is_directed


@pytest.mark.parametrize("name", PUBLISHED)
def test_their_models_and_rates_are_the_published_ones(name: str) -> None:
    parameters, drop_path, peak, decay = PUBLISHED[name]
    config = read(name)
    assert count_parameters(model_on_meta(config)) == parameters
    assert config.model.drop_path_rate == drop_path
    assert config.optim.weight_decay == decay
    assert rates(config, 30).peak == pytest.approx(peak)


def test_rates_by_hand() -> None:
    """T: a tenth of 1e-3 at first; after e epochs (1 + cos(pi e / 30)) / 2, until 2.5 times the warm-up.

    After one epoch 1e-3 x 0.997261 x (1 - 0.9 x 0.6) = 4.587e-4; the backbone has a tenth of each.
    """
    schedule = rates(read("swin_tiny_patch244_window877_kinetics400_1k"), 30)
    wanted = {0: 1.0e-4, 1: 4.587e-4, 15: 5.0e-4, 29: 2.739e-6, 30: 0.0}
    assert [schedule(epoch * EPOCH) for epoch in wanted] == pytest.approx([*wanted.values()], rel=1e-3)
    for epoch in (3, 7, 21):
        assert schedule(epoch * EPOCH) == pytest.approx(5e-4 * (1 + math.cos(math.pi * epoch / 30)))


@pytest.mark.parametrize(
    ("name", "options", "clips", "starts", "crops"),
    [
        # int((i + 0.5) (300 - 63) / 4)
        (
            "swin_tiny_patch244_window877_kinetics400_1k",
            ("video.clips=4", "video.crops=3"),
            4,
            [29, 88, 148, 207],
            [(0, 0), (0, 172), (0, 86)],
        ),
        # int((i + 0.5) 23.7); (681 - 384) // 2 = 148 columns from the left to the middle
        (
            "swin_large_384_patch244_window81212_kinetics400_22k",
            ("video.clips=10", "video.crops=5"),
            10,
            [11, 35, 59, 82, 106, 130, 154, 177, 201, 225],
            [(0, 0), (0, 296), (0, 148), (0, 74), (0, 222)],
        ),
        # int(118.5); the short side is 256 before the centre is cut out
        ("swin_tiny_patch244_window877_kinetics400_1k", (), 1, [118], [(16, 115)]),
        # the middle of the first of 32 parts of 299 / 32 frames: 0 ... 9
        ("swin_base_patch244_window1677_sthv2", ("video.crops=3",), 1, [4], [(0, 0), (0, 172), (0, 86)]),
    ],
)
def test_published_views(
    name: str, options: tuple[str, ...], clips: int, starts: list[int], crops: list[tuple[int, int]]
) -> None:
    """Of a video of 300 frames of 256 x 454 pixels: 224 x 397 for several crops, 384 x 681 of L-384."""
    transform = eval_clips(read(name, *options))
    frames = transform.sampling.indices(300)
    assert frames.shape == (clips, 32)
    assert frames[:, 0].tolist() == starts
    windows = [one.window for one in transform.crops.geometries(256, 454)]
    assert [(one.top, one.left) for one in windows if one] == crops


def test_the_recipe_in_minutes() -> None:
    config = load_config(str(CONFIGS / "recipes" / "fashion_motion.yaml"))
    for ranks in (1, 2):
        assert problems(config, ranks, data=False) == []
    assert (config.data.flip_probability, config.data.augment) == (0.0, None)


def test_options_that_make_no_clip_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    data = (f"data.train={tmp_path}/train", f"data.val={tmp_path}/train", "model.frames=0")
    assert problems(load_config(str(CONFIGS / "recipes" / "fashion_motion.yaml"), data), 1) == [
        "model.frames (0) must be above 0, as task=video sees clips of so many frames"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_the_planner_plans_them(name: str) -> None:
    assert compute_cost(read(name), load_hardware("a100-80")).multiply_adds > 8e10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("model.frames=0", "model.window_padding=hidden"), "model.frames (0) must be above 0"),
        (("task=classification",), "model.frames (32) must be 0, as task=classification sees images"),
        (("video.view_batch=2",), "video.view_batch (2) must be at most video.clips (1) x video.crops (1)"),
        (("video.sampling=segments", "video.clips=4"), "video.clips (4) means nothing for"),
        (("video.sampling=segments", "video.interval=4"), "video.interval (4) means nothing for"),
        (("video.crops=2",), "video.crops: Input should be 1, 3 or 5 (got 2)"),
        (("video.eval_crop=0.0",), "video.eval_crop (0.0) must lie in [0.1, 1], or be null"),
        (("video.interval=0",), "video.interval (0) must be at least 1"),
        (("video.reader=decord",), "video.reader: Input should be 'pyav' or 'torchcodec'"),
        (("video.reader=torchcodec",), "video.reader: reader=torchcodec cannot be imported"),
        (("data.augment={}", "train.micro_batch_size=1"), "train.micro_batch_size (1)"),
    ],
)
def test_what_check_refuses(
    capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    assert message in refused(capsys, "check", "swin_tiny_patch244_window877_kinetics400_1k", *options)


@pytest.mark.parametrize(
    ("recipe", "command"),
    [
        ("fashion_motion", "--source moving-fashion --out data/moving-fashion"),
        (
            "swin_tiny_patch244_window877_kinetics400_1k",
            "--source kinetics --directory kinetics400 --out data/kinetics400",
        ),
        (
            "swin_base_patch244_window1677_sthv2",
            "--source something-something --directory something-something-v2 "
            "--out data/something-something-v2",
        ),
    ],
)
def test_without_its_data_a_recipe_says_how_to_make_them(
    capsys: pytest.CaptureFixture[str], recipe: str, command: str
) -> None:
    assert_told_to_pack(capsys, f"{recipe} train.pretrained_require=nothing", command)
