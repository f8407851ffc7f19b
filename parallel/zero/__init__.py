"""The ZeRO engine: DeepSpeed's optimizer, its options, and the fp32 master weights."""
