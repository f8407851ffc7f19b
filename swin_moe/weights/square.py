"""Formats whose models know square windows alone, shifted along both axes or along none.

Here the axes of a map are independent: a side that is no longer than the window is not shifted, and its
window has the length of that side. On square maps both rules are the same. With visible padding
(`model.window_padding`) every window has the configured size, and every second block shifts it.
"""

from swin_moe.config import ModelConfig


def is_other(config: ModelConfig, stage: int, *, window: int, shifted: bool) -> bool:
    """Whether a stage's blocks attend to other tokens than in a model of square windows.

    Args:
        config: of the model.
        stage: its number.
        window: side of the windows of the other model, in tokens.
        shifted: whether every second block of the other model shifts them, along both axes.
    """
    own, sides = config.stage_window(stage), config.stage_resolution(stage)
    if own != (window, window):
        return True
    has_shift, always = config.depths[stage] > 1 and window > 1, config.window_padding == "visible"
    return has_shift and any((always or side > window) != shifted for side in sides)
