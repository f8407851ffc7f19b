"""Every configuration of configs/: loaded, coherent, built on the meta device; and the published figures."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from launcher.cli import models
from launcher.cli.models import PUBLISHED, agrees
from launcher.cli.program import main
from launcher.config.duration import parse_duration
from launcher.config.load import ConfigError, load_config
from launcher.config.schema import RunConfig
from launcher.validation.rules import check
from swin_moe import MoEConfig
from swin_moe.backbone.flops import build_on_meta, count_parameters
from swin_moe.recipes import load_model_config, model_files
from tests.messages import assert_names

CLIPS = {name: file for name, file in model_files().items() if file.parent.name == "video"}
# of feature distillation: tests/launcher/tasks/distill/test_recipes.py
DISTILLED = {name: file for name, file in model_files().items() if file.parent.name == "fd"}
FILES = {name: file for name, file in model_files().items() if name not in {**CLIPS, **DISTILLED}}
NAMES = list(FILES)
EVERY_YAML = sorted((Path(__file__).parents[3] / "configs").rglob("*.yaml"))
EVERY_YAML = [path for path in EVERY_YAML if path.parent.name not in ("hardware", "studies")]


class Configs(dict[str, RunConfig]):
    """Every configuration, loaded when a test asks for it: all together take seconds."""

    def __missing__(self, name: str) -> RunConfig:
        self[name] = load_config(FILES[name])
        return self[name]


CONFIGS = Configs()


RELEASED_NAMES = """
simmim_finetune__swin_base__img224_window7__800ep simmim_finetune__swinv2_base__img224_window14__800ep
simmim_pretrain__swin_base__img192_window6__800ep simmim_pretrain__swinv2_base__img192_window12__800ep
swin_base_patch4_window12_384_22kto1k_finetune swin_base_patch4_window12_384_finetune
swin_base_patch4_window7_224 swin_base_patch4_window7_224_22k swin_base_patch4_window7_224_22kto1k_finetune
swin_large_patch4_window12_384_22kto1k_finetune swin_large_patch4_window7_224_22k
swin_large_patch4_window7_224_22kto1k_finetune swin_small_patch4_window7_224
swin_small_patch4_window7_224_22k swin_small_patch4_window7_224_22kto1k_finetune
swin_tiny_c24_patch4_window8_256 swin_tiny_patch4_window7_224 swin_tiny_patch4_window7_224_22k
swin_tiny_patch4_window7_224_22kto1k_finetune swin_mlp_base_patch4_window7_224
swin_mlp_tiny_c12_patch4_window8_256 swin_mlp_tiny_c24_patch4_window8_256 swin_mlp_tiny_c6_patch4_window8_256
swin_moe_base_patch4_window12_192_16expert_32gpu_22k swin_moe_base_patch4_window12_192_32expert_32gpu_22k
swin_moe_base_patch4_window12_192_8expert_32gpu_22k
swin_moe_base_patch4_window12_192_cosine_router_32expert_32gpu_22k
swin_moe_base_patch4_window12_192_densebaseline_22k swin_moe_small_patch4_window12_192_16expert_32gpu_22k
swin_moe_small_patch4_window12_192_32expert_32gpu_22k swin_moe_small_patch4_window12_192_64expert_64gpu_22k
swin_moe_small_patch4_window12_192_8expert_32gpu_22k
swin_moe_small_patch4_window12_192_cosine_router_32expert_32gpu_22k
swin_moe_small_patch4_window12_192_densebaseline_22k swinv2_base_patch4_window12_192_22k
swinv2_base_patch4_window12to16_192to256_22kto1k_ft swinv2_base_patch4_window12to24_192to384_22kto1k_ft
swinv2_base_patch4_window16_256 swinv2_base_patch4_window8_256 swinv2_large_patch4_window12_192_22k
swinv2_large_patch4_window12to16_192to256_22kto1k_ft swinv2_large_patch4_window12to24_192to384_22kto1k_ft
swinv2_small_patch4_window16_256 swinv2_small_patch4_window8_256 swinv2_tiny_patch4_window16_256
swinv2_tiny_patch4_window8_256
"""
ADDED_NAMES = """
lrnet26_224 lrnet50_224
moby__swin_moe_small_8expert_8gpu__img192_window12__300ep moby__swin_tiny__img224_window7__100ep
moby__swin_tiny__img224_window7__300ep moby__swinv2_tiny__img256_window8__300ep
moby_linear__swin_tiny__img224_window7 moby_linear__swin_tiny__img224_window7__no_drop_path
simmim_finetune__swinv2_giant__img224_window14__800ep simmim_finetune__swinv2_huge__img224_window14__800ep
simmim_pretrain__swinv2_g__img192_window12__20ep simmim_pretrain__swinv2_giant__img192_window12__800ep
simmim_pretrain__swinv2_huge__img192_window12__800ep swinv2_g_patch4_window12_192_22k
swinv2_g_patch4_window12to40_192to640_22kto1k_ft swin_moe_base_patch4_window12_192_32expert_top2_32gpu_22k
swin_moe_small_patch4_window12_192_128expert_128gpu_22k swinv2_moe_base_patch4_window12_192_32expert_32gpu_22k
swinv2_moe_small_patch4_window12_192_32expert_32gpu_22k
"""
RELEASED, ADDED = RELEASED_NAMES.split(), ADDED_NAMES.split()
BACKBONES = {  # millions without the head, SwinV2 at [2, 2, 18, 2] and G; the SimMIM table rounds them
    "simmim_pretrain__swinv2_base__img192_window12__800ep": 86.9,
    "simmim_pretrain__swinv2_huge__img192_window12__800ep": 655.2,
    "simmim_pretrain__swinv2_giant__img192_window12__800ep": 1061.0,
    "simmim_pretrain__swinv2_g__img192_window12__20ep": 2997.8,
}
RECIPES = {  # what a name says of the training: epochs, warm-up, peak rate at 512, weight decay, clip, batch
    r"swin(v2|_mlp)?_\w+_(224|256)": ("300 epochs", "20 epochs", 5e-4, 0.05, 5.0, 1024),
    r"swin_(?!moe)\w+_22k": ("90 epochs", "5 epochs", 1.25e-4, 0.05, 5.0, 4096),
    r"swinv2_(base|large)\w+_22k": ("90 epochs", "5 epochs", 1.25e-4, 0.1, 5.0, 4096),
    r"swin(v2)?_moe\w+_22k": ("90 epochs", "10 epochs", 1.25e-4, 0.1, 3.0, 4096),
    r"swin_\w+_finetune|swinv2_(base|large)\w+_ft": ("30 epochs", "5 epochs", 2e-5, 1e-8, 5.0, 1024),
    r"simmim_pretrain\w+_800ep": ("800 epochs", "10 epochs", 1e-4, 0.05, 5.0, 2048),
    r"moby__\w+_300ep": ("300 epochs", "5 epochs", 1e-3, 0.05, 5.0, 512),
    r"moby__\w+_100ep": ("100 epochs", "5 epochs", 1e-3, 0.05, 5.0, 512),
    r"lrnet\w+": ("120 epochs", "5 epochs", 0.2, 1e-4, 0.0, 1024),  # ours, of a ResNet
    r"moby_linear\w+": ("100 epochs", "5 epochs", 1.0, 0.0, 5.0, 512),
    r"simmim_finetune\w+": ("100 epochs", "20 epochs", 1.25e-3, 0.05, 5.0, 2048),
    r"simmim_pretrain\w+_20ep": ("20 epochs", "30000 steps", 7.7778e-5, 0.1, 100.0, 9216),
    r"swinv2_g_patch4_window12_192_22k": ("30 epochs", "20000 steps", 7.7778e-5, 0.1, 100.0, 9216),
    r"swinv2_g_\w+_ft": ("10 epochs", "1 epochs", 1.8667e-5, 0.1, 100.0, 576),
}
DROP_PATH = {  # of V1, V2, MLP from scratch by size; the table of the released configurations
    "tiny": 0.2,
    "small": 0.3,
    "base": 0.5,
}


def test_every_model_is_here_under_its_name() -> None:
    assert len(RELEASED) == 46
    assert sorted(FILES) == sorted(RELEASED + ADDED)
    assert set(PUBLISHED) <= {*FILES, *CLIPS}


@pytest.mark.parametrize("path", EVERY_YAML, ids=lambda path: path.stem)
def test_files_are_short(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 110


@pytest.mark.parametrize(("name", "depths"), [("lrnet26_224", (2, 2, 2, 2)), ("lrnet50_224", (3, 4, 6, 3))])
def test_the_name_of_an_lr_net_says_its_layers(name: str, depths: tuple[int, ...]) -> None:
    """Three of each bottleneck, the stem and the classifier."""
    model = CONFIGS[name].model
    assert CONFIGS[name].run_dir == f"runs/{name}"
    assert model.depths == depths
    assert f"lrnet{3 * sum(depths) + 2}_{model.image_size}" == name
    assert model.lr_net is not None


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("lrnet")])
def test_a_name_says_what_the_model_is(name: str) -> None:
    config, model = CONFIGS[name], CONFIGS[name].model
    assert config.run_dir == f"runs/{name}"
    assert load_model_config(name) == model  # the registry's reader and the launcher's agree
    sizes = {"tiny": 96, "small": 96, "base": 128, "large": 192, "huge": 352, "giant": 448, "g": 512}
    size = re.search(rf"_({'|'.join(sizes)})_", name)[1]
    assert model.embed_dim == sizes[size]
    assert model.depths == {"tiny": (2, 2, 6, 2), "g": (2, 2, 42, 4)}.get(size, (2, 2, 18, 2))
    assert model.extra_norm_period == (6 if size in ("huge", "giant", "g") else 0)
    channels = int(found[1]) if (found := re.search(r"_c(\d+)_", name)) else 32
    assert [model.stage_dim(i) // heads for i, heads in enumerate(model.num_heads)] == [channels] * 4
    assert model.window_size == int(re.search(r"window(?:\d+to)?(\d+)", name)[1])
    image = re.search(r"img(\d+)|_\d+to(\d+)_|window\d+_(\d+)", name)
    assert model.image_size == int(next(filter(None, image.groups())))
    changed_window = "to16_" in name or "to24_" in name or "to40_" in name or "window14" in name
    assert model.pretrained_window_sizes == ((12, 12, 12, 6) if changed_window else None)
    assert model.num_classes == (21841 if name.endswith("_22k") else 1000)
    is_v2, is_moe = "swinv2" in name, "_moe_" in name
    assert (model.attention, model.norm) == (
        ("cosine", "post") if is_v2 else ("mlp" if "_mlp_" in name else "dot", "pre")
    )
    assert model.position_bias == ("log_cpb" if is_v2 or is_moe else "table")
    assert model.mlp_fc2_bias == (not is_moe)
    assert config.data.train.startswith(
        "data/imagenet-22k" if name.endswith(("_22k", "_20ep")) else "data/imagenet-1k"
    )


@pytest.mark.parametrize("name", NAMES)
def test_recipes_are_the_published_ones(name: str) -> None:
    optim, train = CONFIGS[name].optim, CONFIGS[name].train
    (expected,) = [recipe for pattern, recipe in RECIPES.items() if re.fullmatch(pattern, name)]
    found = (train.duration, optim.warmup, optim.base_lr, optim.weight_decay, optim.max_grad_norm)
    assert (*found, train.global_batch_size) == expected
    assert optim.label_smoothing == 0.1
    assert CONFIGS[name].data.eval_crop == (1.0 if CONFIGS[name].model.image_size >= 384 else 0.875)
    for duration in (train.duration, train.eval_every, optim.warmup):
        parse_duration(duration)


def test_drop_path_is_that_of_the_released_table() -> None:
    rates = {name: CONFIGS[name].model.drop_path_rate for name in NAMES}
    for name in [n for n in NAMES if re.fullmatch(r"swin(v2|_mlp)?_\w+_(224|256)", n)]:
        assert rates.pop(name) == DROP_PATH[re.search("tiny|small|base", name)[0]]
    expected = {
        **dict.fromkeys(rates, 0.2),
        **{n: 0.1 for n in rates if n.startswith(("swin_tiny_", "simmim_"))},
        **{n: 0.3 for n in rates if "_moe_base_" in n and "expert" in n},
        "lrnet26_224": 0.0,
        "lrnet50_224": 0.0,
        "moby_linear__swin_tiny__img224_window7__no_drop_path": 0.0,
        "simmim_pretrain__swin_base__img192_window6__800ep": 0.0,
        "swin_base_patch4_window12_384_finetune": 0.5,
        "swinv2_g_patch4_window12_192_22k": 0.3,
        "swinv2_g_patch4_window12to40_192to640_22kto1k_ft": 0.5,
    }
    assert rates == expected


@pytest.mark.parametrize("name", [name for name in NAMES if "expert" in name])
def test_experts_and_their_layout(name: str) -> None:
    """N GPUs of the name hold 4096 images in one step, each its own routing group, experts spread widest."""
    config = CONFIGS[name]
    experts, gpus = (int(re.search(rf"(\d+){word}", name)[1]) for word in ("expert", "gpu"))
    assert config.train.micro_batch_size * gpus == config.train.global_batch_size
    assert config.parallel.ep_size == experts
    assert gpus % experts == 0
    assert config.train.eval_batch_size % config.train.micro_batch_size == 0
    assert config.model.init_std == 0.005
    assert config.model.moe == MoEConfig(
        blocks=((), (), (1, 3, 5, 7, 9, 11, 13, 15, 17), (1,)),
        num_experts=experts,
        top_k=2 if "top2" in name else 1,
        router="cosine" if "cosine" in name else "linear",
        capacity_factor=1.25,
        eval_capacity_factor=1.25,
        routing_group_images=config.train.micro_batch_size,
        batch_prioritized=True,
        normalize_gates=False,
        gate_noise=1.0,
        balance_loss="importance_load",
        load_balance_weight=0.01,
        expert_dropout=0.1,
    )


@pytest.mark.parametrize("name", NAMES)
def test_micro_batches_divide_the_batch(name: str) -> None:
    train = CONFIGS[name].train
    assert train.global_batch_size % train.micro_batch_size == 0


# Figures.


def without_training(config: RunConfig) -> object:
    """What shapes depend on."""
    return replace(config.model, drop_path_rate=0.0, pretrained_window_sizes=None, init_std=1.0)


# One of each family and of what differs in it; the rest are slow.
BRIEF = (
    "simmim_finetune__swin_base__img224_window7__800ep",
    "simmim_pretrain__swinv2_base__img192_window12__800ep",
    "swin_mlp_tiny_c6_patch4_window8_256",
    "swin_moe_base_patch4_window12_192_32expert_top2_32gpu_22k",
    "swin_moe_small_patch4_window12_192_32expert_32gpu_22k",
    "swin_moe_small_patch4_window12_192_cosine_router_32expert_32gpu_22k",
    "swin_tiny_patch4_window7_224",
    "swinv2_base_patch4_window12to24_192to384_22kto1k_ft",
    "swinv2_g_patch4_window12_192_22k",
    "swinv2_moe_small_patch4_window12_192_32expert_32gpu_22k",
    "swinv2_tiny_patch4_window8_256",
)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in BRIEF else [pytest.mark.slow]) for name in sorted(NAMES)],
)
def test_every_model_is_built_and_counted(name: str) -> None:
    """On the meta device; parameters and FLOPs round to the published figures."""
    row = models.row(name)
    assert row.agrees is (True if name in PUBLISHED else None)
    same = [other for other in NAMES if without_training(CONFIGS[other]) == without_training(CONFIGS[name])]
    for other in same:
        parameters, flops = PUBLISHED.get(other, ("", ""))
        assert not parameters or agrees(row.parameters, parameters)
        assert not flops or agrees(row.flops, flops)


@pytest.mark.parametrize(("name", "millions"), BACKBONES.items())
def test_backbones_of_simmim(name: str, millions: float) -> None:
    model = build_on_meta(CONFIGS[name].model)
    assert round((count_parameters(model) - count_parameters(model.head)) / 1e6, 1) == millions


def test_swinv2_g_has_3001_9_million_parameters() -> None:
    assert models.row("simmim_pretrain__swinv2_g__img192_window12__20ep").parameters == pytest.approx(
        3001.9e6, abs=0.05e6
    )


@pytest.mark.parametrize(
    ("count", "published", "same"),
    [
        (87_768_224, "88M", True),
        (87_499_999, "88M", False),
        (15_431_000_000, "15.4G", True),
        (15_451_000_000, "15.4G", False),
        (2_016_000_000, "2016M", True),
        (3_001_900_000, "3.0B", True),
        (3_050_000_001, "3.0B", False),
        (944_385_149_184, "~945G", True),  # 0.07 % of elementwise work
        (945_000_000_001, "~945G", False),  # the products alone are more
        (943_000_000_000, "~945G", False),  # 0.21 %
    ],
)
def test_agreement_is_to_the_printed_digits(count: int, published: str, same: bool) -> None:
    assert agrees(count, published) is same


# The command.

MLP_C24 = "swin_mlp_tiny_c24_patch4_window8_256"


def test_the_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "models.json"
    assert main(["models", "--filter", "swin_mlp_tiny_c24", "--json", str(file)]) == 0
    header, row, summary = capsys.readouterr().out.splitlines()
    assert " ".join(header.split()) == "model image window params M active M FLOPs G published"
    assert " ".join(row.split()) == f"{MLP_C24} 256 8 20.4 20.4 4.03 20M 4.0G agrees"
    assert summary == "1 of 1 agree with the published figures"
    assert json.loads(file.read_text()) == [asdict(models.row(MLP_C24))]


def test_a_disagreement_is_exit_status_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(models.PUBLISHED, "swin_tiny_patch4_window7_224_22kto1k_finetune", ("28M", "4.6G"))
    assert main(["models", "--filter", "swin_tiny_patch4_window7_224_22kto1k"]) == 1
    assert "28M 4.6G DISAGREES" in capsys.readouterr().out


def test_a_filter_that_matches_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--filter", "resnet"]) == 2
    assert_names(capsys.readouterr().err, "ModelError: ", "'resnet'", "--filter")


def test_a_table_that_could_not_be_written_is_refused_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json", "no/x.json"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert_names(err, "ConfigError: --json (no/x.json): ", "no directory no")


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_lacks_nothing_but_its_shards(name: str) -> None:
    config = CONFIGS[name]
    assert (config.task == "simmim") == name.startswith("simmim_pretrain")
    with pytest.raises(ConfigError) as refused:
        check(config)
    _, *lines = str(refused.value).splitlines()
    assert lines
    missing = ["data.train: ", "data.val: "]
    missing += ["train.pretrained_require (backbone): "] if name.startswith("moby_linear") else []
    assert all(line.strip().startswith(tuple(missing)) for line in lines)


@pytest.mark.parametrize(
    ("name", "layer_decay"),
    [
        ("simmim_finetune__swin_base__img224_window7__800ep", 0.8),
        ("simmim_finetune__swinv2_base__img224_window14__800ep", 0.75),
        ("swinv2_g_patch4_window12_192_22k", 0.87),
    ],
)
def test_the_published_layer_decay(name: str, layer_decay: float) -> None:
    assert CONFIGS[name].optim.layer_decay == layer_decay


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("simmim_pretrain")])
def test_the_published_recipe_of_simmim(name: str) -> None:
    """Mask patch 32, ratio 0.6; SwinV2's targets over 47 x 47; x 0.1 at epoch 700, but a cosine for G."""
    config = CONFIGS[name]
    assert (config.simmim.mask_patch_size, config.simmim.mask_ratio) == (32, 0.6)
    assert config.simmim.norm_target_window == (47 if "swinv2" in name else 0)
    shape = ("cosine", ()) if "swinv2_g__" in name else ("multistep", ("700 epochs",))
    assert (config.optim.schedule, config.optim.decay_at) == shape
