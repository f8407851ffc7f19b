"""Rules of `swin-moe check` across sections, places and devices, and every command that refuses by them."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_shards.format.fields import IMAGE_AND_LABEL, Field
from data_shards.image.encode import encode_jpeg
from data_shards.pack.sources.members import MemberFolder, member_folders
from data_shards.pack.write import pack
from launcher.cli.program import main
from launcher.config.load import ConfigError, load_config
from launcher.config.schema import RunConfig
from launcher.config.task_specs import register, unregister
from launcher.tasks.classification import SPEC
from launcher.tasks.spec import DataSpec
from launcher.validation.capacity_rules import slots_error
from launcher.validation.rules import check, problems
from swin_moe.backbone.model import build_model
from swin_moe.moe.capacity import capacity
from swin_moe.weights import save_weights
from tests.launcher.fake_slurm import FakeSlurm
from tests.launcher.running import CONFIG, overrides
from tests.models import small_moe, small_swin

RGB = "the images of data.train are RGB, and gray ones get three equal channels"
# the model of `overrides`: maps of 4 x 4 and 2 x 2 tokens, experts in the second stage, groups of 4 images
SLOTS = (
    "leaves an expert of stage 1 no slot: top_k (2) x int({} x ceil(16 tokens of "
    "model.moe.routing_group_images (4) / model.moe.num_experts (8) = 2)) = 0; set it to at least 0.5, or 0 "
    "for dropless"
)
RULES = [  # of any machine: options, and the line
    (("model.in_chans=1",), f"model.in_chans (1) must be 3: {RGB}"),
    (("model.in_chans=4",), f"model.in_chans (4) must be 3: {RGB}"),
    (("model.frames=8",), "model.frames (8) must be 0, as task=classification sees images"),
    (("model.moe.capacity_factor=0.01",), f"model.moe.capacity_factor (0.01) {SLOTS.format(0.01)}"),
    (("model.moe.capacity_factor=-0.49",), f"model.moe.capacity_factor (-0.49) {SLOTS.format(0.49)}"),
    (("model.moe.eval_capacity_factor=0.1",), f"model.moe.eval_capacity_factor (0.1) {SLOTS.format(0.1)}"),
    (
        ("optim.warmup=21 steps",),
        "optim.warmup (21 steps) must be at most train.duration (20 steps): 21 and 20 steps; "
        "the peak learning rate would never be reached",
    ),
    (
        ("optim.warmup=3 epochs", "train.duration=2 epochs"),
        "optim.warmup (3 epochs) must be at most train.duration (2 epochs): 48 and 32 steps; "
        "the peak learning rate would never be reached",
    ),
    (
        ("optim.schedule=multistep", 'optim.decay_at=["5 steps", "20 steps"]'),
        "optim.decay_at[1] (20 steps) must be below train.duration (20 steps): 20 and 20 steps",
    ),
    (("optim.base_lr=1e-6",), "optim.min_lr (5e-06) must be at most optim.base_lr (1e-06)"),
    (("optim.warmup_lr=0.5",), "optim.warmup_lr (0.5) must be at most optim.base_lr (0.01)"),
    (("optim.freeze=[no.such]",), "optim.freeze (no.such) matches no parameter of the model"),
    (("optim.freeze=['*']",), "optim.freeze (['*']) leaves nothing to train"),
    (
        ("model.moe=null", "optim.freeze=[experts]"),
        "optim.freeze (experts) matches no parameter of the model",
    ),
    (
        ("optim.loss=bce", "optim.bce_target_threshold=0.005"),
        "optim.bce_target_threshold (0.005) must lie in [0.01, 0.91): with optim.label_smoothing (0.1) and "
        "model.num_classes (10) the class of an image has the probability 0.91, and each other class 0.01",
    ),
    (
        ("optim.loss=bce", "optim.bce_target_threshold=0.5", "optim.label_smoothing=0.9"),
        "optim.bce_target_threshold (0.5) must lie in [0.09, 0.19): with optim.label_smoothing (0.9) and "
        "model.num_classes (10) the class of an image has the probability 0.19, and each other class 0.09",
    ),
    (
        ("task=simmim", "data.augment=null", "optim.loss=bce", "simmim.mask_patch_size=8"),
        "optim.loss (bce) is for tasks with classes, such as classification; this run has task=simmim",
    ),
    (
        ("task=simmim", "data.augment=null", "simmim.mask_patch_size=6"),
        "model.patch_size (4) must divide simmim.mask_patch_size (6)",
    ),
    (
        ("task=simmim", "data.augment=null", "simmim.mask_patch_size=32"),
        "simmim.mask_patch_size (32) must be at most model.image_size (16)",
    ),
]
PLACES = [  # of shared files; a run directory that is made below a file or that the system does not have
    (("run_dir=file/run",), "run_dir (file/run) cannot be written: Not a directory; choose another run_dir"),
    (("run_dir=/proc/none/run",), "run_dir (/proc/none/run) cannot be written: No such file or directory"),
    ((f"run_dir={'x' * 300}",), f"run_dir ({'x' * 300}) cannot be written: File name too long"),
    (("run_dir=' '",), "run_dir (' ') must name a directory"),
    (("train.pretrained=empty.pth",), "train.pretrained: empty.pth "),
    (("train.pretrained=page.pth",), "train.pretrained: page.pth "),
    (("train.pretrained=folder",), "train.pretrained: folder holds no weights"),
    (("train.pretrained=weights.pth", "model.embed_dim=24"), "train.pretrained: weights.pth: "),
    (
        ("train.pretrained=weights.pth", "train.pretrained_head=page.pth"),
        "train.pretrained: page.pth, line 1: not the index of a class",
    ),
]
RANGES = [
    ("data.crop_scale=[0.5, 2.0]", "data.crop_scale ([0.5, 2.0]) must be at most 1"),
    ("data.flip_probability=2", "data.flip_probability (2.0) must be at most 1"),
    ("seed=99999999999999999999", f"seed (99999999999999999999) must be at most {2**63 - 1}"),
    ("seed=-1", "seed (-1) must be at least 0"),
    ("model.mlp_ratio=0.01", "model.embed_dim (12) x model.mlp_ratio (0.01) must be at least 1"),
    ("model.image_size=3", "model.patch_size (4) must be at most model.image_size (3)"),
    ("optim.eps=0.0", "optim.eps (0.0) must be at least 1e-30"),
    ("optim.base_lr=1e300", "optim.base_lr (1e+300) must be at most 1000000000.0"),
    (f"optim.weight_decay={10**400}", "optim.weight_decay (inf) must be at most 1000"),
    ("data.augment.mixup_alpha=0.001", "data.augment.mixup_alpha (0.001) must be in 0.01 ... 100.0"),
    ("data.retry_s=1e9", "data.retry_s (1000000000.0) must be at most 604800.0"),
    ("parallel.ep_size=1000000000000", "parallel.ep_size (1000000000000) must be at most 65536"),
]


def some(*options: str) -> list[tuple[tuple[str, ...], str]]:
    """The rules, of those above, whose first option is one of these."""
    return [rule for rule in [*RULES, *PLACES] if rule[0][0] in options]


ANYWHERE = some(
    "model.in_chans=1", "model.moe.capacity_factor=0.01", "optim.base_lr=1e-6", "optim.freeze=[no.such]"
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with files that are no weights, and one that is."""
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("empty.pth").touch()
    Path("page.pth").write_text("<!DOCTYPE html>\n<html>not found</html>\n")
    Path("folder").mkdir()
    return tmp_path


