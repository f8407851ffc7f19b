"""Classifiers that do not fit, files that cannot be trusted or used: one error each, and nothing written."""

import os
import pickle
import sys
import tarfile
import types
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from swin_moe import ClassMap, WeightsError, build_model, load_weights, save_weights
from swin_moe.backbone.model import SwinTransformer
from tests.swin_moe.weights.official_files import CONFIGS, SWIN, SWIN_V2, official, randomized, state


class Evil:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.path}",)


def refused(path: Path, message: str) -> None:
    """Loading fails with one WeightsError, and leaves the model as it was."""
    model = build_model(SWIN)
    before = {name: tensor.clone() for name, tensor in state(model).items()}
    with pytest.raises(WeightsError, match=message) as caught:
        load_weights(model, path)
    assert str(path.name) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in state(model).items())


def saved(tmp_path: Path, **changes: torch.Tensor | None) -> Path:
    """An official file with some tensors replaced, added or, where None, left out."""
    tensors = official(randomized(SWIN), "swin") | changes
    path = tmp_path / "x.pth"
    torch.save({"model": {n: t for n, t in tensors.items() if t is not None}}, path)
    return path


def test_a_checkpoint_of_another_model(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(3), "fc.bias": torch.zeros(2)}, tmp_path / "resnet.pth")
    refused(tmp_path / "resnet.pth", r"no weights of a Swin that is known here; .* conv1.weight, fc.bias")


def test_a_checkpoint_of_another_swin(tmp_path: Path) -> None:
    torch.save({"model": official(randomized(SWIN_V2), "swinv2")}, tmp_path / "x.pth")
    refused(
        tmp_path / "x.pth",
        r"6 tensors of the model are missing \(layers.0.blocks.0.attention.qkv.bias, .*"
        r"tensors are none of the model's \(layers.0.blocks.0.attn.cpb_mlp.0.weight, .*"
        r"layers.0.downsample.norm.weight \[16\] instead of \[32\]",
    )


def test_an_unknown_key_a_missing_one_and_another_shape(tmp_path: Path) -> None:
    refused(saved(tmp_path, **{"norm3.weight": torch.zeros(2)}), r"1 tensors are none .* \(norm3.weight\)")
    refused(saved(tmp_path, **{"norm.bias": None}), r"1 tensors of the model are missing \(norm.bias\)")
    shaped = saved(tmp_path, **{"norm.bias": torch.zeros(7)})
    refused(shaped, r"1 tensors have another shape \(norm.bias \[7\] instead of \[16\]\)")
    table = "layers.1.blocks.0.attn.relative_position_bias_table"
    heads = saved(tmp_path, **{table: torch.zeros(25, 3)})
    refused(heads, r"relative_position_bias_table \[25, 3\] instead of \[25, 4\]")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["zip", "pickle", "safetensors"])
def test_a_truncated_file(kind: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / "x"
    if kind == "safetensors":
        save_weights(build_model(SWIN), path, "native")
    else:
        tensors = official(randomized(SWIN), "swin")
        torch.save({"model": tensors}, path, _use_new_zipfile_serialization=kind == "zip")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    refused(path, "damaged|refused|empty")  # the name of a function, cut short, is the name of another one


@pytest.mark.parametrize("where", ["beside", "as a tensor", "alone"])
@pytest.mark.parametrize("archive", [True, False])
def test_code_in_a_pickle_is_not_run(archive: bool, where: str, tmp_path: Path) -> None:
    evil, path = Evil(tmp_path / "ran"), tmp_path / "x.pth"
    content = {"model": official(randomized(SWIN), "swin")}
    content = {"beside": content | {"config": evil}, "as a tensor": {"model": {"a": evil}}, "alone": evil}[
        where
    ]
    torch.save(content, path, _use_new_zipfile_serialization=archive)
    refused(path, r"would run code if it were read \(it names \w+\.system\): refused")
    assert not (tmp_path / "ran").exists()


def test_code_in_a_plain_pickle_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"model": Evil(tmp_path / "ran")}))
    refused(tmp_path / "x.pkl", "refused|no checkpoint|damaged")
    assert not (tmp_path / "ran").exists()


def test_a_whole_module_is_not_unpickled(tmp_path: Path) -> None:
    torch.save({"model": nn.Linear(2, 2)}, tmp_path / "x.pth")
    refused(tmp_path / "x.pth", r"it names torch.nn.modules.linear.Linear\): refused")


