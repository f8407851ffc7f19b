"""The models that can be deployed: those with a classifier, whose answers do not depend on other images."""

import copy
from pathlib import Path

import torch

from launcher.deploy.card import ArtifactError, Origin
from launcher.deploy.options import DeviceType, TargetName
from launcher.deploy.predictor import Predictor
from launcher.evaluation.loaded import LoadedModel, load
from launcher.evaluation.recorded import recorded_task
from launcher.tasks.registry import task_spec
from parallel.checkpoint.manifest import read_manifest
from parallel.digest import joint_digest, tensor_digest
from parallel.zero.dtypes import DTYPES
from parallel.zero.options import Precision
from swin_moe.backbone.model import SwinTransformer
from swin_moe.config import ModelConfig
from swin_moe.frozen.model import FrozenClassifier
from swin_moe.frozen.products import ExpertProducts
from swin_moe.weights import native
from swin_moe.weights.native import checkpoint_in

FEW_EXPERTS = 8  # of which a GPU computes all on every token


def load_classifier(
    source: str | Path, config: str | Path | None = None, *, ema: bool = False
) -> LoadedModel:
    """As `launcher.load`, for models of tasks whose spec has `is_classifier`.

    Raises:
        ArtifactError: the model is of another task.
        TaskError: the task is not here.
        WeightsError, ConfigError: as `launcher.load`.
    """
    task = recorded_task(source)
    spec = task_spec(task)
    if spec.sees == "clips":
        raise ArtifactError(
            f"{source} was trained with task={task}: programs are of images, and its model takes clips; "
            "`swin-moe predict` runs it on videos, and `swin-moe export` writes its weights"
        )
    if not spec.is_classifier:
        raise ArtifactError(
            f"{source} was trained with task={task}: its model has no classifier, which `deploy` "
            "needs; fine-tune it as a classifier with train.pretrained first"
        )
    return load(source, config, ema=ema)


def origin_of(source: str | Path, model: SwinTransformer, *, ema: bool) -> Origin:
    """What a card says of the weights of a model that was loaded from `source`."""
    path = Path(source)
    checkpoint = checkpoint_in(path)
    moe = model.config.moe
    tensors = native.tensors_of(model, moe.num_experts if moe else 0)
    return Origin(
        source=str(source),
        checkpoint=checkpoint.name if checkpoint else None,
        step=read_manifest(checkpoint).get("step") if checkpoint else None,
        averaged=ema,
        digest=joint_digest({name: tensor_digest(tensor) for name, tensor in tensors.items()}),
    )


def check_device(device: DeviceType, option: str = "--device") -> torch.device:
    """The device of a kind.

    Raises:
        ArtifactError: this machine has none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ArtifactError(f"{option} cuda: this machine has no GPU that torch can use; take {option} cpu")
    return torch.device(device)


def freeze(
    model: SwinTransformer, precision: Precision, device: torch.device, products: ExpertProducts
) -> FrozenClassifier:
    """The program of a model in a precision, on a device; the model stays as it is.

    Raises:
        ModelError: a router that has no answer for an image alone.
    """
    if precision == "fp32" and device.type == "cpu":
        return FrozenClassifier(model, products)
    return FrozenClassifier(copy.deepcopy(model).to(device, DTYPES[precision]), products)


def default_products(
    config: ModelConfig,
    precision: Precision,
    device: torch.device,
    target: TargetName = "safetensors",
) -> ExpertProducts:
    """How experts are run unless `--experts` says so.

    On a CPU an expert computes the tokens that chose it, unless all of them are no more than twice the work.
    On a GPU a token count that the host must read costs more than the products of a few experts; there one
    grouped product runs many, in the precisions and on the GPUs (compute capability 9) that have it.
    """
    if (moe := config.moe) is None:
        return "gathered"
    if target == "onnx" and precision == "fp16":  # ONNX Runtime has no kernel that adds rows in fp16
        return "dense"
    if device.type == "cpu":
        return "dense" if moe.num_experts <= 2 * moe.top_k else "gathered"
    if moe.num_experts <= FEW_EXPERTS:
        return "dense"
    is_grouped = (
        target != "onnx" and precision != "fp32" and torch.cuda.get_device_capability(device) >= (9, 0)
    )
    return "grouped" if is_grouped else "gathered"


def open_source(
    source: str | Path,
    config: str | Path | None = None,
    *,
    ema: bool = False,
    precision: Precision = "fp32",
    device: DeviceType = "cpu",
) -> Predictor:
    """A run, a checkpoint or weights as they are, without an artifact.

    Raises:
        ArtifactError: the model has no classifier, or there is no such device.
        ModelError: a router that has no answer for an image alone.
        WeightsError, ConfigError: as `launcher.load`.
    """
    place = check_device(device)
    loaded = load_classifier(source, config, ema=ema)
    products = default_products(loaded.model.config, precision, place)
    return Predictor(
        source=str(source),
        model=loaded.model.config,
        inputs=loaded.inputs,
        program=freeze(loaded.model, precision, place, products),
        device=place,
    )
