"""What `check` says of a teacher, a line each, before a run starts."""

from dataclasses import replace
from pathlib import Path

import pytest

from launcher.config.load import ConfigError, load_config
from launcher.slurm.absolute_paths import with_absolute_paths
from launcher.validation.rules import problems
from swin_moe.backbone.backbone import Backbone
from swin_moe.backbone.model import build_model
from swin_moe.weights.export import save_weights
from tests.launcher.running import CONFIG
from tests.launcher.tasks.distill.teachers import INPUTS, TEACHER, line, write_teacher
from tests.swin_moe.teachers.folders import LABELS, make, write


def found(shards: Path, tmp_path: Path, teacher: Path | str, *more: str, task: str = "distill") -> list[str]:
    _, _, _, _, *options = line(shards, tmp_path / "run", Path(teacher), *more, task=task)
    return problems(load_config(CONFIG, options), 1)


def test_a_good_teacher(shards: Path, tmp_path: Path) -> None:
    ours, folder = write_teacher(tmp_path / "t.safetensors"), write(make("SwinModel"), tmp_path / "folder")
    assert found(shards, tmp_path, ours) == []
    assert found(shards, tmp_path, ours, task="distill_logits") == []
    assert found(shards, tmp_path, folder, "distill.teacher.image_size=16") == []


def test_no_teacher(shards: Path, tmp_path: Path) -> None:
    write_teacher(tmp_path / "teacher.safetensors")
    for task in ("distill", "distill_logits"):
        option = f"{task}.teacher.weights"
        (error,) = found(shards, tmp_path, "x", f"{option}=null", task=task)
        assert error.startswith(f"{option} (null) must name the teacher")
        (error,) = found(shards, tmp_path, tmp_path / "teacher.safetensor", task=task)
        assert error == (
            f"{option} ({tmp_path}/teacher.safetensor) does not exist; did you mean teacher.safetensors?"
        )


def test_a_run_does_not_teach_itself(shards: Path, tmp_path: Path) -> None:
    """Neither its directory nor one of its checkpoints; other weights there may."""
    run = tmp_path / "run"
    (run / "checkpoints" / "step-00000001").mkdir(parents=True)
    for place in (run, tmp_path / "x" / ".." / "run", run / "checkpoints" / "step-00000001"):
        (tmp_path / "x").mkdir(exist_ok=True)
        (error,) = found(shards, tmp_path, place)
        assert error.startswith(f"distill.teacher.weights ({place}) is this run itself (run_dir {run}): give")
    assert found(shards, tmp_path, write_teacher(run / "teacher.safetensors")) == []


def test_a_place_that_the_system_refuses(shards: Path, tmp_path: Path) -> None:
    (error,) = found(shards, tmp_path, "x" * 300)
    assert error.startswith("distill.teacher.weights: ")
    assert "File name too long" in error


def test_maps_that_do_not_go_together(shards: Path, tmp_path: Path) -> None:
    """The student has 2 x 2 tokens of 16 pixels, the ViT 4 x 4 of 32."""
    path = write(make("ViTModel"), tmp_path / "vit")
    (error,) = found(shards, tmp_path, path)
    assert "the student's map has 2 x 2 tokens, and the teacher's 4 x 4; set distill.resize to pixel" in error
    assert str(path) in error
    for more in ("distill.resize=pixel_shuffle", "distill.resize=bilinear", "distill.stage=0"):
        assert found(shards, tmp_path, path, more) == [], more
    for frozen in ("[]", "[backbone]"):  # what several rules find is one line
        (error,) = found(shards, tmp_path, path, "distill.stage=2", f"optim.freeze={frozen}")
        assert error.startswith("distill.stage (2) must be at most 1")


def test_weights_that_do_not_fit(shards: Path, tmp_path: Path) -> None:
    path = write_teacher(tmp_path / "t.safetensors")
    other = tmp_path / "other.yaml"
    model = (
        "{image_size: 16, num_classes: 10, embed_dim: 8, depths: [1, 2], num_heads: [2, 2], window_size: 2}"
    )
    other.write_text(f"run_dir: run\nmodel: {model}\ndata: {{train: a, val: b}}\n")
    (error,) = found(shards, tmp_path, path, f"distill.teacher.model={other}")
    assert error.startswith("distill.teacher.weights: ")
    assert "tensors of the model are missing" in error
    (error,) = found(shards, tmp_path, path, "distill.teacher.ema=true")
    assert error.startswith("distill.teacher.weights: ")


