"""Weights that a run starts from."""

from pathlib import Path

from torch import nn

from launcher.config.load import ConfigError
from launcher.config.schema import TrainConfig
from parallel.checkpoint.manifest import MANIFEST
from parallel.ranks.collectives import RanksError, agree
from parallel.ranks.mesh import Mesh
from swin_moe.weights import ClassMap
from swin_moe.weights.adapt import Head
from swin_moe.weights.load import LoadOptions, LoadPlan, apply, plan_load


def start_from(train: TrainConfig, model: nn.Module, mesh: Mesh) -> None:
    """Load pretrained weights into the model of every rank, and say what became of each tensor.

    Raises:
        ConfigError: they cannot be read or do not fit, on all ranks alike.
    """
    plans: list[LoadPlan] = []
    try:
        agree(lambda: plans.append(plan_pretrained(train, model)), (ConfigError,))
    except RanksError as error:
        raise ConfigError(str(error)) from error
    report = apply(model, plans[0])
    if mesh.is_first:
        print(report)


def plan_pretrained(train: TrainConfig, model: nn.Module) -> LoadPlan:
    """The weights that `train.pretrained` names, fitted to a model and not yet written into it.

    Args:
        train: with `pretrained` set.
        model: a backbone, or a module with one in it, of which the shapes alone count; it may be on the meta
            device.

    Raises:
        ConfigError: they cannot be read, do not fit, or lack what `pretrained_require` asks for.
    """
    path, head = str(train.pretrained), train.pretrained_head
    heads: dict[str, Head] = {"strict": "strict", "replace": "replace"}
    try:
        if (Path(path) / MANIFEST).exists() or (Path(path) / "checkpoints").exists():
            raise ConfigError(
                f"{path} is a run; make a file of it first: swin-moe convert {path} FILE --to native"
            )
        known = heads.get(head) or ClassMap.read(head)
        options = LoadOptions(
            head=known, head_option="train.pretrained_head", upcycle_noise=train.upcycle_noise
        )
        plan = plan_load(model, path, options)
        _require(train, plan)
        return plan
    except (ValueError, OSError) as error:
        raise ConfigError(f"train.pretrained: {error}") from error


def _require(train: TrainConfig, plan: LoadPlan) -> None:
    """Refuse weights that leave a part of the model as it was initialised, if all of it is required.

    The backbone is always complete: weights without a tensor of it do not fit.
    """
    if train.pretrained_require == "all" and (initial := plan.report.initial):
        parts = ", ".join(f"{part}: {count} tensors" for part, count in initial.items())
        raise ConfigError(
            f"{plan.report.path} does not have the whole model, which train.pretrained_require=all asks for "
            f"({parts} would keep their initial values); set train.pretrained_require=backbone, or give "
            "weights with these parts"
        )
