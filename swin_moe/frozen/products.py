"""How the experts of a deployed model are run; no torch."""

from typing import Literal

# How experts are run, all to the same numbers:
# dense     every expert on every token, weighted: E / k times the products, and no shape depends on the data
# gathered  each expert on the tokens that chose it, whose number is known when the model runs
# grouped   one grouped product of all experts, which torch exports in bf16 and fp16 alone
ExpertProducts = Literal["dense", "gathered", "grouped"]