def test_the_yacs_config_of_an_official_training_run_is_plain_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Official runs save their CfgNode, a dict; it is read without yacs, as a dict."""
    module = types.ModuleType("yacs.config")
    node = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    monkeypatch.setattr(module, "CfgNode", node, raising=False)
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    config = node(MODEL=node(NAME="swin"))
    config.__dict__["__immutable__"] = True
    source, model = randomized(SWIN), build_model(SWIN)
    torch.save({"model": official(source, "swin"), "config": config, "epoch": 1}, tmp_path / "x.pth")
    monkeypatch.delitem(sys.modules, "yacs.config")
    report = load_weights(model, tmp_path / "x.pth")
    assert {"config", "epoch"} <= set(report.beside)


def zipped(path: Path, *names: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "x")


def scripted(path: Path) -> None:
    with warnings.catch_warnings(action="ignore"):
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)


def optimizer() -> dict[str, object]:
    return torch.optim.AdamW(nn.Linear(2, 2).parameters()).state_dict()


def tarred(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("x.pth"))


FOREIGN: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda p: p.write_bytes(b""), r"is empty \(0 bytes\)"),
    "web page": (lambda p: p.write_text("<html>404</html>"), "is a web page .*, not the file itself"),
    "web page in latin-1": (lambda p: p.write_bytes(b"\n<!DOCTYPE html>\n<p>\xe4</p>"), "is a web page"),
    "refusal of a server": (lambda p: p.write_text('<?xml version="1.0"?><Error/>'), "is a web page"),
    "git-lfs": (
        lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "is a git-lfs pointer, not the file itself; run `git lfs pull`",
    ),
    "text": (
        lambda p: p.write_text("Access denied\nGo away\n"),
        "is a text file that begins 'Access denied'",
    ),
    "text with a byte order mark": (
        lambda p: p.write_text("\ufeffNötig"),
        "is a text file that begins 'Nötig'",
    ),
    "index": (
        lambda p: p.write_text('{\n "metadata": {}, "weight_map": {"a": "b.safetensors"}}'),
        "is the index of weights in several files, not the weights; give the folder that holds them all",
    ),
    "JSON": (lambda p: p.write_text('{"a": {"b": 1}}'), "is a JSON file, which holds no weights"),
    "zip of images": (lambda p: zipped(p, "a.jpg", "b.jpg"), "but no checkpoint: it holds a.jpg, b.jpg"),
    "zip of a checkpoint": (
        lambda p: zipped(p, "a/swin.pth"),
        "a zip archive with a/swin.pth in it; unpack it",
    ),
    "zip of nothing": (zipped, "is a zip archive, but no checkpoint: it holds nothing"),
    "NumPy archive": (lambda p: zipped(p, "a.npy"), "but no checkpoint: it holds a.npy"),
    "TorchScript": (scripted, "is a TorchScript program .*which holds code; save its state_dict"),
    "tar": (tarred, "is a tar archive; unpack it"),
    "gzip": (lambda p: p.write_bytes(b"\x1f\x8b1234"), "is a gzip archive; unpack it"),
    "HDF5": (
        lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n"),
        "is an HDF5 file, such as Keras writes, no checkpoint",
    ),
    "zeros": (
        lambda p: p.write_bytes(bytes(5000)),
        "damaged .*neither a zip archive nor a pickle of torch.save",
    ),
    "one byte": (lambda p: p.write_bytes(b"\x80"), "damaged or cut short"),
    "pickle": (lambda p: p.write_bytes(pickle.dumps({"a": 1}, 2)), "a pickle that torch.save did not write"),
    "protocol 4": (lambda p: torch.save({"a": 1}, p, pickle_protocol=4), "a pickle of protocol 4 or later"),
    "list": (lambda p: torch.save([torch.zeros(2)], p), "holds a list, not tensors by name"),
    "optimizer": (
        lambda p: torch.save(optimizer(), p),
        "an optimizer's state and no weights: .* param_groups",
    ),
    "optimizer and epoch": (
        lambda p: torch.save({"optimizer": optimizer(), "epoch": 3}, p),
        "holds an optimizer's state and no weights: its entries are optimizer, epoch",
    ),
    "another key": (
        lambda p: torch.save({"epoch": 3, "weights": {"a": torch.zeros(2)}}, p),
        "entries that are no tensors: epoch, weights",
    ),
    "nothing": (lambda p: torch.save({}, p), "holds no tensors"),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_that_is_no_checkpoint_is_called_what_it_is(kind: str, suffix: str, tmp_path: Path) -> None:
    make, message = FOREIGN[kind]
    path = tmp_path / f"x{suffix}"
    make(path)
    with warnings.catch_warnings(action="error"):  # of torch, on a line of their own
        refused(path, message)


def test_paths_that_are_no_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "x.pth").touch()
    refused(tmp_path / "y.pth", r"y.pth does not exist; did you mean x.pth\?")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", r"folder holds no weights: none of model.safetensors, pytorch_model.bin")
    (tmp_path / "folder/model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-1.safetensors"}}'
    )
    refused(tmp_path / "folder", r"model-1.safetensors is missing; model.safetensors.index.json names it")


@pytest.mark.parametrize("kind", CONFIGS)
def test_weights_that_are_not_finite(kind: str, tmp_path: Path) -> None:
    model = randomized(CONFIGS[kind])
    names = ["patch_embed.proj.weight", "layers.1.blocks.0.norm1.bias"]
    with torch.no_grad():
        model.get_parameter(names[0]).view(-1)[:2] = float("nan")
        model.get_parameter(names[0]).view(-1)[2] = -float("inf")
        model.get_parameter(names[1])[0] = float("inf")
    torch.save({"model": official(model, kind)}, tmp_path / "x.pth")
    message = (
        r"2 tensors hold values that are not finite: "
        r"patch_embed.proj.weight \(2 NaN and 1 infinite of 384\), "
        r"layers.1.blocks.0.norm1.bias \(0 NaN and 1 infinite of 16\); use an earlier checkpoint"
    )
    fresh = build_model(CONFIGS[kind])
    with pytest.raises(WeightsError, match=f"{tmp_path}/x.pth: {message}"):
        load_weights(fresh, tmp_path / "x.pth")
    assert all(bool(tensor.isfinite().all()) for tensor in state(fresh).values())
    with pytest.raises(WeightsError, match=message):
        save_weights(model, tmp_path / "out", "native")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_that_are_not_finite_in_any_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in official(randomized(SWIN), "swin").items()}
    path = tmp_path / "x.pth"
    torch.save(tensors, path)
    load_weights(build_model(SWIN), path)
    tensors["norm.bias"][3] = float("nan")
    torch.save(tensors, path)
    refused(path, r"1 tensor holds values that are not finite: norm.bias \(1 NaN and 0 infinite of 16\)")


def test_a_model_without_memory(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = SwinTransformer(SWIN)
    with pytest.raises(WeightsError, match="on the meta device"):
        load_weights(model, saved(tmp_path))


# The classifier.


def larger(tmp_path: Path) -> tuple[Path, torch.Tensor]:
    weight = torch.arange(9.0)[:, None].expand(9, 16).contiguous()
    return saved(tmp_path, **{"head.weight": weight, "head.bias": torch.arange(9.0)}), weight


def test_another_classifier_is_refused_or_replaced(tmp_path: Path) -> None:
    path, _ = larger(tmp_path)
    refused(path, r"the weights have 9 classes, model.num_classes is 5; .*head=replace; .*head=FILE")
    model = build_model(SWIN)
    own = model.head.weight.detach().clone()
    report = load_weights(model, path, head="replace")
    assert torch.equal(model.head.weight, own)
    assert report.dropped["head.weight"] == "the classifier is replaced"
    assert "classifier: the model's own of 5 classes stays, that of 9 classes is not used" in str(report)


def test_classes_are_picked_by_a_map(tmp_path: Path) -> None:
    path, weight = larger(tmp_path)
    (tmp_path / "map.txt").write_text("8\n0\n3\n3\n1\n")
    model = build_model(SWIN)
    report = load_weights(model, path, head=ClassMap.read(tmp_path / "map.txt"))
    assert model.head.bias.tolist() == [8, 0, 3, 3, 1]
    assert torch.equal(model.head.weight, weight[[8, 0, 3, 3, 1]])
    assert report.changes == [f"classifier: 5 of 9 classes, by {tmp_path / 'map.txt'}"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\n2\n", r"has 2 lines, model.num_classes is 5"),
        ("1\n2\n3\n4\n9\n", r"names class 9; the weights have 0..8"),
        ("1\ntwo\n", r"line 2: not the index of a class \(got 'two'\)"),
        ("1\n\n2\n", r"line 2: not the index of a class \(got ''\)"),
        ("-1\n", r"line 1: not the index of a class \(got '-1'\)"),
    ],
)
def test_a_bad_class_map(text: str, message: str, tmp_path: Path) -> None:
    path, _ = larger(tmp_path)
    (tmp_path / "map.txt").write_text(text)
    with pytest.raises(WeightsError, match=message):
        load_weights(build_model(SWIN), path, head=ClassMap.read(tmp_path / "map.txt"))
    with pytest.raises(WeightsError, match="cannot be read"):
        ClassMap.read(tmp_path / "nowhere.txt")
