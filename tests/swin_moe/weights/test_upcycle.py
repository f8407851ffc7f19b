"""A dense model made into one with experts answers as before; noise, routers and refusals."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from swin_moe import ModelConfig, SwinTransformer, WeightsError, build_model, load_weights, save_weights
from swin_moe.heads.simmim import SimMIMConfig, build_simmim
from tests.models import V2, add_noise, images_of, small_moe, small_swin

DENSE = small_swin(embed_dim=16, drop_path_rate=0.0)
KINDS = {
    "swin": DENSE,
    "v2": replace(DENSE, **V2),
    "no fc2 bias": replace(DENSE, mlp_fc2_bias=False),
}
MOE = small_moe(
    blocks=((1,), (0, 1)), top_k=2, normalize_gates=True, capacity_factor=0.0, routing_group_images=1
)


def filled(config: ModelConfig) -> SwinTransformer:
    """A model whose every tensor matters: biases and SwinV2's branch norms start at zero."""
    return add_noise(build_model(config), 0.1).eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return images_of(DENSE, 3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("router", "top_k"), [("linear", 1), ("linear", 2), ("cosine", 3), ("sigmoid", 2)])
def test_it_answers_as_the_dense_model(
    kind: str, router: str, top_k: int, images: torch.Tensor, tmp_path: Path
) -> None:
    dense = filled(KINDS[kind])
    save_weights(dense, tmp_path / "dense.safetensors", "native")
    moe = replace(MOE, router=router, top_k=top_k)
    model = build_model(replace(KINDS[kind], moe=moe)).eval()
    report = load_weights(model, tmp_path / "dense.safetensors", upcycle_noise=0.0)
    assert "upcycled: 4 experts from each of 3 MLPs, routers fresh" in str(report)
    with torch.no_grad():
        torch.testing.assert_close(model(images).logits, dense(images).logits, rtol=1e-5, atol=1e-5)


def test_noise_makes_experts_differ_by_its_share(tmp_path: Path) -> None:
    dense = filled(DENSE)
    save_weights(dense, tmp_path / "dense.safetensors", "native")
    models = [build_model(replace(DENSE, moe=MOE)) for _ in range(2)]
    for model in models:
        load_weights(model, tmp_path / "dense.safetensors", upcycle_noise=0.1)
    experts = models[0].layers[1].blocks[0].mlp.experts.fc1_weight
    source = dense.layers[1].blocks[0].mlp.fc1.weight.t()
    assert torch.equal(experts, models[1].layers[1].blocks[0].mlp.experts.fc1_weight)
    for expert in experts:
        assert ((expert - source).std() / source.std()).item() == pytest.approx(0.1, rel=0.1)
    assert not torch.equal(experts[0], experts[1])


def test_routers_are_the_model_s_own(tmp_path: Path) -> None:
    save_weights(filled(DENSE), tmp_path / "dense.safetensors", "native")
    model = build_model(replace(DENSE, moe=MOE), seed=3)
    before = model.layers[0].blocks[1].mlp.router.weight.clone()
    load_weights(model, tmp_path / "dense.safetensors", upcycle_noise=0.0)
    assert torch.equal(model.layers[0].blocks[1].mlp.router.weight, before)


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (replace(DENSE, moe=MOE), replace(DENSE, moe=MOE), "have experts already"),
        (DENSE, DENSE, "set model.moe"),
        (DENSE, replace(DENSE, moe=replace(MOE, shared_expert=True)), "model.moe.shared_expert=false"),
        (DENSE, replace(DENSE, moe=replace(MOE, expert_activation="swiglu")), "expert_activation=gelu"),
        (DENSE, replace(DENSE, mlp_ratio=2.0, moe=MOE), "another shape"),
    ],
)
def test_what_cannot_be_upcycled(
    source: ModelConfig, target: ModelConfig, message: str, tmp_path: Path
) -> None:
    save_weights(build_model(source), tmp_path / "source.safetensors", "native")
    with pytest.raises(WeightsError, match=message):
        load_weights(build_model(target), tmp_path / "source.safetensors", upcycle_noise=0.0)


def test_dense_weights_without_the_option_name_it(tmp_path: Path) -> None:
    save_weights(build_model(DENSE), tmp_path / "dense.safetensors", "native")
    with pytest.raises(WeightsError, match="to make experts of a dense model's MLPs: train.upcycle_noise=0"):
        load_weights(build_model(replace(DENSE, moe=MOE)), tmp_path / "dense.safetensors")


def test_gates_that_do_not_sum_to_one_are_said(tmp_path: Path) -> None:
    save_weights(build_model(DENSE), tmp_path / "dense.safetensors", "native")
    model = build_model(replace(DENSE, moe=replace(MOE, normalize_gates=False)))
    report = load_weights(model, tmp_path / "dense.safetensors", upcycle_noise=0.0)
    assert "without model.moe.normalize_gates" in str(report)


def test_the_encoder_of_simmim_becomes_experts(tmp_path: Path) -> None:
    """From the tensors that a run of SimMIM stores: names with `encoder.` before them."""
    from safetensors.torch import save_file

    simmim = build_simmim(DENSE, SimMIMConfig(mask_patch_size=8))
    save_file(
        {name: tensor.contiguous() for name, tensor in simmim.state_dict().items()},
        tmp_path / "s.safetensors",
    )
    model = build_model(replace(DENSE, moe=MOE))
    load_weights(model, tmp_path / "s.safetensors", head="replace", upcycle_noise=0.0)
    source = simmim.encoder.layers[0].blocks[1].mlp.fc2.weight.t()
    assert all(torch.equal(expert, source) for expert in model.layers[0].blocks[1].mlp.experts.fc2_weight)
