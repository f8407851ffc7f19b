"""A trained model with one call, from wherever its weights are."""

from pathlib import Path

from parallel.suggest import suggestion
from swin_moe.backbone.model import SwinTransformer
from swin_moe.config import ModelConfig
from swin_moe.recipes import list_models, load_model_config
from swin_moe.registry import build_model
from swin_moe.weights.errors import WeightsError
from swin_moe.weights.load import load_weights
from swin_moe.weights.native import config_of


def load(
    source: str | Path, config: str | ModelConfig | None = None, *, ema: bool = False
) -> SwinTransformer:
    """A model in evaluation mode, on the CPU, with all its experts here.

    Args:
        source: a run directory, a checkpoint, or weights in any format of `load_weights`; or, where there
            is no such file, one of `list_models()`: initial weights.
        config: which model the weights are of: one of `list_models()`, or a ModelConfig. Runs, checkpoints
            and safetensors files of ours know it themselves.
        ema: take the moving average of the weights.

    Raises:
        WeightsError: there is no such file, it does not say which model it is of, or its weights do not fit.
        ModelError: no model has the name `config`.
    """
    path, models = Path(source), list_models()
    if not path.exists() and source in models:
        return build_model(str(source)).eval()
    own = load_model_config(config) if config is not None else config_of(path)
    if own is None and not path.exists():
        hint = suggestion(str(source), models, "swin_moe.list_models() names the models", most=3)
        raise WeightsError(f"{source}: there is neither a file nor a model of this name; {hint}")
    if own is None:
        raise WeightsError(f'{source} does not say which model it is of; pass config="NAME"')
    model = build_model(own.with_native_backend())
    load_weights(model, path, ema=ema)
    return model.eval()
