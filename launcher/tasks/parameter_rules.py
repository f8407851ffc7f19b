"""What a task says of its parameters. No torch."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ParameterRules:
    """What the names of a task's parameters mean, in the model that it trains.

    `backbone` is the prefix of the backbone's parameters, such as "encoder.". `heads` are the prefixes of
    what `optim.freeze: [backbone]` leaves to train. `first_layer` are prefixes of parameters that count as
    layer 0 in layer decay, as the patches do. `no_decay` are parts of names without weight decay.
    """

    backbone: str = ""
    heads: tuple[str, ...] = ("head.",)
    first_layer: tuple[str, ...] = ()
    no_decay: tuple[str, ...] = ()
