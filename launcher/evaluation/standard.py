"""The ordinary evaluation, exact and at a capacity side by side, and what can be looked at on the way."""

from collections.abc import Sequence
from typing import Any

from launcher.evaluation.context import Loaded
from launcher.evaluation.loop import Evaluation, Observer, eval_stream, evaluate_ways
from launcher.evaluation.modes import Way, grouped, modes


def evaluate_in(loaded: Loaded, ways: Sequence[Way], observers: Sequence[Observer] = ()) -> list[Evaluation]:
    """Evaluate a loaded checkpoint in some ways on its validation split; every rank calls it together."""
    config, calls = loaded.config, [way.call for way in ways]
    with eval_stream(config, loaded.mesh, grouped=grouped(ways), classes=loaded.mapped_to) as stream:
        return evaluate_ways(
            loaded.model, stream, loaded.task, config.data, loaded.device, calls, loaded.beat, observers
        )


def evaluate_modes(
    loaded: Loaded, factor: float | None, observers: Sequence[Observer] = ()
) -> dict[str, Any]:
    """Evaluate, print a line a mode and write evaluation.json; the figures of the first mode.

    Args:
        loaded: the checkpoint.
        factor: of the mode with a capacity; None is that of the configuration.
        observers: look on at the first mode.
    """
    ways = modes(loaded.config.model.moe, factor)
    found = evaluate_in(loaded, ways, observers)
    heads = [loaded.name, *(f"  {way.name}" for way in ways[1:])]
    if ways[0].name != "exact":
        heads[0] += f", {ways[0].name}"
    for head, way, one in zip(heads, ways, found, strict=True):
        loaded.say(f"{head}: {way.line(loaded.task, one.metrics)}")
    records = [way.record(one) for way, one in zip(ways, found, strict=True)]
    loaded.write_json("evaluation", {"ranks": loaded.mesh.dims.world_size, "modes": records})
    return found[0].metrics
