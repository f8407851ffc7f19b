"""Which options of a model go with local relations, and with an LR-Net. No torch."""

from collections.abc import Iterator
from typing import Any, Protocol


class Options(Protocol):
    """What the rules read of a `ModelConfig`, whose module imports this one."""

    @property
    def attention(self) -> str:
        """What mixes tokens."""

    @property
    def lr_net(self) -> object:
        """The section of an LR-Net, or None."""


NO_WINDOWS = {  # options of windows and heads, at the only value that local relations have
    "window_padding": "hidden",
    "pretrained_window_sizes": None,
    "qkv_bias": True,
    "position_bias": "table",
    "attention_chunk": 0,
    "frames": 0,
}
NO_TOKENS = {  # options of the blocks of a Swin, at the only value that an LR-Net has
    "patch_size": 4,
    "norm": "pre",
    "extra_norm_period": 0,
    "mlp_ratio": 4.0,
    "mlp_fc2_bias": True,
    "drop_rate": 0.0,
    "moe": None,
}


def relation_errors(config: Options) -> Iterator[str]:
    """The rules of `model.local_relation` and `model.lr_net` that do not hold, a line each."""
    if config.attention != "local_relation":
        for name in ("local_relation", "lr_net"):
            if getattr(config, name) is not None:
                yield (
                    f"model.{name} needs model.attention=local_relation (got {config.attention}); or set "
                    f"model.{name}=null"
                )
        return
    yield from _others(config, NO_WINDOWS, "model.attention=local_relation has no windows")
    if config.lr_net is not None:
        yield from _others(config, NO_TOKENS, "an LR-Net (model.lr_net) is no Swin")


def _others(config: Options, only: dict[str, Any], reason: str) -> Iterator[str]:
    """The options that have another value than the only one."""
    for name, value in only.items():
        if (found := getattr(config, name)) != value:
            shown = "a section" if name == "moe" else found
            yield f"{reason}: leave model.{name} ({shown}) at {'null' if value is None else value}"
