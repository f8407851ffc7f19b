"""Checks of speed: models beside others', MoE layers, profiles, compiled blocks, single kernels.

Each is in a file of its own, so that one that does not import costs itself alone.
"""

from collections.abc import Iterator

from gpu_checks.place import CheckContext, Row


def models(place: CheckContext) -> Iterator[Row]:
    """Training and evaluation of whole models beside timm's and transformers', and steps of our engine."""
    from gpu_checks.speed_models import models as run

    yield from run(place)


def layers(place: CheckContext) -> Iterator[Row]:
    """MoE layers beside a dense MLP of equal FLOPs."""
    from gpu_checks.speed_layers import layers as run

    yield from run(place)


def profiles(place: CheckContext) -> Iterator[Row]:
    """Launches, idle time and the longest kernels of a training step."""
    from gpu_checks.speed_profiles import profiles as run

    yield from run(place)


def compiled(place: CheckContext) -> Iterator[Row]:
    """Blocks under torch.compile beside eager ones."""
    from gpu_checks.speed_compiled import compiled as run

    yield from run(place)


def pieces(place: CheckContext) -> Iterator[Row]:
    """Single operations in the forms that they might have."""
    from gpu_checks.speed_pieces import pieces as run

    yield from run(place)
