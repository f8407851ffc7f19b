"""Teachers from folders of transformers: exactly its hidden states, and what is refused."""

import json
from pathlib import Path

import pytest
import torch

from parallel.zero.dtypes import DTYPES
from swin_moe.teachers.folder import FolderSource, is_folder
from swin_moe.teachers.source import TeacherSourceError
from tests.models import randn
from tests.swin_moe.teachers.folders import LABELS, MEAN, STD, VIT, make, tokens_of, write

IMAGES = randn(2, 3, 32, 32, seed=5)
ENCODERS = {  # the tokens before those of the patches
    "ViTModel": 1,
    "ViTForImageClassification": 1,  # of which the classifier is left out
    "DeiTModel": 2,
    "Dinov2Model": 1,
    "SwinModel": 0,
    "Swinv2Model": 0,
    "CLIPVisionModel": 1,
}


@pytest.mark.parametrize("kind", ENCODERS)
def test_the_map_is_the_last_hidden_state(tmp_path: Path, kind: str) -> None:
    model = make(kind)
    source = FolderSource(path=write(model, tmp_path / "teacher"), wanted="map")
    source.check()
    with torch.no_grad():  # with gradients attention takes another kernel
        found = source.load().eval()(IMAGES)
    encoder = model.vit if kind == "ViTForImageClassification" else model
    wanted = tokens_of(encoder, IMAGES)
    if kind == "CLIPVisionModel":  # on all tokens; transformers applies it to the first one alone
        norm = model.post_layernorm
        wanted = torch.layer_norm(wanted, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    assert torch.equal(found, wanted[:, ENCODERS[kind] :].reshape(found.shape).detach())
    assert (source.spec.mean, source.spec.std) == (MEAN, STD)
    assert found.shape[1:] == (*source.spec.grid, source.spec.width)


def test_the_vision_part_of_clip(tmp_path: Path) -> None:
    model = make("CLIPModel")
    source = FolderSource(path=write(model, tmp_path / "clip"), wanted="map")
    vision = model.vision_model
    with torch.no_grad():
        wanted = vision.post_layernorm(vision(IMAGES).last_hidden_state)[:, 1:]
        assert torch.equal(source.load().eval()(IMAGES), wanted.reshape(2, 4, 4, 16))


@pytest.mark.parametrize(
    "kind",
    ["ViTForImageClassification", "DeiTForImageClassificationWithTeacher", "SwinForImageClassification"],
)
def test_the_logits_are_the_classifiers(tmp_path: Path, kind: str) -> None:
    model = make(kind, **LABELS)
    source = FolderSource(path=write(model, tmp_path / "teacher"), wanted="logits")
    assert (source.spec.classes, source.spec.class_names) == (3, ("cat", "dog", "eel"))
    with torch.no_grad():
        assert torch.equal(source.load().eval()(IMAGES), model(IMAGES).logits)


@pytest.mark.parametrize("kind", ["ViTModel", "Swinv2Model"])
def test_half_precision_and_another_size(tmp_path: Path, kind: str) -> None:
    """In bf16 within its rounding, and 48 x 64 pixels: 6 x 8 tokens."""
    path = write(make(kind), tmp_path / "teacher")
    source = FolderSource(path=path, wanted="map", image_size=(48, 64))
    assert source.spec.grid == (6, 8)
    teacher, images = source.load().eval(), randn(1, 3, 48, 64)
    with torch.no_grad():
        exact = teacher(images)
        for parameter in teacher.parameters():
            parameter.data = parameter.data.to(DTYPES["bf16"])
        rounded = teacher(images)
    assert exact.shape[1:3] == (6, 8)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=0.1, atol=0.1)


def test_shapes_without_weights(tmp_path: Path) -> None:
    """On the meta device: as many parameters, and a map of the same shape."""
    source = FolderSource(path=write(make("DeiTModel"), tmp_path / "teacher"), wanted="map")
    meta, loaded = source.on_meta(), source.load()
    assert meta(IMAGES.to("meta")).shape == (2, 4, 4, 16)
    assert [p.shape for p in meta.parameters()] == [p.shape for p in loaded.parameters()]


def test_the_options_replace_the_processor(tmp_path: Path) -> None:
    path = write(make("ViTModel"), tmp_path / "teacher")
    (path / "preprocessor_config.json").unlink()
    source = FolderSource(path=path, wanted="map", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert source.spec.std == (1.0, 1.0, 1.0)
    with pytest.raises(TeacherSourceError, match="no preprocessor_config.json.*set teacher.mean"):
        FolderSource(path=path, wanted="map")


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "no JSON object"),
        ('{"image_mean": [0.5]}', "no image_mean and image_std of three numbers"),
        ('{"image_mean": [0, 0, 0], "image_std": [1, 0, 1]}', "must be above 0"),
        ('{"rescale_factor": 1.0}', "does not scale pixels"),
    ],
)
def test_a_bad_processor(tmp_path: Path, processor: str, message: str) -> None:
    path = write(make("ViTModel"), tmp_path / "teacher")
    (path / "preprocessor_config.json").write_text(processor)
    with pytest.raises(TeacherSourceError, match=message) as caught:
        FolderSource(path=path, wanted="map")
    assert "\n" not in str(caught.value)


