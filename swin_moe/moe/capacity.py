"""The slots of an expert. No torch."""

import math


def capacity(factor: float, tokens: int, num_experts: int, top_k: int) -> int:
    """Slots of one expert in one routing group: top_k * int(|factor| * ceil(tokens / num_experts)).

    This is the rounding of the released Swin-MoE models, here of a routing group and not of a rank's batch,
    so that no layout changes which choices are dropped. Factor 0 is dropless: a slot for every token. A
    factor -f drops what f drops, without the slots that no load could fill, as a token chooses an expert
    once.
    """
    if factor == 0:
        return tokens
    slots = top_k * int(abs(factor) * math.ceil(tokens / num_experts))
    return slots if factor > 0 else min(slots, tokens)
