"""How an MoE layer is computed: by our own exchange, or by Tutel."""