def test_no_weights_or_a_pickle(tmp_path: Path) -> None:
    path = write(make("ViTModel"), tmp_path / "teacher")
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(TeacherSourceError, match="pytorch_model.bin, a pickle, which is not read"):
        FolderSource(path=path, wanted="map")
    (path / "pytorch_model.bin").unlink()
    with pytest.raises(TeacherSourceError, match="holds no weights: there is no model.safetensors"):
        FolderSource(path=path, wanted="map")


def test_damaged_weights(tmp_path: Path) -> None:
    """Found by `check`, which reads the header alone."""
    path = write(make("ViTModel"), tmp_path / "teacher")
    whole = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(whole[:-8])
    source = FolderSource(path=path, wanted="map")
    for act in (source.check, source.load):
        with pytest.raises(
            TeacherSourceError, match="model.safetensors is damaged|cannot be loaded"
        ) as caught:
            act()
        assert "\n" not in str(caught.value)


def test_weights_of_another_model(tmp_path: Path) -> None:
    path = write(make("ViTModel"), tmp_path / "teacher")
    config = json.loads((path / "config.json").read_text())
    for change, message in (
        ({"num_hidden_layers": 3}, r"\d+ tensors of ViTModel are missing \(.*layers?\.2\."),
        ({"hidden_size": 32}, r"\d+ tensors have other shapes than config.json gives.* 16\], not .* 32\]"),
        ({"num_attention_heads": 0}, "its weights cannot be loaded: "),
    ):
        (path / "config.json").write_text(json.dumps(config | change))
        for act in ("check", "load"):
            with pytest.raises(TeacherSourceError, match=message) as caught:
                getattr(FolderSource(path=path, wanted="map"), act)()
            assert "\n" not in str(caught.value)
    (path / "config.json").write_text(json.dumps(config | {"model_type": "resnet"}))
    with pytest.raises(TeacherSourceError, match="no teacher of model_type 'resnet'.*vit, deit"):
        FolderSource(path=path, wanted="map")
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(TeacherSourceError, match="a ViTModel; soft targets need a classifier: ViTForImage"):
        FolderSource(path=path, wanted="logits").load()
    with pytest.raises(TeacherSourceError, match=r"teacher.image_size \(\[36, 36\]\) must be multiples"):
        FolderSource(path=path, wanted="map", image_size=36)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("ViTModel", {"num_hidden_layers": 1}),
        ("ViTForImageClassification", {"num_hidden_layers": -1}),
        ("CLIPModel", {"vision_config": VIT | {"num_hidden_layers": 1}}),
        ("SwinForImageClassification", {"depths": [2, 1]}),
    ],
)
def test_fewer_layers_than_the_weights_have(tmp_path: Path, kind: str, change: dict[str, object]) -> None:
    """No layer is left out silently; heads, decoders and models of text are."""
    path = write(make(kind), tmp_path / "teacher")
    FolderSource(path=path, wanted="map").check()
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | change))
    for act in ("check", "load"):
        with pytest.raises(TeacherSourceError, match="config.json describes fewer layers than the weights"):
            getattr(FolderSource(path=path, wanted="map"), act)()


@pytest.mark.parametrize(
    "change", [{"patch_size": 0}, {"hidden_size": "wide"}, {"image_size": None}, {"id2label": {"a": 1}}]
)
def test_a_bad_configuration(tmp_path: Path, change: dict[str, object]) -> None:
    path = write(make("ViTModel"), tmp_path / "teacher")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(TeacherSourceError, match="config.json describes no model that transf") as caught:
        FolderSource(path=path, wanted="map").check()
    assert "\n" not in str(caught.value)


def test_what_is_a_folder(tmp_path: Path) -> None:
    assert is_folder(write(make("ViTModel"), tmp_path / "teacher"))
    assert not is_folder(tmp_path)
    assert not is_folder(tmp_path / "none")


def test_code_of_the_folder_does_not_run(tmp_path: Path) -> None:
    path = write(make("ViTModel"), tmp_path / "teacher")
    (path / "evil.py").write_text("raise SystemExit('code of the folder ran')\n")
    config = json.loads((path / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    (path / "config.json").write_text(json.dumps(config))
    assert FolderSource(path=path, wanted="map").load().eval()(IMAGES).shape == (2, 4, 4, 16)