def test_what_holds_no_weights(shards: Path, tmp_path: Path) -> None:
    """Such a path is not asked for its model."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "nothing.safetensors").touch()
    whole = write_teacher(tmp_path / "t.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:12])
    for path, reason in {
        tmp_path / "empty": "holds no weights",
        tmp_path / "nothing.safetensors": "is empty (0 bytes)",
        tmp_path / "cut.safetensors": "is damaged or cut short",
        shards / "train": "is not a checkpoint: its manifest.json is that of something else",
    }.items():
        (error,) = found(shards, tmp_path, path)
        assert error.startswith(f"distill.teacher.weights: {path} {reason}")


def test_logits_of_weights_without_a_classifier(shards: Path, tmp_path: Path) -> None:
    path = save_weights(Backbone(TEACHER), tmp_path / "encoder.safetensors", "native", INPUTS)
    assert found(shards, tmp_path, path) == []
    (error,) = found(shards, tmp_path, path, task="distill_logits")
    assert error == (
        f"distill_logits.teacher.weights: {path} has no classifier: name the weights of one with 10 classes, "
        "or set task=distill, which takes the map of a teacher"
    )


def test_weights_that_do_not_say_what_they_are(shards: Path, tmp_path: Path) -> None:
    path = save_weights(build_model(TEACHER), tmp_path / "t.pth", "official")
    (error,) = found(shards, tmp_path, path)
    assert "does not say which model it is of: set distill.teacher.model" in error
    plain = save_weights(build_model(TEACHER), tmp_path / "plain.safetensors", "native")
    (error,) = found(shards, tmp_path, plain)
    assert "images are normalised: set distill.teacher.mean and distill.teacher.std" in error
    more = ("distill.teacher.mean=[0.5,0.5,0.5]", "distill.teacher.std=[0.5,0.5,0.5]")
    assert found(shards, tmp_path, plain, *more) == []


def test_bad_folders(shards: Path, tmp_path: Path) -> None:
    path = write(make("ViTModel"), tmp_path / "vit")
    more = ("distill.resize=bilinear",)
    (error,) = found(shards, tmp_path, path, *more, "distill.teacher.ema=true")
    assert "vit: distill.teacher.ema (True) is for weights of ours" in error
    (path / "model.safetensors").write_bytes(b"\x00" * 64)
    (error,) = found(shards, tmp_path, path, *more)
    assert error.startswith("distill.teacher.weights: ")
    assert "model.safetensors is damaged" in error
    (path / "model.safetensors").unlink()
    (error,) = found(shards, tmp_path, path, *more)
    assert "holds no weights" in error


def test_options_that_have_no_place(shards: Path, tmp_path: Path) -> None:
    path = write_teacher(tmp_path / "t.safetensors")
    (error,) = found(shards, tmp_path, path, "data.augment={}")
    assert error.startswith("data.augment is for tasks with labels")
    assert found(shards, tmp_path, path, "data.augment={}", task="distill_logits") == []
    with pytest.raises(
        ConfigError, match=r"  distill.teacher.mean \(\[0.5, 0.5, 0.5\]\) and distill.teacher.std \(null\) go"
    ):
        found(shards, tmp_path, path, "distill.teacher.mean=[0.5,0.5,0.5]")
    with pytest.raises(ConfigError, match=r"distill_logits.hard_weight \(1.0\) must lie in \[0, 1\)"):
        found(shards, tmp_path, path, "distill_logits.hard_weight=1.0", task="distill_logits")


def test_the_classes_of_teacher_and_data(shards: Path, tmp_path: Path) -> None:
    """As many as the student's; where both have names, the same in the same order."""
    path = write(make("ViTForImageClassification", **LABELS), tmp_path / "vit")
    (error,) = found(shards, tmp_path, path, task="distill_logits")
    assert error.startswith("model.num_classes (10) must be the classes of the teacher (3, ")
    (error,) = found(shards, tmp_path, write(make("ViTModel"), tmp_path / "plain"), task="distill_logits")
    assert "model.num_classes (10) must be the classes of the teacher (2, " in error
    other = tuple(f"class {number}" for number in range(10))
    named = save_weights(
        build_model(TEACHER), tmp_path / "named.safetensors", "native", replace(INPUTS, classes=other)
    )
    (error,) = found(shards, tmp_path, named, task="distill_logits")
    assert error.startswith("the classes of data.train must be those of the teacher")
    assert "missing: 'class 0', 'class 1', 'class 2'" in error


def test_a_job_gets_absolute_places(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_teacher(tmp_path / "t.safetensors")
    monkeypatch.chdir(tmp_path)
    _, _, _, _, *options = line(shards, Path("run"), Path("t.safetensors"), "distill.teacher.model=swin_tiny")
    teacher = with_absolute_paths(load_config(CONFIG, options)).distill.teacher  # type: ignore[attr-defined]
    assert teacher.weights == str(tmp_path / "t.safetensors")
    assert teacher.model == "swin_tiny"  # a name, of no file
