"""The programs of each target give the logits of their model, alone and in any batch; what runs nowhere is
refused by name before any work."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor import config as inductor

import launcher
from data_shards.augment.normalize import Normalize
from launcher.cli.program import main
from launcher.deploy.artifact import Artifact, load_artifact
from launcher.deploy.card import CARD, ArtifactError, read_card
from launcher.deploy.golden import read_golden
from launcher.deploy.targets.int8 import has_vnni, quantized_nodes
from launcher.deploy.targets.processor import instructions, missing
from swin_moe.config import ModelConfig
from swin_moe.moe.layer import RoutingOverrides
from swin_moe.relation_config import LocalRelationConfig
from tests.launcher.deploy.making import RUN, make_here, pixels, weights
from tests.models import V2, small_moe, small_swin
from tests.recorded import SHARDS

ONE_BLOCK: dict[str, Any] = {"image_size": 8, "depths": (1,), "num_heads": (2,), "window_size": 2}
EXPERTS = small_moe(blocks=((0,),), top_k=2)


def tiny(**changes: Any) -> ModelConfig:
    """One block, of which one target takes seconds."""
    return small_swin(num_classes=10, **(ONE_BLOCK | changes))


def pictures(made: Artifact) -> Tensor:
    """The golden images five times over, normalized: like those by which int8 was calibrated."""
    images = read_golden(made.folder).images
    return torch.cat([Normalize(made.inputs.mean, made.inputs.std, torch.device("cpu"))(images)] * 5)


def check(made: Artifact, source: Path, bound: float) -> None:
    """The logits are the model's within a bound; those of an image do not depend on its batch."""
    loaded = launcher.load(source)
    config = loaded.model.config
    x = pictures(made) if made.card.target == "onnx-int8" else pixels(40, config)
    is_dropless = config.moe and config.moe.router not in ("soft", "expert_choice")
    exact = RoutingOverrides(capacity_factor=0.0) if is_dropless else None
    with torch.no_grad():
        wanted: Tensor = loaded.model(x, torch.zeros(40, dtype=torch.int64), exact).logits
    found = made.run(x)
    assert (found.logits - wanted).abs().max() <= bound * wanted.abs().max()
    # of the eight golden images one may differ in int8: a drawn model has logits that are nearly equal
    least = 7 / 8 if made.card.target == "onnx-int8" else 0.9
    assert (found.logits.argmax(1) == wanted.argmax(1)).float().mean() >= least
    for number in (1, 8, 32):
        alone = made.run(x[:number])
        torch.testing.assert_close(alone.logits, found.logits[:number], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(alone.features, found.features[:number], rtol=1e-4, atol=1e-4)
    if config.moe:  # of these routers a token may have all experts
        may_have_all = config.moe.router in ("soft", "expert_choice")
        chosen = config.moe.num_experts if may_have_all else config.moe.top_k
        assert found.experts[0].shape[::2] == (40, chosen)


def make_tiny(folder: Path, target: Any, config: ModelConfig, **options: Any) -> tuple[Artifact, Path]:
    """Deploy a drawn model; what AOTInductor writes around the kernels is compiled without optimization."""
    source = weights(folder / "a.safetensors", config)
    with inductor.patch({"aot_inductor.compile_wrapper_opt_level": "O0"}):
        return load_artifact(make_here(folder / "out", source, target, **options)), source


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Path]:
    """A block of experts as ONNX, gathered."""
    return make_tiny(tmp_path_factory.mktemp("onnx"), "onnx", tiny(moe=EXPERTS), products="gathered")


def test_onnx(graph: tuple[Artifact, Path]) -> None:
    made, source = graph
    check(made, source, 1e-5)
    assert made.card.options["opset"] == 20
    assert sorted(path.name for path in made.folder.iterdir()) == [CARD, "golden.safetensors", "model.onnx"]


@pytest.mark.long
def test_pt2(tmp_path: Path) -> None:
    made, source = make_tiny(tmp_path, "pt2", tiny(moe=EXPERTS))
    check(made, source, 1e-5)
    assert made.card.options["instructions"] == instructions()


def test_int8(tmp_path: Path) -> None:
    """Every product with a constant weight, but those of routers and experts."""
    config = tiny(moe=EXPERTS, depths=(2,), num_heads=(2,))
    made, source = make_tiny(tmp_path, "onnx-int8", config, calibration_images=24, keep_float=("fc2",))
    check(made, source, 0.25)
    x = pixels(4, config)
    assert not torch.equal(made.run(x).logits, launcher.load(source).model(x, torch.zeros(4).long()).logits)
    # patches, qkv and proj of two blocks, fc1 of the second, the head
    assert made.card.options["quantized_products"] == 1 + 2 * 2 + 1 + 1
    assert made.card.options["calibration_images"] == 24


def test_products_that_stay_in_fp32(graph: tuple[Artifact, Path]) -> None:
    """The block has experts, so that no fc2 is left; of the graph, patches, qkv, proj and head are named."""
    made, _ = graph
    assert len(quantized_nodes(made.folder / "model.onnx", ())) == 4
    assert len(quantized_nodes(made.folder / "model.onnx", ("fc2", "merging"))) == 4


