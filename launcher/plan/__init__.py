"""`swin-moe plan`: memory, time and layout of a run, before anything is queued."""
