"""The formats in which weights can be written, see `export.py`."""

FORMATS = ("native", "safetensors", "official", "mmseg", "mmdet", "mmaction", "torchvision", "timm", "hf")