FAMILIES: list[dict[str, Any]] = [
    {},
    V2,
    {"attention": "mlp"},
    {"position_bias": "log_cpb", "image_size": (32, 24)},
    *({"moe": small_moe(router=router, top_k=2)} for router in ("linear", "cosine", "sigmoid", "hash")),
    {"moe": small_moe(router="soft")},
    {"moe": small_moe(router="expert_choice", routing_group_images=1, eval_capacity_factor=0.75)},
    {"moe": small_moe(top_k=2, expert_activation="swiglu", shared_expert=True), **V2},
]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["pt2", "onnx", "onnx-int8"])
@pytest.mark.parametrize("changes", FAMILIES, ids=range(len(FAMILIES)))
def test_families(changes: dict[str, Any], target: str, tmp_path: Path) -> None:
    """Every family and router that has an answer for an image alone."""
    config = small_swin(num_classes=10, **({"image_size": 16} | changes))
    made, source = make_tiny(tmp_path, target, config)
    check(made, source, 0.25 if target == "onnx-int8" else 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("target", "precision"), [("pt2", "bf16"), ("pt2", "fp16"), ("onnx", "fp16")])
@pytest.mark.parametrize(
    ("batch", "products"), [((1, 1), "dense"), ((4, 4), "dense"), ((2, 8), "dense"), ((2, 8), "gathered")]
)
def test_half_precision_and_batches(
    target: str, precision: str, batch: tuple[int, int], products: str, tmp_path: Path
) -> None:
    config = tiny(moe=EXPERTS)
    made, source = make_tiny(tmp_path, target, config, precision=precision, batch=batch, products=products)
    check(made, source, 0.1)
    assert made.batch == batch


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("onnx", {"precision": "bf16"}, "--precision bf16: ONNX Runtime has no kernels"),
        ("onnx", {"products": "grouped"}, "--experts grouped: ONNX has no grouped product"),
        ("onnx-int8", {"precision": "fp16"}, "--precision fp16: onnx-int8"),
        ("pt2", {"products": "grouped"}, "--experts grouped: torch exports this product in bf16 and fp16"),
    ],
)
def test_what_a_runtime_lacks_is_refused(
    target: Any, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match=message):
        make_here(tmp_path / "out", RUN, target, **options)
    assert list(tmp_path.iterdir()) == []


def test_local_relations_name_the_program_that_runs_them(tmp_path: Path) -> None:
    config = small_swin(**ONE_BLOCK, attention="local_relation", local_relation=LocalRelationConfig())
    source = weights(tmp_path / "weights.safetensors", config)
    message = (
        r"^--to onnx has no local relations \(model.attention=local_relation\); --to safetensors runs them$"
    )
    with pytest.raises(ArtifactError, match=message):
        make_here(tmp_path / "out", source, "onnx")
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"versions": {"torch": "2.13.0"}}, r"compiled by torch 2\.13\.0, which alone runs it"),
        ({"machine": {"processor": "riscv64"}}, r"compiled for riscv64"),
        ({"options": {"instructions": ["avx4096"]}}, r"instructions that this processor lacks \(avx4096\)"),
        ({}, r"model\.pt2 cannot be loaded"),
    ],
    ids=str,
)
def test_a_package_of_another_torch_or_processor_is_refused(
    changes: dict[str, Any], message: str, artifact: Path, tmp_path: Path
) -> None:
    """The file of the package is none: it is not opened unless everything else fits."""
    folder = tmp_path / "copy"
    shutil.copytree(artifact, folder)
    (folder / "model.safetensors").rename(folder / "model.pt2")
    card = json.loads((folder / CARD).read_text())
    for record in card["files"]:
        record["name"] = record["name"].replace("model.safetensors", "model.pt2")
    (folder / CARD).write_text(json.dumps(card | {"target": "pt2"} | changes))
    with pytest.raises(ArtifactError, match=message) as raised:
        load_artifact(folder)
    assert "\n" not in str(raised.value)


def test_instructions_of_a_processor(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(
        "processor : 0\nflags : fpu sse2 avx2 avx512_vnni fma\n\nflags : sse2\n"
    )
    here = instructions(tmp_path / "cpuinfo")
    assert here == ["avx2", "avx512_vnni", "fma", "sse2"]
    assert missing(["avx2", "amx_tile"], here) == ["amx_tile"]
    assert missing(["avx2"], instructions(tmp_path / "none")) == []
    assert [has_vnni(here), has_vnni(["sse2", "avx2"]), has_vnni(["asimd"])] == [True, False, True]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    shutil.copytree(RUN, run)
    line = ["deploy", str(run), "--to", "safetensors", "--batch", "4", "--data", str(SHARDS / "val")]
    assert main([*line, "--verify-images", "5", "--precision", "bf16", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "8 golden images drawn from" in err
    answer = json.loads(out)
    assert answer["folder"] == f"{run}/artifacts/safetensors-bf16"
    assert answer["card"]["checked"]["images"] == 5
    card = read_card(run / "artifacts" / "safetensors-bf16")
    assert card.checked is not None
    assert (card.batch, card.precision, card.checked.images) == ((4, 4), "bf16", 5)
    assert main([*line, "--precision", "bf16"]) == 2
    assert "safetensors-bf16 exists; choose another place" in capsys.readouterr().err
    assert main(["deploy", str(run / "artifacts" / "safetensors-bf16" / "model.safetensors"), *line[2:]]) == 2
    assert "is no run: name the folder to make with --out DIR" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "8..4"], "a number of images such as 8, or 1..32 (got '8..4')"),
        (["--batch", "0"], "a number of images such as 8, or 1..32 (got '0')"),
        (["--keep-float", "fc2,head"], "no layers 'head'; known: merging, fc2"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["deploy", "run", "--to", "onnx", *arguments])
    assert message in capsys.readouterr().err
