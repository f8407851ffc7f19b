"""`swin-moe export` of a run of pre-training: its encoder, without what was trained beside it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from launcher.cli.program import main
from swin_moe import build_backbone, load_weights
from swin_moe.weights.native import config_of
from tests.launcher.running import CONFIG, overrides, run_alone

FORMATS = {"native": "a.safetensors", "official": "b.pth", "timm": "c.safetensors", "hf": "folder"}


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SimMIM on a plain Swin, which every format can express."""
    path = tmp_path_factory.mktemp("pretrained") / "run"
    swin = ("model.moe=null", "model.position_bias=table", "model.mlp_fc2_bias=true", "data.augment=null")
    task = ("task=simmim", "simmim.mask_patch_size=8", "train.duration=1 steps", "train.eval_every=null")
    run_alone("train", str(CONFIG), *overrides(shards, path, *swin, *task))
    return path


@pytest.mark.parametrize("form", FORMATS)
def test_the_encoder_in_every_format(
    run: Path, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / FORMATS[form]
    assert main(["export", str(run), str(out), "--to", form]) == 0
    assert (
        "not used, the decoder of the pre-training: decoder.bias, decoder.weight" in capsys.readouterr().out
    )
    direct, back = (build_backbone(config_of(run), seed=seed) for seed in (8, 9))
    load_weights(direct, run)
    load_weights(back, out)
    for (name, one), (_, other) in zip(direct.named_parameters(), back.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_official_names_are_plain(run: Path, tmp_path: Path) -> None:
    """What the released code of segmentation and detection reads as a backbone: no prefix, no head."""
    assert main(["export", str(run), str(tmp_path / "out.pth"), "--to", "official"]) == 0
    names = torch.load(tmp_path / "out.pth")["model"].keys()
    assert {name.partition(".")[0] for name in names} == {"patch_embed", "layers", "norm"}
    assert main(["export", str(run), str(tmp_path / "hf"), "--to", "hf"]) == 0
    others = load_file(tmp_path / "hf" / "model.safetensors")
    assert {name.partition(".")[0] for name in others} == {"swin"}
