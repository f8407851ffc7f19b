"""Rules of tasks with a class for each sample. No torch."""

from collections.abc import Sequence

from launcher.config.schema import RunConfig


def class_loss_errors(config: RunConfig) -> Sequence[str]:
    """The threshold must separate the class of a sample from the others, whose probability smoothing sets."""
    threshold = config.optim.bce_target_threshold
    if threshold is None:
        return []
    smoothing, classes = config.optim.label_smoothing, config.model.num_classes
    low = smoothing / classes
    high = 1 - smoothing + low
    if low <= threshold < high:
        return []
    return [
        f"optim.bce_target_threshold ({threshold}) must lie in [{low:.4g}, {high:.4g}): with "
        f"optim.label_smoothing ({smoothing}) and model.num_classes ({classes}) the class of an image "
        f"has the probability {high:.4g}, and each other class {low:.4g}"
    ]
