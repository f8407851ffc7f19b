"""The formats in which weights can be written, see `export.py`."""

FORMATS = ("native", "safetensors", "official", "mmseg", "mmdet", "timm", "hf")
