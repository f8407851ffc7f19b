"""The loss of tasks with a class for each sample.

Legend: B samples, K classes.
"""

from torch import Tensor

from launcher.config.schema import OptimConfig
from swin_moe.heads.classification import binary_cross_entropy, classification_loss


def class_loss(optim: OptimConfig, logits: Tensor, targets: Tensor) -> Tensor:
    """The loss that `optim.loss` names, of logits (B, K) and labels (B,) or probabilities (B, K): scalar."""
    if optim.loss == "cross_entropy":
        return classification_loss(logits, targets, optim.label_smoothing)
    return binary_cross_entropy(
        logits,
        targets,
        optim.label_smoothing,
        target_threshold=optim.bce_target_threshold,
        sum_classes=optim.bce_sum_classes,
    )
