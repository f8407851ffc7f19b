"""The MoE layer: routing, dispatch, experts, losses."""