def write_weights(shards: Path) -> None:
    model = build_model(load_config(CONFIG, overrides(shards, "run")).model)
    save_weights(model, "weights.pth", "official")


def checked(shards: Path, *options: str) -> list[str]:
    """What `check` finds in a tiny run with some options."""
    return problems(load_config(CONFIG, overrides(shards, "run", *options)), 2)


@pytest.mark.parametrize(("options", "message"), RULES)
def test_rules(shards: Path, options: tuple[str, ...], message: str) -> None:
    (found,) = checked(shards, *options)
    assert found.startswith(message)


@pytest.mark.parametrize(("options", "message"), PLACES)
def test_places(shards: Path, folder: Path, options: tuple[str, ...], message: str) -> None:
    if "train.pretrained=weights.pth" in options:
        write_weights(shards)
    before = sorted(folder.rglob("*"))
    (found,) = checked(shards, *options)
    assert found.startswith(message)
    assert "\n" not in found
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(("option", "message"), RANGES)
def test_ranges(shards: Path, option: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(CONFIG, overrides(shards, "run", option))
    (line,) = str(refused.value).splitlines()[1:]
    assert line.strip().startswith(message)


@pytest.mark.parametrize(
    "options",
    [
        ("optim.warmup=20 steps",),
        ("optim.warmup=0 steps", "optim.warmup_lr=0.5"),
        ("train.duration=1 steps",),
        ("train.duration=1 steps", "train.eval_every=9 epochs", "checkpoint.every=5 steps"),
        ("optim.base_lr=1e-6", "optim.schedule=linear"),
        ("model.moe.capacity_factor=0.5",),
        ("model.moe.capacity_factor=-0.5", "model.moe.eval_capacity_factor=0.0"),
        ("model.moe.router=soft", "model.moe.top_k=1", "model.moe.capacity_factor=0.01"),
        ("model.moe.blocks=[[], []]", "model.moe.capacity_factor=0.01"),
        ("optim.freeze=[experts]",),
        ("task=simmim", "data.augment=null", "simmim.mask_patch_size=16", "model.num_classes=3"),
        ("train.pretrained=weights.pth",),
    ],
)
def test_what_is_right_passes(shards: Path, options: tuple[str, ...]) -> None:
    write_weights(shards)
    assert checked(shards, *options) == []


@pytest.mark.parametrize("factor", [0.0049, 0.005, 0.019, 0.02, -0.019, -0.02, 1.0])
def test_every_stage_has_slots(factor: float) -> None:
    """Maps of 8 x 8 and 4 x 4 tokens, so 25 and 7 tokens an expert and group: factors from 1/25 and 1/7."""
    model = small_swin(depths=(1, 1), moe=small_moe(blocks=((0,), (0,)), num_experts=5))
    slots = [capacity(factor, 2 * side**2, 5, 1) for side in (8, 4)]
    error = slots_error(model, "the factor", factor)
    assert (error is None) == (min(slots) > 0)
    if error:
        assert f"stage {slots.index(0)} no slot" in error


@pytest.mark.parametrize(
    ("nodes", "strategy", "message"),
    [
        ([2, 2], "ep", ""),
        ([4], "ep", ""),
        ([3, 1], "ep", "parallel.expert_exchange.hierarchical needs the same number of ranks on every node"),
        ([3, 3, 3, 3], "ep", "parallel.expert_exchange.hierarchical needs nodes that hold equal shares"),
        ([3, 3, 3, 3], "dp", ""),
    ],
)
def test_an_exchange_in_two_stages_fits_the_nodes(
    shards: Path, nodes: list[int], strategy: str, message: str
) -> None:
    exchange = f"parallel.expert_exchange={{hierarchical: true, strategy: {strategy}}}"
    options = ("parallel.ep_size=4", "train.global_batch_size=48", "train.micro_batch_size=4", exchange)
    config = load_config(CONFIG, overrides(shards, "run", *options))
    found = problems(config, sum(nodes), nodes)
    assert [line[: len(message)] for line in found] == ([message] if message else [])


def test_weights_are_not_needed_by_a_run_that_goes_on(shards: Path, reference: Path) -> None:
    options = (f"run_dir={reference}", "train.pretrained=nowhere.pth")
    assert checked(shards, *options) == []
    assert checked(shards, options[1]) == ["train.pretrained: nowhere.pth does not exist"]


@pytest.mark.parametrize("supported", [True, False])
def test_fp16_is_refused_where_the_processor_cannot(
    shards: Path, monkeypatch: pytest.MonkeyPatch, supported: bool
) -> None:
    from deepspeed.accelerator import get_accelerator

    monkeypatch.setattr(get_accelerator(), "is_fp16_supported", lambda: supported)
    config = load_config(CONFIG, overrides(shards, "run", "train.precision=fp16"))
    check(config, 2)  # the ranks may be on other machines
    if supported:
        check(config, 2, here=True)
        return
    with pytest.raises(ConfigError, match=r"train\.precision \(fp16\) .*; set train\.precision=bf16$"):
        check(config, 2, here=True)


@pytest.mark.parametrize(
    ("task", "lacks"),
    [
        ((), "no member 'label' that task=classification reads, but image"),
        (("task=simmim", "data.augment=null", "simmim.mask_patch_size=8"), ""),
    ],
)
def test_samples_have_the_members_that_the_task_reads(
    shards: Path, tmp_path: Path, task: tuple[str, ...], lacks: str
) -> None:
    """Images without labels are data for SimMIM, not for a classifier."""
    (tmp_path / "images").mkdir()
    for i in range(3):
        (tmp_path / "images" / f"{i}.jpg").write_bytes(encode_jpeg(np.zeros((8, 8), np.uint8), 95, "444"))
    source = member_folders(tmp_path, [MemberFolder(Field("image", "image"), "images")])
    pack(source, "train", tmp_path / "packed")
    found = checked(shards, *task, *(f"data.{split}={tmp_path}/packed" for split in ("train", "val")))
    fix = "pack or index the shards with it"
    assert found == [
        f"data.{split}: {tmp_path}/packed: its samples have {lacks}; {fix}"
        for split in ("train", "val")
        if lacks
    ]


def test_tars_have_the_members_that_the_task_reads(shards: Path) -> None:
    def train_data(config: RunConfig) -> DataSpec:
        return replace(SPEC.train_data(config), members=IMAGE_AND_LABEL[:1])

    register(replace(SPEC, name="bare", train_data=train_data))
    try:
        found = checked(shards, "task=bare", f"data.train={shards}/train/000000.tar")
    finally:
        unregister("bare")
    assert [line.partition(" in tars")[0] for line in found] == [
        f"data.train ({shards}/train/000000.tar): task=bare reads the member 'label', which it does not find"
    ]


def test_a_cache_holds_a_shard(shards: Path) -> None:
    found = checked(shards, "data.cache=cache", "data.cache_gib=1e-4")
    assert [line.partition(" must be at least ")[0] for line in found] == ["data.cache_gib (0.0001)"] * 2
    assert [line.rpartition(" ")[2] for line in found] == ["data.train", "data.val"]


@pytest.mark.parametrize(
    ("cache", "message"),
    [
        ("$NO_SUCH_VARIABLE/x", "data.cache ($NO_SUCH_VARIABLE/x): a variable in it is not set"),
        ("file/x", "data.cache (file/x) cannot be written: Not a directory"),
        ("/proc/x", "data.cache (/proc/x) cannot be written: No such file or directory"),
        ("new/folder", None),
    ],
)
def test_the_cache_is_of_the_machine_of_the_ranks(shards: Path, cache: str, message: str | None) -> None:
    config = load_config(CONFIG, overrides(shards, "run", f"data.cache={cache}", "data.cache_gib=1"))
    assert problems(config, 2) == []
    found = problems(config, 2, here=True)
    assert [line[: len(message)] for line in found] == [message] if message else found == []
    assert not Path("new").exists()


# --- every command that starts a run refuses by the same rules --------------------------------------------


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert main([*map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert (out, "Traceback" in err) == ("", False)
    return err


@pytest.mark.parametrize(
    ("options", "message"),
    [*ANYWHERE, *some("optim.warmup=21 steps", "run_dir=file/run", "train.pretrained=page.pth")],
)
def test_slurm_submit(
    slurm: FakeSlurm, shards: Path, folder: Path, options: tuple[str, ...], message: str
) -> None:
    before = sorted(folder.rglob("*"))
    for more in ((), ("--dry-run",)):
        done = slurm.say("submit", CONFIG, *overrides(shards, "run", *options), *more)
        assert done.code == 2
        assert message.replace("(file/", f"({folder}/file/").replace(": page", f": {folder}/page") in done.err
    assert sorted(folder.rglob("*")) == before


def test_slurm_submit_does_not_judge_the_processor(
    slurm: FakeSlurm, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "launcher.validation.place_rules.check_precision", lambda precision: pytest.fail("judged")
    )
    done = slurm.say("submit", CONFIG, *overrides(shards, "run", "train.precision=fp16"), "--dry-run")
    assert done.code == 0


@pytest.mark.parametrize("more", [(), ("--search",), ("--simulate", "2..4")])
@pytest.mark.parametrize(("options", "message"), [*ANYWHERE, *some("optim.warmup=21 steps")])
def test_plan(
    capsys: pytest.CaptureFixture[str],
    shards: Path,
    options: tuple[str, ...],
    message: str,
    more: tuple[str, ...],
) -> None:
    line = ("plan", CONFIG, "--gpus-per-node", "2", "--gpu", "a100-40", *more)
    assert message in refused(capsys, *line, *overrides(shards, "run", *options))


@pytest.mark.parametrize(("options", "message"), [*ANYWHERE, *some("train.pretrained=page.pth")])
def test_study_run(
    capsys: pytest.CaptureFixture[str], shards: Path, options: tuple[str, ...], message: str
) -> None:
    settings = [*overrides(shards, "run", *options)]
    lines = "".join(f"  {o.replace('=', ': ', 1)}\n" for o in settings if not o.startswith("run_dir="))
    Path("study.yaml").write_text(
        f"study_dir: study\nconfig: {os.path.relpath(CONFIG)}\noverrides:\n{lines}seeds: [0]\n"
    )
    assert message in refused(capsys, "study", "run", "study.yaml")
    assert not Path("study").exists()


def test_a_sweep_needs_slots(capsys: pytest.CaptureFixture[str], shards: Path, reference: Path) -> None:
    for option in ("--capacity-factor", "--sweep-capacity"):
        err = refused(capsys, "eval", reference, option, "0.01")
        assert err.startswith("ConfigError: the capacity factor (0.01) leaves an expert of stage 1 no slot")
