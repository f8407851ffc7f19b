"""Which parameters are trained, which of them decay, and each one's share of the learning rate."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from launcher.config.load import ConfigError
from launcher.config.schema import OptimConfig
from launcher.tasks.parameter_rules import ParameterRules
from parallel.experts.names import shape_of
from parallel.suggest import suggestion

ALIGNED = 8  # elements: 16 bytes in half precision
POSITIONS = (  # parts of names of position biases, of scales of attention and of routers
    "relative_position_bias_table",
    "cpb_mlp",
    "relation.prior.fc",
    "layer.prior.fc",
    "logit_scale",
    "absolute_pos_embed",
    "cosine_projector",
    "sim_matrix",
    "router.phi",
    "router.temperature",
    "router.scale",
)
NO_DECAY = {"swin": ("bias", *POSITIONS), "dense": ("norm", *POSITIONS)}  # by optim.decay_rule

FROZEN = {  # words of optim.freeze
    "experts": ["*.mlp.experts.*"],
    "moe": ["*.mlp.experts.*", "*.mlp.router.*", "*.mlp.shared.*"],
    "backbone": ["*"],  # but for the head
}


CLASSIFIER = ParameterRules()


def parameter_groups(
    model: nn.Module, config: OptimConfig, rules: ParameterRules = CLASSIFIER
) -> list[dict[str, Any]]:
    """The model's parameters by weight decay and, with other rates than one, by layer or part.

    By the rule `swin` there is no weight decay for norms and other 1-D parameters of a layer, biases (the
    experts' too, which are 2-D here) and position biases. By the rule `dense`, that of the released
    segmentation and detection models, there is none for position biases and for what has "norm" in its name:
    biases decay, and so do batch norms of a head that are called `bn`. `lr_scale` of a group multiplies every
    learning rate: it is `layer_decay` to the number of layers above, times `backbone_lr_scale` where the
    parameter is of no head.

    Args:
        model: of a task.
        config: with the rates.
        rules: of the task.
    """
    backbone = model.get_submodule(rules.backbone.removesuffix("."))
    depths = [len(stage.blocks) for stage in getattr(backbone, "layers", ())]
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = (config.decay_rule == "swin" and len(shape_of(parameter)) == 1) or any(
            part in name for part in (*NO_DECAY[config.decay_rule], *rules.no_decay)
        )
        label, scale = "no_decay" if plain else "decay", 1.0
        if config.layer_decay < 1:
            layer = layer_of(name, depths, rules)
            label, scale = f"{label}_{layer}", config.layer_decay ** (sum(depths) + 1 - layer)
        if config.backbone_lr_scale < 1 and is_of_backbone(name, rules):
            label, scale = f"{label}_backbone", scale * config.backbone_lr_scale
        group = {
            "name": label,
            "params": [],
            "weight_decay": 0.0 if plain else config.weight_decay,
            "lr_scale": scale,
            "betas": config.betas,
            "eps": config.eps,
            **_of_sgd(config),
        }
        groups.setdefault(label, group)["params"].append(parameter)
    return [{**group, "params": _aligned(group["params"])} for _, group in sorted(groups.items())]


def _aligned(parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """The parameters whose sizes are multiples of `ALIGNED` first, each kind in its order.

    DeepSpeed lays a group out in one flat buffer. Behind a small odd one, such as a table of 507, every
    pointer would be unaligned, for which torch's layer norm has no vectors and cuBLAS slower kernels.
    """
    return sorted(parameters, key=lambda parameter: shape_of(parameter).numel() % ALIGNED != 0)


def _of_sgd(config: OptimConfig) -> dict[str, Any]:
    """Nesterov's momentum, as the reference of the Swin family has it; without any, there is none."""
    if config.optimizer != "sgd":
        return {}
    return {"momentum": config.momentum, "nesterov": config.momentum > 0}


def freeze(model: nn.Module, patterns: Sequence[str], rules: ParameterRules = CLASSIFIER) -> list[str]:
    """Take parameters out of training: those whose names a pattern matches, or that a word stands for.

    Args:
        model: whose parameters are then without gradients.
        patterns: such as "layers.0.*"; or a word of `FROZEN`.
        rules: of the task whose model it is.

    Returns:
        The names of what is frozen.

    Raises:
        ConfigError: a pattern matches nothing, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    frozen: set[str] = set()
    for pattern in patterns:
        matching = {
            name
            for name in names
            if any(
                fnmatchcase(name.removeprefix(rules.backbone), one) for one in FROZEN.get(pattern, [pattern])
            )
        }
        if pattern == "backbone":
            matching = {name for name in matching if is_of_backbone(name, rules)}
        if not matching:
            otherwise = f"there are {', '.join(FROZEN)}, and patterns of names"
            words = [word for word in FROZEN if word != pattern]  # such as experts of a model without any
            hint = suggestion(pattern, [*words, *names], otherwise)
            raise ConfigError(f"optim.freeze ({pattern}) matches no parameter of the model; {hint}")
        frozen |= matching
    if len(frozen) == len(names):
        raise ConfigError(f"optim.freeze ({list(patterns)}) leaves nothing to train")
    for name, parameter in model.named_parameters():
        if name in frozen:  # a task may have taken others out already
            parameter.requires_grad_(False)
    return sorted(frozen)


def is_of_backbone(name: str, rules: ParameterRules = CLASSIFIER) -> bool:
    """Whether a parameter is of no head."""
    return not name.startswith(rules.heads)


def layer_of(name: str, depths: Sequence[int], rules: ParameterRules = CLASSIFIER) -> int:
    """The layer of a parameter, for layer decay: 0 the patches, then each block, then norm and head.

    A merging counts with the block before it (Bao et al. 2022, BEiT; Xie et al. 2022, section 4).
    """
    part, *rest = name.removeprefix(rules.backbone).split(".")
    if name.startswith(rules.first_layer) or (part == "patch_embed" and name.startswith(rules.backbone)):
        return 0
    if part != "layers" or not name.startswith(rules.backbone):
        return sum(depths) + 1
    before = sum(depths[: int(rest[0])])
    return before if rest[1] == "merge" else before + int(rest[2]) + 1
