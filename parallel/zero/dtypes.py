"""The dtypes of the precisions."""

import torch

DTYPES: dict[str, torch.dtype] = {  # by Precision
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
