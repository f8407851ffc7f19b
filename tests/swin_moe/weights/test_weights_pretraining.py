"""Files of MoBY, FD and EsViT: names and layouts by hand, values random; FD's forward pass token by token."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from swin_moe import WeightsError, build_backbone, build_model, load_weights
from tests.models import randn
from tests.swin_moe.weights.official_files import SWIN, SWIN_V2, assert_same, official, randomized
from tests.swin_moe.weights.pretraining_files import fd, moby


def written(tensors: dict[str, Tensor], path: Path, **beside: Any) -> Path:
    torch.save({"model": tensors, "epoch": 299, **beside}, path)
    return path


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_encoder_of_moby_and_every_other_tensor_by_its_reason(prefix: str, tmp_path: Path) -> None:
    source, model = randomized(SWIN), build_model(SWIN)
    tensors = {prefix + name: tensor for name, tensor in moby(official(source, "swin")).items()}
    path = written(tensors, tmp_path / "moby.pth", lr_scheduler={"t_initial": 3}, max_accuracy=0.0)
    with pytest.raises(WeightsError, match=r"no classifier.*head=replace"):
        load_weights(model, path)
    report = load_weights(model, path, head="replace")
    assert report.format == "MoBY"
    with torch.no_grad():
        source.head.load_state_dict(model.head.state_dict())
    assert_same(model, source)
    why = {name: reason.partition(" of MoBY")[0] for name, reason in report.dropped.items()}
    assert {why[name] for name in why if name.startswith(("pro", "pre"))} == {"the projections"}
    assert {why[name] for name in why if name.startswith("encoder_k.")} == {"the target network"}
    assert {name for name in why if why[name] == "the queues"} == {"queue1", "queue2", "queue_ptr"}
    assert {prefix + name for name in report.dropped} | set(_of_encoder(tensors)) == set(tensors)
    assert report.loaded == len(dict(model.named_parameters())) - 2


def _of_encoder(tensors: dict[str, Tensor]) -> list[str]:
    return [name for name in tensors if "encoder." in name and not name.endswith(("_index", "_mask"))]


@pytest.mark.parametrize("teacher", ["swin", "vit"])
@pytest.mark.parametrize("shared", [False, True])
def test_the_student_of_fd_computes_what_its_formulas_say(shared: bool, teacher: str, tmp_path: Path) -> None:
    tensors = official(randomized(SWIN_V2), "swinv2")
    if shared:  # one network for the blocks of a stage
        tensors |= {
            n: tensors[n.replace("blocks.1", "blocks.0")] for n in tensors if "0.blocks.1.attn.cpb" in n
        }
    student = fd(tensors, shared=shared, teacher=teacher)
    assert any("rel_pos_bias" in name for name in student) == shared
    model = build_backbone(SWIN_V2).eval()
    report = load_weights(model, written(student, tmp_path / "fd.pth"))
    assert report.format == "FD"
    dropped = Counter(report.dropped.values())
    assert dropped["the teacher of the distillation"] == 3
    assert dropped["the projection to the teacher's features"] == 2
    assert report.notices == []  # the coordinates in the file say with which windows it was learned
    images = randn(2, 3, 24, 24)
    with torch.no_grad():
        pooled, _ = model.forward_pooled(images)
    ours = {name.removeprefix("encoder."): t.double() for name, t in student.items() if t.is_floating_point()}
    expected = torch.stack([slow_forward(ours, image.double()).mean((0, 1)) for image in images])
    torch.testing.assert_close(pooled.double(), expected, rtol=1e-4, atol=1e-5)


def test_the_log_cpb_of_another_window_is_refused_for_fd_too(tmp_path: Path) -> None:
    student = fd(official(randomized(SWIN_V2), "swinv2"), shared=True)
    path = written(student, tmp_path / "fd.pth")
    larger = replace(SWIN_V2, image_size=32, window_size=6)
    with pytest.raises(WeightsError, match=r"windows of \[3, 3\], the model's are \[6, 4\]"):
        load_weights(build_backbone(larger), path)


def test_a_fine_tuned_student_has_no_prefix(tmp_path: Path) -> None:
    source, model = randomized(SWIN_V2), build_model(SWIN_V2)
    tensors = {n.replace(".cpb_mlp.", ".rpe_mlp."): t for n, t in official(source, "swinv2").items()}
    assert load_weights(model, written(tensors, tmp_path / "ft.pth")).format == "official"
    assert_same(model, source)


def test_fd_without_its_teacher_is_known_by_its_decoder(tmp_path: Path) -> None:
    tensors = fd(official(source := randomized(SWIN_V2), "swinv2"))
    tensors = {name: t for name, t in tensors.items() if not name.startswith("feature_model.")}
    report = load_weights(model := build_model(SWIN_V2), written(tensors, tmp_path / "x.pth"), head="replace")
    assert report.format == "FD"
    assert torch.equal(model.norm.weight, source.norm.weight)


@pytest.mark.parametrize("prefix", ["encoder.", ""])
def test_a_vit_is_refused_by_name(prefix: str, tmp_path: Path) -> None:
    names = (
        "cls_token",
        "patch_embed.proj.weight",
        "blocks.0.norm1.weight",
        "blocks.11.attn.q_bias",
        "norm.weight",
    )
    tensors = {prefix + name: randn(2) for name in names} | {"decoder.0.weight": randn(2, 2, 1)}
    with pytest.raises(
        WeightsError, match=r"it holds a ViT \(.*blocks\.0\.norm1\.weight.*, and the models here"
    ):
        load_weights(build_model(SWIN), written(tensors, tmp_path / "vit.pth"))


def esvit(source: Any) -> dict[str, Tensor]:
    """DDP's prefix, DINO's heads and no classifier."""
    plain = {n: t for n, t in official(source, "swin").items() if not n.startswith("head.")}
    heads = {f"{head}.mlp.0.weight": randn(4, 16) for head in ("head", "head_dense")}
    heads |= {f"{head}.last_layer.weight_g": randn(4, 1) for head in ("head", "head_dense")}
    return {f"module.{name}": tensor for name, tensor in (plain | heads).items()}


@pytest.mark.parametrize("ema", [False, True])
def test_esvit_has_a_student_and_its_average(ema: bool, tmp_path: Path) -> None:
    student, teacher = randomized(SWIN, seed=1), randomized(SWIN, seed=2)
    path = tmp_path / "checkpoint_best.pth"
    torch.save({"student": esvit(student), "teacher": esvit(teacher), "dino_loss": {}, "epoch": 3}, path)
    model = build_model(SWIN)
    report = load_weights(model, path, head="replace", ema=ema)
    taken = teacher if ema else student
    assert report.notices[0].startswith(
        f"the file holds student and teacher: {'teacher' if ema else 'student'}"
    )
    heads = [name for name, why in report.dropped.items() if why == "the projections of DINO or EsViT"]
    assert len(heads) == 4
    with torch.no_grad():
        taken.head.load_state_dict(model.head.state_dict())
    assert_same(model, taken)


def test_a_file_of_a_teacher_alone_says_so(tmp_path: Path) -> None:
    torch.save({"teacher": esvit(randomized(SWIN))}, tmp_path / "x.pth")
    report = load_weights(build_model(SWIN), tmp_path / "x.pth", head="replace")
    assert report.notices[0] == "the weights are the moving average teacher: the file holds no others"


# FD's SwinV2 by its formulas, one image (3, 24, 24) at a time: patches of 4, windows of 3, 2 blocks and 1


def slow_forward(w: dict[str, Tensor], image: Tensor) -> Tensor:
    """The normalised last map (3, 3, C)."""
    patches = image.unfold(1, 4, 4).unfold(2, 4, 4)  # (3, 6, 6, 4, 4)
    x = torch.einsum("irckl,oikl->rco", patches, w["patch_embed.proj.weight"]) + w["patch_embed.proj.bias"]
    x = norm(w, "patch_embed.norm", x)
    for number, shift in ((0, 0), (1, 1)):
        x = block(w, 0, number, x, shift)
    neighbours = torch.cat([x[0::2, 0::2], x[1::2, 0::2], x[0::2, 1::2], x[1::2, 1::2]], dim=2)
    x = norm(w, "layers.0.downsample.norm", neighbours @ w["layers.0.downsample.reduction.weight"].T)
    return norm(w, "norm", block(w, 1, 0, x, 0))


def norm(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


def block(w: dict[str, Tensor], stage: int, number: int, x: Tensor, shift: int) -> Tensor:
    """Post-norm: the branch is normalised before it is added."""
    name = f"layers.{stage}.blocks.{number}"
    x = x + norm(w, f"{name}.norm1", attention(w, stage, name, x, shift))
    hidden = F.gelu(x @ w[f"{name}.mlp.fc1.weight"].T + w[f"{name}.mlp.fc1.bias"])
    return x + norm(w, f"{name}.norm2", hidden @ w[f"{name}.mlp.fc2.weight"].T + w[f"{name}.mlp.fc2.bias"])


def attention(w: dict[str, Tensor], stage: int, name: str, x: Tensor, shift: int) -> Tensor:
    """Every token with every token of its shifted window; -100 where the roll brought them together."""
    side, channels, heads = len(x), x.shape[2], len(w[f"{name}.attn.logit_scale"])
    scale = w[f"{name}.attn.logit_scale"].clamp(max=math.log(100)).exp().view(-1)
    bias = torch.cat([w[f"{name}.attn.q_bias"], torch.zeros(channels), w[f"{name}.attn.v_bias"]])
    qkv = (x @ w[f"{name}.attn.qkv.weight"].T + bias).view(side, side, 3, heads, -1)
    places = [(r, c) for r in range(side) for c in range(side)]
    out = torch.zeros(side, side, channels, dtype=torch.float64)
    for r, c in places:
        others = [other for other in places if window(other, side, shift) == window((r, c), side, shift)]
        logits = torch.stack(
            [
                scale * cosine(qkv[r, c, 0], qkv[i, j, 1])
                + cpb(w, stage, name, offset((r, c), (i, j), side, shift))
                - (100.0 if region((r, c), side, shift) != region((i, j), side, shift) else 0.0)
                for i, j in others
            ]
        )  # (9, heads)
        values = torch.stack([qkv[i, j, 2] for i, j in others])  # (9, heads, d)
        out[r, c] = torch.einsum("nh,nhd->hd", logits.softmax(0), values).flatten()
    return out @ w[f"{name}.attn.proj.weight"].T + w[f"{name}.attn.proj.bias"]


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


def rolled(place: tuple[int, int], side: int, shift: int) -> tuple[int, int]:
    return (place[0] - shift) % side, (place[1] - shift) % side


def window(place: tuple[int, int], side: int, shift: int) -> tuple[int, int]:
    row, column = rolled(place, side, shift)
    return row // 3, column // 3


def region(place: tuple[int, int], side: int, shift: int) -> tuple[bool, bool]:
    """Whether the roll moved a token past the edge, by axis: those in the last window that did are apart."""
    row, column = rolled(place, side, shift)
    return row >= side - shift, column >= side - shift


def offset(a: tuple[int, int], b: tuple[int, int], side: int, shift: int) -> tuple[int, int]:
    (r, c), (i, j) = rolled(a, side, shift), rolled(b, side, shift)
    return r - i, c - j


def cpb(w: dict[str, Tensor], stage: int, name: str, offsets: tuple[int, int]) -> Tensor:
    """16 sigmoid of the network over sign(d) log2(1 + 8 |d| / 2) / 3, for windows of 3."""
    at = [math.copysign(math.log2(1 + 8 * abs(d) / 2) / 3, d) for d in offsets]
    own = f"{name}.attn.rpe_mlp"
    mlp = own if f"{own}.0.weight" in w else f"layers.{stage}.rel_pos_bias.rpe_mlp"
    hidden = (w[f"{mlp}.0.weight"] @ torch.tensor(at, dtype=torch.float64) + w[f"{mlp}.0.bias"]).relu()
    return 16 * torch.sigmoid(w[f"{mlp}.2.weight"] @ hidden)
