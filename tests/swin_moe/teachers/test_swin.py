"""Our own models as teachers, and the student's images fitted to a teacher's."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from parallel.ranks.mesh import Mesh, ParallelDims
from parallel.zero.teacher import weights_digest
from swin_moe.backbone.group_batch_norm import GroupBatchNorm2d
from swin_moe.backbone.model import build_model
from swin_moe.config import ModelConfig
from swin_moe.teachers.fitted import FittedTeacher
from swin_moe.teachers.source import TeacherSourceError, TeacherSpec
from swin_moe.teachers.swin import SwinSource
from swin_moe.weights.errors import WeightsError
from swin_moe.weights.export import save_weights
from swin_moe.weights.input_spec import InputSpec
from tests.models import V2, add_noise, images_of, randn, small_lr_net, small_moe, small_swin

INPUTS = InputSpec(
    mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), eval_crop=1.0, classes=("a", "b", "c", "d", "e")
)


def source(path: Path, config: ModelConfig, wanted: str = "map") -> SwinSource:
    """A teacher with random weights, which also `build_model` makes with seed 3."""
    if not path.exists():
        save_weights(add_noise(build_model(config, seed=3), 0.1), path, "native", INPUTS)
    return SwinSource(path=path, config=config, wanted=wanted, inputs=INPUTS)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{}, V2, {"moe": small_moe(eval_capacity_factor=0.5)}])
def test_map_and_logits_are_the_models(tmp_path: Path, options: dict[str, object]) -> None:
    """The experts drop no token, whatever the capacity of the teacher's own evaluation."""
    config = small_swin(**options)
    model = add_noise(build_model(config, seed=3), 0.1).eval()
    images = images_of(config)
    of_map, of_logits = (source(tmp_path / "t.safetensors", config, wanted) for wanted in ("map", "logits"))
    exact = build_model(
        small_swin(**options | ({"moe": small_moe(eval_capacity_factor=0.0)} if config.moe else {}))
    )
    exact.load_state_dict(model.state_dict())
    exact.eval()
    with torch.no_grad():
        assert torch.equal(of_logits.load().eval()(images), exact(images).logits)
        wanted = exact.norm(exact.forward_features(images).maps[-1])
        assert torch.equal(of_map.load().eval()(images), wanted)
    spec = of_map.spec
    assert (spec.sides, spec.grid, spec.width, spec.classes) == ((32, 32), (4, 4), 16, 5)
    assert spec.class_names == INPUTS.classes
    assert config.moe or of_map.on_meta()(images.to("meta")).shape == (2, 4, 4, 16)
    of_map.check()


def test_an_lr_net_normalises_by_its_running_statistics(tmp_path: Path) -> None:
    """Its map is that of the last stage, which has no norm behind it; the statistics are in the digest."""
    config, images = small_lr_net(), images_of(small_lr_net(), 3)
    mesh, digests = Mesh(dims=ParallelDims()), []
    for mean in (0.0, 0.5):
        model = add_noise(build_model(config, seed=3), 0.1).eval()
        for norm in [one for one in model.modules() if isinstance(one, GroupBatchNorm2d)]:
            norm.get_buffer("running_mean").fill_(mean)
        path = save_weights(model, tmp_path / f"{mean}.safetensors", "native", INPUTS)
        teacher = source(path, config)
        teacher.check()
        loaded = teacher.load().eval()
        with torch.no_grad():
            assert torch.equal(loaded(images), model.forward_features(images).maps[-1])
            torch.testing.assert_close(loaded(images)[:1], loaded(images[:1]), rtol=1e-5, atol=1e-6)
        digests.append(weights_digest(loaded, mesh))
    assert digests[0] != digests[1]
    assert (teacher.spec.grid, teacher.spec.width) == ((4, 4), 16)


def test_an_image_does_not_depend_on_its_batch(tmp_path: Path) -> None:
    config = small_swin(moe=small_moe(eval_capacity_factor=0.5))
    teacher = source(tmp_path / "t.safetensors", config).load().eval()
    images = images_of(config, 4)
    with torch.no_grad():
        torch.testing.assert_close(teacher(images)[:1], teacher(images[:1]), rtol=1e-5, atol=1e-6)


def test_weights_of_another_model(tmp_path: Path) -> None:
    source(tmp_path / "t.safetensors", small_swin())
    other = source(tmp_path / "t.safetensors", small_swin(depths=(2, 4)))
    for act in (other.check, other.load):
        with pytest.raises(WeightsError, match="tensors of the model are missing"):
            act()


def test_experts_that_choose_are_refused(tmp_path: Path) -> None:
    moe = small_moe(router="expert_choice", eval_capacity_factor=1.0)
    with pytest.raises(
        TeacherSourceError, match="expert_choice a teacher's output depends on the other images"
    ):
        SwinSource(path=tmp_path, config=small_swin(moe=moe), wanted="map", inputs=INPUTS)


class Same(torch.nn.Module):
    """A teacher that gives its images."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


def spec(sides: tuple[int, int], mean: float, std: float) -> TeacherSpec:
    return TeacherSpec(sides=sides, grid=(1, 1), width=3, mean=(mean,) * 3, std=(std,) * 3)


def test_images_are_normalised_anew() -> None:
    """Pixels .5 and 1 are 0 and 2.5 of the student (mean .5, std .2), and .25 and .75 of a teacher's
    (mean .25, std 1)."""
    fitted = FittedTeacher(Same(), spec((1, 2), 0.25, 1.0), (0.5,) * 3, (0.2,) * 3)
    found = fitted(torch.tensor([0.0, 2.5]).expand(1, 3, 1, 2))
    torch.testing.assert_close(found, torch.tensor([0.25, 0.75]).expand(1, 3, 1, 2))


def test_images_of_the_same_kind_are_not_touched() -> None:
    fitted = FittedTeacher(Same(), spec((8, 8), 0.5, 0.2), (0.5,) * 3, (0.2,) * 3)
    images = randn(2, 3, 8, 8)
    assert torch.equal(fitted(images), images)
    assert not fitted.state_dict()  # which the digest is of


def test_images_are_resized() -> None:
    fitted = FittedTeacher(Same(), spec((4, 6), 0.5, 0.2), (0.5,) * 3, (0.2,) * 3)
    images = randn(2, 3, 8, 12)
    wanted = F.interpolate(images, (4, 6), mode="bilinear", antialias=True)
    assert torch.equal(fitted(images), wanted)
